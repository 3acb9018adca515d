//! The plain records of the contract with guests (`guest-sdk/wit/`). They are for the parts of the host that must not
//! import `guest/`, such as `scope/` and `database/`, so they come without the rest of the bindings.
#![allow(missing_docs, clippy::all, reason = "generated code")]

wasmtime::component::bindgen!({
    path: "wit",
    inline: "
        package amphi:host;
        world records {
            import amphi:view/types@0.3.0;
            import amphi:view/body-types@0.3.0;
            import amphi:view/database-types@0.3.0;
            import amphi:view/http-types@0.3.0;
        }
    ",
    world: "amphi:host/records",
    additional_derives: [PartialEq],
    require_store_data_send: true,
});

pub use self::amphi::view::{body_types, database_types, http_types, types};
