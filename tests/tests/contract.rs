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

/// Every promise of the design has its row, and every test that a row names exists.
#[test]
fn the_tests_that_the_promises_name_exist() {
    let promises = std::fs::read_to_string(root().join("host/docs/promises.md")).expect("the promises");
    for number in 1..=20 {
        assert!(promises.contains(&format!("\n| {number} |")), "promise {number} has no row");
    }
    let mut sources = String::new();
    for folder in ["tests/tests", "host/tests", "host/src", "guest-sdk/tests", "guest-sdk/src"] {
        for (path, text) in files(&root().join(folder)) {
            if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&text);
            }
        }
    }
    let mut named = 0;
    // A test is named as `file::test`.
    for name in promises.split('`').filter(|word| word.contains("::") && !word.contains(' ')) {
        let test = name.rsplit("::").next().expect("a name");
        assert!(sources.contains(&format!("fn {test}(")), "promises.md names `{name}`, which does not exist");
        named += 1;
    }
    assert!(named > 30, "{named} tests named");
}
