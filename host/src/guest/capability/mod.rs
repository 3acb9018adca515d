//! The capabilities: one thin adapter for each WIT interface. Most capabilities that wait have two interfaces over one
//! service: a sync face and an async face.
//!
//! A sync face waits on the worker's thread, and the pool counts the worker as waiting (R4). An async face is a future
//! on the loop. Both call the same service, and the request's scope decides what is allowed.
//!
//! [`CAPABILITIES`] lists all capabilities: what a component may import, in which mode, and with which grant.

mod body;
mod body_writer;
mod calls;
mod channels;
pub mod config;
mod context;
mod conversation;
pub mod database;
mod events;
pub mod http;
mod log;
pub mod stdio;
mod timer;
mod wasi;

use wasmtime::component::{HasSelf, Linker, Resource, ResourceTable};

use crate::config::Module;
use crate::contract;
use crate::guest::bindings;
use crate::guest::store::Guest;

/// A capability that guests can import: one interface of `amphi:view`, or two, one for each mode.
pub struct Capability {
    /// The name of the interface. If there are two interfaces, the async one has `-async` after this name.
    pub name: &'static str,
    /// Its interfaces.
    pub faces: Faces,
    /// For a module that lacks the grant: the line of `amphi.toml` that grants the capability. None: nothing is
    /// missing.
    pub missing_grant: fn(&Module) -> Option<&'static str>,
}

/// The interfaces of a capability. Each comes with the function that adds it to a linker.
pub enum Faces {
    /// One interface for both modes, whose functions never wait.
    Shared(Link),
    /// Two interfaces: one with blocking functions, one with async functions.
    PerMode {
        /// For sync components.
        sync: Link,
        /// For async components.
        r#async: Link,
    },
    /// For async components only.
    AsyncOnly(Link),
}

type Link = fn(&mut Linker<Guest>) -> wasmtime::Result<()>;

macro_rules! link {
    ($interface:ident) => {
        |linker| bindings::$interface::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)
    };
}

/// The [`Capability::missing_grant`] of a capability that needs no grant.
fn none(_: &Module) -> Option<&'static str> {
    None
}

/// All capabilities.
pub const CAPABILITIES: &[Capability] = &[
    Capability {
        name: "body",
        faces: Faces::PerMode {
            sync: link!(body),
            r#async: link!(body_async),
        },
        missing_grant: none,
    },
    Capability {
        name: "body-writer",
        faces: Faces::PerMode {
            sync: link!(body_writer),
            r#async: link!(body_writer_async),
        },
        missing_grant: none,
    },
    Capability {
        name: "channels",
        faces: Faces::Shared(link!(channels)),
        missing_grant: |module| {
            let missing = module.channels.is_empty();
            missing.then_some("`channels = [\"room.*\"]`")
        },
    },
    Capability {
        name: "config",
        faces: Faces::Shared(link!(config)),
        missing_grant: none,
    },
    Capability {
        name: "context",
        faces: Faces::Shared(link!(context)),
        missing_grant: none,
    },
    Capability {
        name: "conversation",
        faces: Faces::AsyncOnly(link!(conversation)),
        missing_grant: none,
    },
    Capability {
        name: "database",
        faces: Faces::PerMode {
            sync: link!(database),
            r#async: link!(database_async),
        },
        missing_grant: |module| {
            let missing = module.databases.is_empty();
            missing.then_some("`databases = [\"default\"]`")
        },
    },
    Capability {
        name: "events",
        faces: Faces::Shared(link!(events)),
        missing_grant: |module| {
            let missing = module.publish.is_empty();
            missing.then_some("`publish = [\"orders.*\"]`")
        },
    },
    Capability {
        name: "http",
        faces: Faces::PerMode {
            sync: link!(http),
            r#async: link!(http_async),
        },
        missing_grant: |module| {
            let missing = module.http.is_empty();
            missing.then_some("`http = [\"self\"]` or `http = [\"https://api.example.com\"]`")
        },
    },
    Capability {
        name: "log",
        faces: Faces::Shared(link!(log)),
        missing_grant: none,
    },
    Capability {
        name: "middleware",
        faces: Faces::PerMode {
            sync: link!(middleware),
            r#async: link!(middleware_async),
        },
        missing_grant: none,
    },
    Capability {
        name: "socket",
        faces: Faces::Shared(link!(socket)),
        missing_grant: none,
    },
    Capability {
        name: "subrequest",
        faces: Faces::PerMode {
            sync: link!(subrequest),
            r#async: link!(subrequest_async),
        },
        missing_grant: |module| (!module.subrequests).then_some("`subrequests = true`"),
    },
    Capability {
        name: "timer",
        faces: Faces::AsyncOnly(link!(timer)),
        missing_grant: none,
    },
];

/// The interface that is imported from `amphi:view`: `database-async` for the import `amphi:view/database-async@0.1.0`.
pub fn interface(import: &str) -> Option<&str> {
    let name = import.strip_prefix("amphi:view/")?;
    Some(name.split_once('@').map_or(name, |(name, _)| name))
}

/// The capability that an interface belongs to, and whether the interface's name ends in `-async`. None: the interface
/// has types only, or is unknown.
pub fn capability(interface: &str) -> Option<(&'static Capability, bool)> {
    let name = interface.strip_suffix("-async");
    let is_async = name.is_some();
    let name = name.unwrap_or(interface);
    let known = CAPABILITIES.iter().find(|known| known.name == name)?;
    Some((known, is_async))
}

/// Adds to `linker` everything that sync components may import.
///
/// # Errors
/// When two interfaces have the same name, which would be a mistake in the host.
pub fn link_sync(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)?;
    wasi::bound_waits(linker)?;
    link_types(linker)?;
    CAPABILITIES.iter().try_for_each(|it| match it.faces {
        Faces::Shared(link) | Faces::PerMode { sync: link, .. } => link(linker),
        Faces::AsyncOnly(_) => Ok(()),
    })
}

/// Adds to `linker` everything that async components may import. Without `blocking_wasi`, every blocking function of
/// WASI traps, and the error contains the name of the function.
///
/// # Errors
/// When two interfaces have the same name, which would be a mistake in the host.
pub fn link_async(linker: &mut Linker<Guest>, blocking_wasi: bool) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    if !blocking_wasi {
        wasi::refuse_waits(linker)?;
    }
    link_types(linker)?;
    CAPABILITIES.iter().try_for_each(|it| match it.faces {
        Faces::Shared(link) | Faces::PerMode { r#async: link, .. } | Faces::AsyncOnly(link) => {
            link(linker)
        }
    })
}

/// Adds to `linker` everything that components may import that export `wasi:http/incoming-handler` 0.2. They run on
/// sync workers, as futures: what waits in WASI yields to what drives them, and Amphi's capabilities block.
///
/// # Errors
/// As [`link_sync`].
pub fn link_incoming_handler(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    wasi::link_table(linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    link_types(linker)?;
    CAPABILITIES.iter().try_for_each(|it| match it.faces {
        Faces::Shared(link) | Faces::PerMode { sync: link, .. } => link(linker),
        Faces::AsyncOnly(_) => Ok(()),
    })
}

/// Adds to `linker` everything that components may import that export `wasi:http/handler` 0.3. What blocks in WASI 0.2
/// holds up the component, and not its loop: such components do not know that they share one.
///
/// # Errors
/// As [`link_async`].
pub fn link_handler(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    link_async(linker, true)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    wasmtime_wasi::p3::add_to_linker(linker)?;
    wasmtime_wasi_http::p3::add_to_linker(linker)?;
    http::wasi::response::link(linker)
}

/// Adds to `linker` what middleware of `wasi:http` imports in addition: the rest of its chain.
///
/// # Errors
/// As [`link_sync`].
pub fn link_next_handler(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    calls::wasi::link(linker)
}

/// Puts the resource that a call has created into the guest's table, and returns its handle.
fn handed<T: Send + 'static, E>(
    table: &mut ResourceTable,
    made: Result<T, E>,
) -> wasmtime::Result<Result<Resource<T>, E>> {
    Ok(match made {
        Ok(made) => Ok(table.push(made)?),
        Err(error) => Err(error),
    })
}

/// Adds the interfaces that have types only.
fn link_types(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    contract::types::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    contract::body_types::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    contract::database_types::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    contract::http_types::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::channel_types::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)
}

impl contract::types::Host for Guest {}
impl contract::body_types::Host for Guest {}
impl contract::database_types::Host for Guest {}
impl contract::http_types::Host for Guest {}
impl bindings::channel_types::Host for Guest {}
