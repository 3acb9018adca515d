//! All generated bindings, and nothing else.
//!
//! One invocation owns every import and the shared types; the two export worlds reuse them.
#![allow(missing_docs, clippy::all, reason = "generated code")]

mod imports {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "imports",
        imports: { default: trappable },
        additional_derives: [PartialEq],
        with: {
            "amphi:view/database.rows": crate::capability::database::Rows,
            "amphi:view/database.transaction": crate::capability::database::Begun,
            "amphi:view/database.pinned": crate::capability::database::Pinned,
            "amphi:view/database-async.rows": crate::capability::database::Rows,
            "amphi:view/database-async.transaction": crate::capability::database::Begun,
            "amphi:view/database-async.pinned": crate::capability::database::Pinned,
        },
        require_store_data_send: true,
    });
}

mod sync {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "sync-views",
        with: { "amphi:view": crate::bindings::imports::amphi::view },
        require_store_data_send: true,
    });
}

mod r#async {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "async-views",
        exports: { "describe": async },
        with: { "amphi:view": crate::bindings::imports::amphi::view },
        require_store_data_send: true,
    });
}

pub use r#async::{AsyncViews, AsyncViewsPre};
pub use imports::amphi::view::{
    body, body_async, body_types, config, context, database, database_async, database_types,
    events, http, http_async, http_types, log, middleware, middleware_async, subrequest,
    subrequest_async, timer, types,
};
pub use sync::{SyncViews, SyncViewsPre};
