//! The same guest with Wasmtime's own files, without estop.

use std::path::Path;

use estop::wasmtime;
use wasmtime::component::{Component, Linker, Val, types::ComponentItem};
use wasmtime::{Config, Engine, Store};
use wasmtime_wasi::{FsPerms, ResourceTable, WasiCtx, WasiCtxView, WasiView};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../guest-sdk/wit",
        inline: "package tests:plain; world plain { export estop:tool/tool@0.1.0; }",
        world: "tests:plain/plain",
        exports: { default: async },
    });
}

use bindings::exports::estop::tool::tool::{Failure, Output};

struct Ctx {
    wasi: WasiCtx,
    table: ResourceTable,
}

impl WasiView for Ctx {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Wasmtime alone, with one component.
pub(crate) struct Plain {
    engine: Engine,
    pre: bindings::PlainPre<Ctx>,
}

impl Plain {
    pub(crate) fn new(wasm: &[u8]) -> Self {
        let engine = Engine::new(&Config::new()).unwrap();
        let component = Component::new(&engine, wasm).unwrap();
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
        // Of the contract there is as much as a tool needs that is never interrupted.
        for (name, item) in component.component_type().imports(&engine) {
            let ComponentItem::ComponentInstance(instance) = item.ty else { continue };
            if !name.starts_with("estop:") && !name.starts_with("wasi:keyvalue") && !name.starts_with("wasi:logging") {
                continue;
            }
            let mut linked = linker.instance(name).unwrap();
            for (function, item) in instance.exports(&engine) {
                match item.ty {
                    ComponentItem::ComponentFunc(_) => {
                        let answer = match function {
                            "interrupted" => Some(Val::Option(None)),
                            "commit" => Some(Val::Result(Ok(None))),
                            _ => None,
                        };
                        let answers = move |results: &mut [Val]| {
                            results.iter_mut().zip(answer.clone()).for_each(|(result, answer)| *result = answer);
                            Ok(())
                        };
                        linked.func_new(function, move |_, _, _, results| answers(results)).unwrap();
                    }
                    ComponentItem::Resource(_) => linked
                        .resource(function, wasmtime::component::ResourceType::host::<()>(), |_, _| Ok(()))
                        .unwrap(),
                    _ => {}
                }
            }
        }
        let pre = bindings::PlainPre::new(linker.instantiate_pre(&component).unwrap()).unwrap();
        Self { engine, pre }
    }

    /// What a call with a folder at `/` answers.
    pub(crate) async fn run(&self, folder: &Path, tool: &str, input: &str) -> Result<Output, Failure> {
        let wasi = WasiCtx::builder().preopened_dir(folder, "/", FsPerms::ReadWrite).unwrap().build();
        let mut store = Store::new(&self.engine, Ctx { wasi, table: ResourceTable::new() });
        let guest = self.pre.instantiate_async(&mut store).await.unwrap();
        guest.estop_tool_tool().call_call(&mut store, tool, input).await.unwrap()
    }
}
