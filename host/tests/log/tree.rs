//! An interrupt as a tree: what was stopped by it, and what was not.

use estop::{Call, Cause, Interrupt, Scope};
use estop_tests::{load, within};

use crate::place::Place;
use serde_json::json;

async fn spinning(host: &estop::Host, runaway: &estop::Component, agent: &str) -> Call {
    let call = host.agent(agent).call(runaway, "write_then_spin", json!({"keys": 2, "value_bytes": 10})).start();
    within(call.progress().wait_for(Option::is_some)).await.unwrap();
    call
}

/// `log show --tree` has each interrupt, in order, with the calls that it stopped and how far they had got.
#[tokio::test]
async fn an_interrupt_is_shown_with_what_it_stopped() {
    let place = Place::new();
    let host = estop_tests::small().store(place.store()).build().unwrap();
    let runaway = load(&host, "runaway").await;
    let mut stopped = Vec::new();
    for _ in 0..3 {
        stopped.push(spinning(&host, &runaway, "support-7").await);
    }
    let other = spinning(&host, &runaway, "billing").await;
    let interrupt = Interrupt::new(Cause::Operator, "alice").reason("it mails\neverybody");
    let first = host.interrupt(Scope::Agent("support-7".into()), interrupt);
    within(first.released()).await;
    let _ = other.interrupt(Cause::Cancelled, "bob");
    within(other.outcome()).await;
    host.entries(0, 1).await.unwrap();

    // While the host is alive, by another process.
    let text = place.estop(&["log", "show", "--tree"]).has(0, &[]).stdout;
    let roots: Vec<usize> =
        text.lines().enumerate().filter(|(_, line)| line.contains(" interrupt interrupt-")).map(|(at, _)| at).collect();
    assert_eq!(roots, [0, 4], "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].contains(r#"operator by alice, it mails     everybody: {"agent":"support-7"} reached 3 calls"#),
        "{text}"
    );
    assert!(lines[4].contains("cancelled by bob") && lines[4].contains("reached 1 calls"), "{text}");
    let below = |call: &Call, lines: &[&str], agent: &str, by: &str| {
        let begins = format!("  └ {} was ", call.id());
        let line = lines.iter().find(|line| line.starts_with(&begins)).unwrap_or_else(|| panic!("{begins}: {text}"));
        let told =
            [&format!(": {agent}/write_then_spin stopped ({by}"), "nothing committed, 2 writes (", "halted after"];
        assert!(told.iter().all(|word| line.contains(*word)), "{line}");
    };
    stopped.iter().for_each(|call| below(call, &lines[1..4], "support-7", "operator by alice"));
    below(&other, &lines[5..], "billing", "cancelled by bob");
    assert_eq!(lines.len(), 6);

    let filtered = |filter: &[&str]| place.estop(&[&["log", "show", "--tree"], filter].concat()).has(0, &[]).stdout;
    assert_eq!(filtered(&["--cause", "cancelled"]), lines[4..].join("\n") + "\n");
    assert_eq!(filtered(&["-n", "1"]), lines[4..].join("\n") + "\n");
    assert_eq!(filtered(&["--agent", "support-7"]), lines[..4].join("\n") + "\n");
    assert_eq!(filtered(&["--call", &stopped[1].id().to_string()]), lines[..4].join("\n") + "\n");
    assert_eq!(filtered(&["--actor", "nobody"]), "");
    // The same for one that is named.
    let id = lines[0].split_whitespace().find(|word| word.starts_with("interrupt-")).unwrap();
    assert_eq!(place.estop(&["show", id]).has(0, &[]).stdout, lines[..4].join("\n") + "\n");
    within(host.shutdown()).await;
    place.estop(&["log", "verify"]).has(0, &[]);
}
