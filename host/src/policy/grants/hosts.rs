//! `hosts` of `[[grants]]`: which hosts may be asked, and how much.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::super::secrets::Secrets;
use super::super::{Bytes, Count, PolicyError, Time};
use crate::grants::{HttpGrant, HttpLimits};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostTable {
    host: Spanned<String>,
    methods: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    secret_headers: BTreeMap<Spanned<String>, String>,
    #[serde(default)]
    private_addresses: bool,
    request_bytes_max: Option<Bytes>,
    response_bytes_max: Option<Bytes>,
    header_bytes_max: Option<Bytes>,
    requests_max: Option<Count>,
    live_max: Option<Count>,
    connect_within: Option<Time>,
    first_byte_within: Option<Time>,
    between_bytes_within: Option<Time>,
}

impl HostTable {
    pub(super) fn check(
        self,
        secrets: &Secrets,
        wrong: &dyn Fn(Range<usize>, String) -> PolicyError,
    ) -> Result<HttpGrant, PolicyError> {
        let none = HttpLimits::default();
        let limits = HttpLimits {
            request_bytes_max: Bytes::many_or(self.request_bytes_max, none.request_bytes_max),
            response_bytes_max: Bytes::many_or(self.response_bytes_max, none.response_bytes_max),
            header_bytes_max: Bytes::or(self.header_bytes_max, none.header_bytes_max),
            requests_max: Count::or(self.requests_max, none.requests_max),
            live_max: Count::or(self.live_max, none.live_max),
            connect_within: Time::or(self.connect_within, none.connect_within),
            first_byte_within: Time::or(self.first_byte_within, none.first_byte_within),
            between_bytes_within: Time::or(self.between_bytes_within, none.between_bytes_within),
        };
        let place = self.host.span();
        let grant = HttpGrant::new(self.host.into_inner());
        let mut grant = grant.private_addresses(self.private_addresses).limits(limits);
        grant.open().map_err(|error| wrong(place, error.to_string()))?;
        for (header, template) in self.secret_headers {
            let place = header.span();
            let secret = secrets.within(&template).map_err(|why| wrong(place.clone(), why))?;
            grant = grant.secret_header(header.into_inner(), template, secret.clone());
            grant.open().map_err(|error| wrong(place, error.to_string()))?;
        }
        let Some(methods) = self.methods else { return Ok(grant) };
        let place = methods.span();
        let grant = grant.methods(methods.into_inner());
        grant.open().map_err(|error| wrong(place, error.to_string()))?;
        Ok(grant)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::Policy;
    use crate::{Grantee, Grants};

    fn read(text: &str) -> Result<Vec<(Grantee, Grants)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("estop.toml");
        std::fs::write(&path, text).unwrap();
        Policy::read(&path).map(|policy| policy.host.grants).map_err(|error| error.to_string())
    }

    #[test]
    fn each_key_is_what_it_is_in_code() {
        let with = |keys: &str| read(&format!("[[grants]]\nagent = \"a\"\nhosts = [{{ host = \"a.test\"{keys} }}]"));
        let is = |grant: HttpGrant| Ok(vec![(Grantee::everyone().agent("a"), Grants::new().http(grant))]);
        let plain = || HttpGrant::new("a.test");
        assert_eq!(with(""), is(plain()));
        assert_eq!(with(", methods = [\"POST\", \"GET\"]"), is(plain().methods(["POST", "GET"])));
        assert_eq!(with(", private_addresses = true"), is(plain().private_addresses(true)));
        let none = HttpLimits::default;
        let second = Duration::from_secs(1);
        for (key, limits) in [
            ("request_bytes_max = \"1KiB\"", HttpLimits { request_bytes_max: 1024, ..none() }),
            ("response_bytes_max = \"1KiB\"", HttpLimits { response_bytes_max: 1024, ..none() }),
            ("header_bytes_max = \"1KiB\"", HttpLimits { header_bytes_max: 1024, ..none() }),
            ("requests_max = 3", HttpLimits { requests_max: 3, ..none() }),
            ("live_max = 3", HttpLimits { live_max: 3, ..none() }),
            ("connect_within = \"1s\"", HttpLimits { connect_within: second, ..none() }),
            ("first_byte_within = \"1s\"", HttpLimits { first_byte_within: second, ..none() }),
            ("between_bytes_within = \"1s\"", HttpLimits { between_bytes_within: second, ..none() }),
        ] {
            assert_eq!(with(&format!(", {key}")), is(plain().limits(limits)), "{key}");
        }
    }

    /// A secret is in the grant, and its value in no words.
    #[test]
    fn secrets_are_named_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let (file, open) = (folder.path().join("key"), folder.path().join("open"));
        for (path, mode) in [(&file, 0o600), (&open, 0o644)] {
            std::fs::write(path, "s3cr3t\n").unwrap();
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        }
        let with = |path: &std::path::Path, grant: &str| {
            read(&format!("[secrets]\nKEY = {{ file = \"{}\" }}\n[[grants]]\n{grant}", path.display()))
        };
        let secret = || crate::Secret::new("KEY", "s3cr3t");
        let header = "hosts = [{ host = \"a\", secret_headers = { authorization = \"Bearer {KEY}\" } }]";
        let expected = HttpGrant::new("a").secret_header("authorization", "Bearer {KEY}", secret());
        assert_eq!(with(&file, header), Ok(vec![(Grantee::everyone(), Grants::new().http(expected))]));
        let variable = with(&file, "secret_environment = { TOKEN = \"KEY\" }").unwrap();
        assert_eq!(variable, [(Grantee::everyone(), Grants::new().environment("TOKEN", "s3cr3t"))]);
        let program = "programs = [{ path = \"/bin/sh\", secret_environment = { TOKEN = \"KEY\" } }]";
        let expected = crate::ProgramGrant::new("/bin/sh").environment("TOKEN", "s3cr3t");
        assert_eq!(with(&file, program), Ok(vec![(Grantee::everyone(), Grants::new().program(expected))]));
        for granted in [header, program, "secret_environment = { TOKEN = \"KEY\" }"] {
            let granted = with(&file, granted).unwrap();
            assert!(!format!("{granted:?}").contains("s3cr3t"));
        }
        for (config, words) in [
            ("[secrets]\nKEY = { }", ":2:1: a secret comes from"),
            (
                "[secrets]\nKEY = { env = \"ESTOP_NO_SUCH_VARIABLE\" }",
                ":2:1: the variable ESTOP_NO_SUCH_VARIABLE is not set",
            ),
            ("[secrets]\nKEY = { file = \"nowhere\" }", ":2:1: the secret's file"),
            ("[secrets]\nKEY = { colour = 1 }", "colour"),
            ("[[grants]]\nsecret_environment = { A = \"KEY\" }", ":1:1: there is no secret `KEY`"),
            (
                "[[grants]]\nhosts = [{ host = \"a\", secret_headers = { x = \"{KEY}\" } }]",
                ":2:43: `{KEY}` has no place",
            ),
        ] {
            let error = read(config).unwrap_err();
            assert!(error.contains(words), "{config}: {error}");
        }
        let error = with(&open, header).unwrap_err();
        assert!(error.contains("chmod 600") && !error.contains("s3cr3t"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (hosts, place, word) in [
            ("{ host = \"ftp://a\" }", "2:19", "https"),
            ("{ host = \"a/b\" }", "2:19", "is no host"),
            ("{ }", "2:10", "host"),
            ("{ host = \"a\", methods = [] }", "2:34", "no method"),
            ("{ host = \"a\", methods = [\"get\"] }", "2:34", "`GET`"),
            ("{ host = \"a\", methods = \"GET\" }", "2:34", "sequence"),
            ("{ host = \"a\", private_addresses = 1 }", "2:44", "boolean"),
            ("{ host = \"a\", live_max = 0 }", "2:35", "at least 1"),
            ("{ host = \"a\", connect_within = 1 }", "2:41", "a duration with its unit"),
            ("{ host = \"a\", response_bytes_max = \"1 XB\" }", "2:45", "not a size"),
            ("{ host = \"a\", colour = 1 }", "2:24", "colour"),
        ] {
            let error = read(&format!("[[grants]]\nhosts = [{hosts}]")).unwrap_err();
            assert!(error.contains(&format!(":{place}:")) && error.contains(word), "{hosts}: {error}");
        }
    }
}
