//! What two places say must be the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use estop_tests::guests::root;

fn files(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else {
                let text = std::fs::read_to_string(&path).expect("a text");
                found.insert(path.strip_prefix(folder).expect("inside").to_owned(), text);
            }
        }
    }
    found
}

/// A component built with the SDK fits the host.
#[test]
fn the_wit_of_host_and_sdk_is_the_same() {
    let (host, sdk) = (files(&root().join("host/wit")), files(&root().join("guest-sdk/wit")));
    assert!(!sdk.is_empty());
    assert_eq!(host, sdk, "copy guest-sdk/wit to host/wit");
}

/// Every promise of the design has its row, and every test that the documents name exists.
#[test]
fn the_tests_that_the_promises_name_exist() {
    let read = |name: &str| std::fs::read_to_string(root().join("host/docs").join(name)).expect("a document");
    let promises = read("promises.md");
    for number in 1..=20 {
        assert!(promises.contains(&format!("\n| {number} |")), "promise {number} has no row");
    }
    let mut sources = BTreeMap::new();
    for folder in [
        "tests/tests",
        "tests/faults/tests",
        "host/tests",
        "host/src",
        "supervise/tests",
        "guest-sdk/tests",
        "guest-sdk/src",
    ] {
        for (path, text) in files(&root().join(folder)) {
            if path.extension().is_some_and(|extension| extension == "rs") {
                sources.insert(PathBuf::from(folder).join(path), text);
            }
        }
    }
    for (document, least) in [("promises.md", 30), ("controls.md", 20)] {
        let text = read(document);
        let mut named = 0;
        // A test is named as `file::test`, where the file may be a folder.
        for name in text.split('`').filter(|word| word.contains("::") && is_path(word)) {
            let (file, test) = name.rsplit_once("::").expect("it has these");
            // Types are named in the same way.
            if test.starts_with(char::is_uppercase) || file.starts_with(char::is_uppercase) {
                continue;
            }
            let is_of = |path: &Path| path.iter().any(|part| part == file || *part == *format!("{file}.rs"));
            let there = sources.iter().any(|(path, text)| is_of(path) && text.contains(&format!("fn {test}(")));
            assert!(there, "{document} names `{name}`, which does not exist");
            named += 1;
        }
        assert!(named > least, "{named} tests named in {document}");
    }
}

fn is_path(word: &str) -> bool {
    word.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, ':' | '_'))
}
