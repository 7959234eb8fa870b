//! What somebody can do who has the database open in SQLite, and perhaps a key of their own.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use ed25519_dalek::{Signer, SigningKey};
use estop::log::checkpoint::Statement;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::place::Place;

/// The hash of a line, as the next one has it.
pub(crate) fn sha256(line: &str) -> String {
    let digest = Sha256::digest(format!("{line}\n"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What stands in a line after its number and the hash of the line before.
fn entry(line: &str) -> &str {
    let (_, rest) = line.split_once("\"prev\":\"").unwrap();
    &rest[64 + 1..]
}

/// Gives the lines after the first one numbers and hashes that fit, where they do not. What a checkpoint covers is made to
/// fit as well: signed by this key, or else under the old signature.
pub(crate) fn rechained(lines: &[String], key: Option<&Key>) -> Vec<String> {
    let first: Value = serde_json::from_str(&lines[0]).unwrap();
    let mut seq = first["seq"].as_u64().unwrap();
    let mut chained = vec![lines[0].clone()];
    for line in &lines[1..] {
        let prev = sha256(&chained[chained.len() - 1]);
        seq += 1;
        let mut parsed: Value = serde_json::from_str(line).unwrap();
        let mut rest = entry(line).to_owned();
        let is_right = parsed["seq"] == seq && parsed["prev"] == *prev;
        if parsed["kind"] == "checkpoint" && (key.is_some() || !is_right) {
            let home = parsed["home"].as_str().unwrap().to_owned();
            let signed = key.map(|key| key.checkpoint(&home, seq - 1, &prev));
            let signed = signed.unwrap_or_else(|| json!({"covers": seq - 1, "sha256": prev}));
            let fields = parsed.as_object_mut().unwrap();
            fields.extend(signed.as_object().unwrap().clone());
            fields.retain(|name, _| name != "seq" && name != "prev");
            rest = format!(",{}", &parsed.to_string()[1..]);
        }
        chained.push(format!("{{\"seq\":{seq},\"prev\":\"{prev}\"{rest}"));
    }
    chained
}

impl Place {
    /// Takes the triggers away, does what they forbid, and puts them back.
    pub(crate) fn attack<T>(&self, attack: impl FnOnce(&rusqlite::Connection) -> T) -> T {
        let database = self.database();
        let mut found = database.prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").unwrap();
        let triggers = found.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let triggers: Vec<(String, String)> = triggers.map(Result::unwrap).collect();
        triggers.iter().for_each(|(name, _)| database.execute_batch(&format!("DROP TRIGGER {name}")).unwrap());
        let done = attack(&database);
        triggers.iter().for_each(|(_, sql)| database.execute_batch(sql).unwrap());
        done
    }

    /// Puts these lines in the place of the log, and lets the database say that this is how it always was.
    pub(crate) fn replace(&self, lines: &[String]) {
        let checkpoint = lines.iter().rposition(|line| line.contains("\"kind\":\"checkpoint\""));
        let number = |line: &str| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap();
        self.attack(|database| {
            database.execute("DELETE FROM log", []).unwrap();
            for line in lines {
                database.execute("INSERT INTO log VALUES (?1, ?2)", (number(line), line)).unwrap();
            }
            let newest = checkpoint.map_or(0, |index| number(&lines[index])).to_string();
            database.execute("UPDATE meta SET value = ?1 WHERE name = 'checkpoint'", [newest]).unwrap();
        });
    }
}

/// A key of the attacker's own.
pub(crate) struct Key(SigningKey);

impl Key {
    pub(crate) fn new(seed: u8) -> Self {
        Self(SigningKey::from_bytes(&[seed; 32]))
    }

    /// The right one, for whoever could read it.
    pub(crate) fn of(place: &Place) -> Self {
        let pem = fs::read_to_string(place.home().join("log-key.pem")).unwrap();
        Self(SigningKey::from_pkcs8_pem(&pem).unwrap())
    }

    pub(crate) fn public(&self) -> String {
        BASE64.encode(self.0.verifying_key().as_bytes())
    }

    fn sign(&self, statement: &Statement) -> String {
        BASE64.encode(self.0.sign(statement.text().as_bytes()).to_bytes())
    }

    /// What is in a checkpoint's entry.
    pub(crate) fn checkpoint(&self, home: &str, covers: u64, sha256: &str) -> Value {
        let signature = self.sign(&Statement::checkpoint(home, covers, sha256));
        json!({"home": home, "covers": covers, "sha256": sha256, "key": self.public(), "signature": signature})
    }

    /// What would vouch for lines that were removed.
    pub(crate) fn pruning(&self, home: &str, first: u64, sha256: &str) -> Value {
        let statement = format!("estop log pruning\nhome {home}\nfirst {first}\nsha256 {sha256}\n");
        let signature = BASE64.encode(self.0.sign(statement.as_bytes()).to_bytes());
        json!({"home": home, "first": first, "sha256": sha256, "key": self.public(), "signature": signature})
    }

    /// The signature of a bundle.
    pub(crate) fn bundle(&self, home: &str, first: u64, last: u64, sha256: &str) -> String {
        self.sign(&Statement::bundle(home, first, last, sha256))
    }

    /// The end of a file.
    pub(crate) fn export(&self, home: &str, first: u64, last: u64, sha256: &str) -> Value {
        let signature = self.sign(&Statement::export(home, first, last, sha256));
        let key = self.public();
        json!({"home": home, "first": first, "last": last, "sha256": sha256, "key": key, "signature": signature})
    }
}
