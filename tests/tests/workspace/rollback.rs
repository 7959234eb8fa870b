//! What a call has changed is all there, or nothing of it.

use estop::Size;
use estop_tests::clock::ManualClock;
use estop_tests::{end_entry, log};

use super::*;

/// A program that knows nothing of estop, stopped in the middle of its changes.
#[tokio::test]
async fn a_stopped_edit_leaves_the_folder_as_it_was() {
    let place = Place::new();
    let before = place.tree();
    let host = place.host();
    let files = files(&host).await;
    let running = says(&host, &files, "edit_and_spin", 1).await;
    assert_eq!(place.tree(), before, "nothing is there before the commit");
    let outcome = stop(&running).await;
    assert_eq!(place.tree(), before);
    assert!(outcome.discarded.files >= 8, "{:?}", outcome.discarded);
    assert_eq!(outcome.commits.files, 0);
    let log = log(&host).await;
    assert_eq!(end_entry(&log, &outcome)["discarded"], json!(outcome.discarded));
}

/// Not stopped: complete; failed: nothing.
#[tokio::test]
async fn a_completed_edit_is_all_there_and_a_failed_one_is_not() {
    let place = Place::new();
    let before = place.tree();
    let host = place.host();
    let files = files(&host).await;
    let input = |fail: bool| json!({ "path": "", "bytes": 0, "spin": fail });
    let failed = call(&host, &files, "edit_and_fail", input(true)).await;
    assert_eq!(failed.end.status(), "failed", "{:?}", failed.end);
    assert_eq!(place.tree(), before);
    let done = call(&host, &files, "edit_and_fail", input(false)).await;
    completed(&done);
    assert_eq!(place.tree(), edited(&before));
    assert_eq!((done.discarded, done.commits.files > 7), (Size::default(), true), "{:?}", done.commits);
}

/// A commit point: what was before it stays, what came after it does not, and what was open is still open.
#[tokio::test]
async fn a_commit_point_keeps_what_was_before_it() {
    let place = Place::new();
    let before = place.tree();
    let host = place.host();
    let files = files(&host).await;
    let running = says(&host, &files, "edit_commit_edit", 2).await;
    let mut after = edited(&before);
    after.insert("open.txt".into(), format!("644 {:?}", b"before"));
    assert_eq!(place.tree(), after);
    let outcome = stop(&running).await;
    assert_eq!(place.tree(), after);
    assert_eq!(outcome.commits.points, 1);
    assert!(outcome.discarded.files >= 3, "{:?}", outcome.discarded);
}

/// Changed by others since it was read: nothing is applied.
#[tokio::test]
async fn what_others_have_changed_meanwhile_is_a_conflict() {
    type Change = (&'static str, fn(&Path));
    let changes: [Change; 4] = [
        ("a file that was written over", |folder| fs::write(folder.join("kept.txt"), "by someone else").unwrap()),
        ("a name that was not there", |folder| fs::write(folder.join("new.txt"), "by someone else").unwrap()),
        ("what was in a folder", |folder| fs::write(folder.join("tree/other"), "by someone else").unwrap()),
        ("a file that was moved", |folder| fs::rename(folder.join("moved.txt"), folder.join("away")).unwrap()),
    ];
    for (what, change) in changes {
        let (place, clock) = (Place::new(), ManualClock::new());
        let grants = Grants::new().workspace(WorkspaceGrant::new(&place.folder));
        let host = place.builder().clock(clock.clone()).grant(Grantee::everyone(), grants).build().unwrap();
        let files = files(&host).await;
        let running = says(&host, &files, "edit_and_wait", 1).await;
        change(&place.folder);
        let before = place.tree();
        clock.advance(Duration::from_secs(6));
        let outcome = within(running.outcome()).await;
        assert_eq!(outcome.end.status(), "conflict", "{what}: {:?}", outcome.end);
        assert_eq!(place.tree(), before, "{what}");
    }
}

/// Whenever it is stopped, the folder is as its last commit point has left it, and nothing of ours is left there.
#[tokio::test]
async fn stopped_at_any_moment_of_its_commits_it_leaves_the_last_one() {
    let place = Place::new();
    let host = place.host();
    let files = files(&host).await;
    let mut before = 0;
    for number in 0..STOPS {
        let running = says(&host, &files, "count_commits", 1 + number % 3).await;
        // From the moment of the progress on, all over what comes then.
        let until = std::time::Instant::now() + Duration::from_micros(number * 37 % 3000);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        let outcome = stop(&running).await;
        let points = outcome.commits.points;
        for file in 0..5 {
            let found = fs::read_to_string(place.folder.join(format!("count{file}.txt"))).unwrap();
            assert_eq!(found, points.to_string(), "stop {number}: file {file}");
        }
        assert!(!place.folder.join(".estop-workspace").exists(), "stop {number}");
        before += u64::from(outcome.discarded.files > 0);
    }
    assert!(before > STOPS / 10, "only {before} of {STOPS} stops met changes that were not committed");
}

/// "200 random moments".
const STOPS: u64 = 200;

/// Two calls on one folder: whoever commits first wins.
#[tokio::test]
async fn two_calls_on_one_folder_do_not_mix() {
    let place = Place::new();
    let host = place.host();
    let files = files(&host).await;
    let input = |text: &str| json!({ "count": 40, "bytes": 1000, "text": text });
    let both =
        tokio::join!(call(&host, &files, "write_many", input("a")), call(&host, &files, "write_many", input("b")),);
    let done = [both.0.end.status(), both.1.end.status()];
    assert!(
        done.contains(&"completed") && done.iter().all(|status| ["completed", "conflict"].contains(status)),
        "{done:?}"
    );
    let contents: Vec<_> = place
        .tree()
        .into_iter()
        .filter(|(path, _)| path.ends_with(b".txt") && path.starts_with(b"many"))
        .map(|(_, what)| what)
        .collect();
    assert_eq!(contents.len(), 40);
    assert!(contents.iter().all(|what| *what == contents[0]), "of both");
}
