//! All bindings that `bindgen!` generates for guests, and nothing else.
//!
//! The world `imports` generates every import once; the two worlds of exports reuse its types. The plain records of the
//! contract are generated in `contract.rs`.
#![allow(missing_docs, clippy::all, reason = "generated code")]

mod imports {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "imports",
        imports: { default: trappable },
        additional_derives: [PartialEq],
        with: {
            "amphi:view/types": crate::contract::types,
            "amphi:view/body-types": crate::contract::body_types,
            "amphi:view/database-types": crate::contract::database_types,
            "amphi:view/http-types": crate::contract::http_types,
            "amphi:view/database.rows": crate::guest::capability::database::session::Rows,
            "amphi:view/database.transaction": crate::guest::capability::database::session::TransactionHandle,
            "amphi:view/database.pinned": crate::guest::capability::database::session::Pinned,
            "amphi:view/database-async.rows": crate::guest::capability::database::session::Rows,
            "amphi:view/database-async.transaction": crate::guest::capability::database::session::TransactionHandle,
            "amphi:view/database-async.pinned": crate::guest::capability::database::session::Pinned,
            "amphi:view/http.response-stream": crate::guest::capability::http::streaming::ResponseStream,
            "amphi:view/http.upload": crate::guest::capability::http::streaming::Upload,
            "amphi:view/http-async.response-stream": crate::guest::capability::http::streaming::ResponseStream,
            "amphi:view/http-async.upload": crate::guest::capability::http::streaming::Upload,
        },
        require_store_data_send: true,
    });
}

mod sync {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "sync-views",
        with: { "amphi:view": crate::guest::bindings::imports::amphi::view },
        require_store_data_send: true,
    });
}

mod r#async {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "async-views",
        exports: { "describe": async },
        with: { "amphi:view": crate::guest::bindings::imports::amphi::view },
        require_store_data_send: true,
    });
}

pub use r#async::{AsyncViews, AsyncViewsPre};
pub use imports::amphi::view::{
    body, body_async, body_writer, body_writer_async, channel_types, channels, config, context,
    conversation, database, database_async, events, http, http_async, log, middleware,
    middleware_async, socket, subrequest, subrequest_async, timer,
};
pub use sync::{SyncViews, SyncViewsPre};
