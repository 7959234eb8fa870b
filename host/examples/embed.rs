//! An agent runtime that embeds estop, grants its tools an interface of its own, and stops a call while a host function
//! waits for an answer that never comes.
//!
//! ```text
//! cargo run --example embed
//! ```

use std::path::Path;
use std::time::Duration;

use estop::wasmtime::component::HasSelf;
use estop::{CallCtx, Cause, CompileChild, End, Host, Source};
use serde_json::json;

mod people {
    estop::wasmtime::component::bindgen!({
        path: "../tests/guests/crm/wit",
        world: "tool",
        imports: { default: async | trappable },
        wasmtime_crate: estop::wasmtime,
    });
}

/// The embedder's own host function. It reports what leaves the sandbox, and it ends when the call is to stop.
impl people::example::crm::people::Host for CallCtx {
    async fn ask_human(&mut self, question: String) -> estop::wasmtime::Result<String> {
        println!("{} of agent {} asks: {question}", self.call_id(), self.agent());
        let sent = self.effect("question sent")?;
        sent.performed();
        tokio::select! {
            answer = answer_of_a_human() => Ok(answer),
            // With a grace period there is time to tidy up here. Without one, this future is dropped where it waits.
            cause = self.interrupted() => Err(estop::wasmtime::Error::msg(format!("not asked any more: {cause}"))),
        }
    }
}

/// Nobody is there.
async fn answer_of_a_human() -> String {
    std::future::pending().await
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // First of all: this process may have been started by another one of this program, to compile for it.
    estop::compile_child();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/guests/crm");
    let component = estop::cli::build::build(&folder, false)?;

    let host = Host::builder()
        .interface(|linker| people::example::crm::people::add_to_linker::<_, HasSelf<_>>(linker, |ctx| ctx))
        // A component that takes too long to compile can be stopped as well.
        .compile_with(CompileChild::this_program())
        .build()?;
    let crm = host.load(Source::file(component)).await?;

    let call = host.agent("support-7").call(&crm, "refund", json!({ "order": 7 })).start();
    let outcome = tokio::select! {
        () = user_pressed_stop() => {
            let interruption = call.interrupt(Cause::Cancelled, "user");
            for (call, reached) in interruption.reached() {
                println!("{call}: {reached:?}");
            }
            call.outcome().await
        }
        outcome = call.outcome() => outcome,
    };

    println!("{}", outcome.to_json());
    let End::Stopped(stopped) = &outcome.end else { return Err("the call was not stopped".into()) };
    println!("halted after {:?}, released after {:?}", stopped.halted, stopped.released);
    Ok(())
}

/// Stands for a button.
async fn user_pressed_stop() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}
