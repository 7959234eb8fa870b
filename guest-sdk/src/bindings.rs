//! The contract in `wit/`, as wit-bindgen turns it into Rust, once for every tool.

wit_bindgen::generate!({
    world: "guest",
    path: "wit",
    generate_all,
    pub_export_macro: true,
    export_macro_name: "export_guest",
    default_bindings_module: "estop_tool::__private::bindings",
});
