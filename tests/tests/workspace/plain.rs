//! The same guest with Wasmtime's own files, without estop.

use std::path::Path;

use estop::wasmtime;
use wasmtime::component::{Component, Linker, types::ComponentItem};
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
        // Of the contract there is nothing; the steps do not ask for it.
        for (name, item) in component.component_type().imports(&engine) {
            let ComponentItem::ComponentInstance(instance) = item.ty else { continue };
            if !name.starts_with("estop:") && !name.starts_with("wasi:keyvalue") && !name.starts_with("wasi:logging") {
                continue;
            }
            let mut linked = linker.instance(name).unwrap();
            for (function, item) in instance.exports(&engine) {
                match item.ty {
                    ComponentItem::ComponentFunc(_) => linked
                        .func_new(function, |_, _, _, _| Err(wasmtime::Error::msg("there is no estop here")))
                        .unwrap(),
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

    /// One call with a folder at `/`.
    pub(crate) async fn call(&self, folder: &Path, tool: &str, input: &str) -> String {
        let wasi = WasiCtx::builder().preopened_dir(folder, "/", FsPerms::ReadWrite).unwrap().build();
        let mut store = Store::new(&self.engine, Ctx { wasi, table: ResourceTable::new() });
        let guest = self.pre.instantiate_async(&mut store).await.unwrap();
        guest.estop_tool_tool().call_call(&mut store, tool, input).await.unwrap().unwrap().json
    }
}
