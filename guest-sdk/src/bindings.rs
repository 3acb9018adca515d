//! Everything wit-bindgen generates from `wit/`, and nothing else.
//!
//! `imports` is generated once, without exports. The two export worlds reuse its types and imports by
//! `with:`, and their export macros stay unexpanded until `views!` calls the one of the mode being built:
//! that keeps the other mode's exports and imports out of a component.
#![allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]

wit_bindgen::generate!({
    world: "imports",
    path: "wit",
    generate_all,
    generate_unused_types: true,
    additional_derives: [Clone, PartialEq],
    runtime_path: "::amphi_sdk::__private::wit_bindgen::rt",
    pub_export_macro: true,
});

pub mod sync_views {
    wit_bindgen::generate!({
        world: "sync-views",
        path: "wit",
        with: {
            "amphi:view/types@0.1.0": crate::bindings::amphi::view::types,
            "amphi:view/body-types@0.1.0": crate::bindings::amphi::view::body_types,
            "amphi:view/body@0.1.0": crate::bindings::amphi::view::body,
            "amphi:view/config@0.1.0": crate::bindings::amphi::view::config,
            "amphi:view/context@0.1.0": crate::bindings::amphi::view::context,
            "amphi:view/database-types@0.1.0": crate::bindings::amphi::view::database_types,
            "amphi:view/database@0.1.0": crate::bindings::amphi::view::database,
            "amphi:view/http-types@0.1.0": crate::bindings::amphi::view::http_types,
            "amphi:view/http@0.1.0": crate::bindings::amphi::view::http,
            "amphi:view/events@0.1.0": crate::bindings::amphi::view::events,
            "amphi:view/log@0.1.0": crate::bindings::amphi::view::log,
            "amphi:view/middleware@0.1.0": crate::bindings::amphi::view::middleware,
            "amphi:view/subrequest@0.1.0": crate::bindings::amphi::view::subrequest,
        },
        runtime_path: "::amphi_sdk::__private::wit_bindgen::rt",
        pub_export_macro: true,
        export_macro_name: "export_sync",
        default_bindings_module: "::amphi_sdk::__private::bindings::sync_views",
    });
}

pub mod async_views {
    wit_bindgen::generate!({
        world: "async-views",
        path: "wit",
        with: {
            "amphi:view/types@0.1.0": crate::bindings::amphi::view::types,
            "amphi:view/body-types@0.1.0": crate::bindings::amphi::view::body_types,
            "amphi:view/body-async@0.1.0": crate::bindings::amphi::view::body_async,
            "amphi:view/config@0.1.0": crate::bindings::amphi::view::config,
            "amphi:view/context@0.1.0": crate::bindings::amphi::view::context,
            "amphi:view/database-types@0.1.0": crate::bindings::amphi::view::database_types,
            "amphi:view/database-async@0.1.0": crate::bindings::amphi::view::database_async,
            "amphi:view/http-types@0.1.0": crate::bindings::amphi::view::http_types,
            "amphi:view/http-async@0.1.0": crate::bindings::amphi::view::http_async,
            "amphi:view/events@0.1.0": crate::bindings::amphi::view::events,
            "amphi:view/log@0.1.0": crate::bindings::amphi::view::log,
            "amphi:view/middleware-async@0.1.0": crate::bindings::amphi::view::middleware_async,
            "amphi:view/subrequest-async@0.1.0": crate::bindings::amphi::view::subrequest_async,
            "amphi:view/timer@0.1.0": crate::bindings::amphi::view::timer,
        },
        runtime_path: "::amphi_sdk::__private::wit_bindgen::rt",
        pub_export_macro: true,
        export_macro_name: "export_async",
        default_bindings_module: "::amphi_sdk::__private::bindings::async_views",
    });
}
