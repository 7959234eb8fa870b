//! The contract of a store.

use std::sync::Arc;

use estop::store::conformance;
use estop::store::memory::Memory;

#[tokio::test]
async fn the_memory_store_conforms() {
    conformance::check(|| Arc::new(Memory::new())).await;
}
