//! The durable store by itself: the contract that every store keeps, and what it owes to those that open it later.

use std::cell::Cell;
use std::sync::Arc;

use estop::Home;
use estop::store::sqlite::Sqlite;
use estop::store::{Store, conformance, memory::Memory};

#[tokio::test]
async fn both_stores_keep_the_contract() {
    conformance::check(|| Arc::new(Memory::new())).await;
    let folder = tempfile::tempdir().expect("a folder");
    let count = Cell::new(0);
    conformance::check(|| {
        count.set(count.get() + 1);
        let home = Home::open(folder.path().join(count.get().to_string())).expect("a home");
        Arc::new(Sqlite::open(&home).expect("a store")) as Arc<dyn Store>
    })
    .await;
}
