//! What people see in a crisis, word for word.

use crate::hosts::Machine;

/// What differs from run to run stands for itself.
fn plain(text: &str, machine: &Machine) -> String {
    let text = text.replace(machine.folder().to_str().unwrap(), "FOLDER");
    let user = String::from_utf8(std::process::Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    let user = user.trim();
    let word = |word: &str| -> String {
        let digits = word.chars().filter(char::is_ascii_digit).count();
        match word {
            word if word.contains("-01") && word.len() > 25 => {
                let (before, rest) = word.split_once("-01").unwrap();
                format!("{before}-ID{}", rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric()))
            }
            word if word.contains('T') && digits >= 14 => format!("TIME{}", if word.ends_with(',') { "," } else { "" }),
            // Columns and all.
            word if digits > 0 && (word.ends_with("ms") || word.ends_with("us") || word.ends_with('s')) => {
                "TIME".into()
            }
            word if digits >= 3 && digits == word.len() => "NUMBER".into(),
            word if digits >= 3 && word.ends_with(':') => "NUMBER:".into(),
            word if word == user => "USER".into(),
            word => word.to_owned(),
        }
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The crisis screen, `ps`, `halt`, `halts`, a refusal, and what lifting says.
#[test]
fn what_is_seen_in_a_crisis() {
    let machine = Machine::new();
    let screen = machine.estop(&[]).has(0, &[]);
    insta::assert_snapshot!("nothing_runs", screen.stdout);
    assert!(screen.stderr.contains(machine.sockets().to_str().unwrap()), "{}", screen.stderr);

    let run = machine.run("ops");
    insta::assert_snapshot!("crisis", plain(&machine.estop(&[]).has(0, &[]).stdout, &machine));
    let halted = machine.estop(&["halt", "--agent", "ops", "--reason", "it writes nonsense"]).has(0, &[]);
    insta::assert_snapshot!("halted", plain(&times(&halted.stdout), &machine));
    insta::assert_snapshot!("halted_not_covered", halted.stderr);
    assert_eq!(run.ended().code, Some(11));
    insta::assert_snapshot!("refused", plain(&machine.short("ops").has(6, &[]).stderr, &machine));
    let halts = machine.estop(&["halts"]).has(0, &[]).stdout;
    insta::assert_snapshot!("halts", plain(&halts, &machine));
    let halt = halts.split(['(', ';']).find(|word| word.starts_with("halt-")).unwrap();
    let lifted = machine.estop(&["lift", halt, "--reason", "mended"]).has(0, &[]);
    insta::assert_snapshot!("lifted", plain(&lifted.stdout, &machine));
    insta::assert_snapshot!("help_halt", machine.estop(&["halt", "--help"]).stdout);
}

/// Numbers before a unit.
fn times(text: &str) -> String {
    let mut words: Vec<&str> = text.split(' ').collect();
    for at in 1..words.len() {
        if words[at].starts_with("µs") {
            words[at - 1] = "N";
        }
    }
    words.join(" ")
}
