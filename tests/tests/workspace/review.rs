//! Whoever has to agree to changes sees all of them, before anything is changed; and holds up no stop (row 20).

use std::sync::Mutex;

use estop::{Changes, Shown};
use estop_tests::counter::Counter;

use super::*;

fn edit(host: &Host, files: &Component) -> estop::CallBuilder {
    host.agent("tester").call(files, "edit_and_fail", json!({ "path": "", "bytes": 0, "spin": false }))
}

#[tokio::test]
async fn whoever_agrees_has_seen_everything() {
    let place = Place::new();
    let before = place.tree();
    let host = place.host();
    let files = files(&host).await;
    let seen: Arc<Mutex<Option<(Changes, Tree)>>> = Arc::default();
    let (see, folder) = (Arc::clone(&seen), place.folder.clone());
    let review = move |changes| {
        *see.lock().unwrap() = Some((changes, tree(&folder)));
        async { true }
    };
    let outcome = ended(|| edit(&host, &files).review(review.clone())).await;
    completed(&outcome);
    assert_eq!(place.tree(), edited(&before));
    let (changes, then) = seen.lock().unwrap().take().unwrap();
    assert_eq!(then, before, "it was asked after the fact");
    let file = |text: &str| Some(Shown::File(text.into()));
    let expected = [
        ("appended.txt", None, file("first"), file("first and more")),
        ("folder", None, None, Some(Shown::Directory)),
        ("folder/moved.txt", Some("moved.txt"), None, file("moved")),
        ("kept.txt", None, file("as it was"), file("changed")),
        ("moved.txt", None, file("moved"), None),
        ("new.txt", None, None, file("new")),
        ("removed.txt", None, file("removed"), None),
        // With everything in it.
        ("tree", None, Some(Shown::Directory), None),
    ];
    let found: Vec<_> = changes
        .files
        .iter()
        .map(|change| {
            let from = change.from.as_ref().map(|path| path.to_str().unwrap());
            (change.path.to_str().unwrap(), from, change.before.clone(), change.after.clone())
        })
        .collect();
    assert_eq!(found, expected);
    assert!(!changes.more);
}

#[tokio::test]
async fn what_is_not_agreed_to_does_not_happen() {
    let place = Place::new();
    let before = place.tree();
    let host = place.host();
    let files = files(&host).await;
    let declined = within(edit(&host, &files).review(|_| async { false }).start().outcome()).await;
    let panicked =
        within(edit(&host, &files).review(|_| async { panic!("as it was told to") }).start().outcome()).await;
    for outcome in [declined, panicked] {
        assert!(matches!(&outcome.end, End::Failed(failure) if failure.code == "declined"), "{:?}", outcome.end);
        assert!(outcome.discarded.files > 7, "{:?}", outcome.discarded);
        assert_eq!(place.tree(), before);
    }
}

/// What was read is looked at again.
#[tokio::test]
async fn what_has_changed_while_somebody_thought_about_it_is_a_conflict() {
    let place = Place::new();
    let host = place.host();
    let files = files(&host).await;
    let kept = place.folder.join("kept.txt");
    let review = move |_| {
        fs::write(&kept, "by someone else").unwrap();
        async { true }
    };
    let outcome = ended(|| edit(&host, &files).review(review.clone())).await;
    assert_eq!(outcome.end.status(), "conflict", "{:?}", outcome.end);
    assert!(!place.folder.join("new.txt").exists());
}

/// Row 20; and thinking is not billed.
#[tokio::test]
async fn a_review_that_never_ends_is_stopped() {
    let (place, clock, asked) = (Place::new(), estop_tests::clock::ManualClock::new(), Counter::new());
    let before = place.tree();
    let grants = Grants::new().workspace(WorkspaceGrant::new(&place.folder));
    let host = place.builder().clock(clock.clone()).grant(Grantee::everyone(), grants).build().unwrap();
    let files = files(&host).await;
    let count = asked.clone();
    let review = move |_| {
        count.add();
        std::future::pending()
    };
    let other = || host.agent("tester").call(&files, "edit_and_spin", json!({})).deadline(Duration::from_secs(10));
    let other = saying(other, 1).await;
    let call = edit(&host, &files).deadline(Duration::from_secs(10)).review(review).start();
    within(asked.reached(1)).await;
    clock.advance(Duration::from_secs(3600));
    // By now deadlines have been looked at.
    let late = within(other.outcome()).await;
    assert!(matches!(&late.end, End::Stopped(stopped) if stopped.cause == Cause::Deadline), "{:?}", late.end);
    let outcome = stop(&call).await;
    let End::Stopped(stopped) = &outcome.end else { panic!("{:?}", outcome.end) };
    assert_eq!(stopped.cause, Cause::Operator, "its deadline ran on");
    assert_eq!(place.tree(), before);
}
