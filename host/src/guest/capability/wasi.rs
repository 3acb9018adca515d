//! WASI 0.2 for sync and async guests: clocks, random numbers, standard output to the log, granted folders. There are
//! no sockets, no environment and no arguments.
//!
//! In a sync guest, a call that waits ends with the request at the latest. In an async guest, such a call is refused
//! (unless the module has `blocking_wasi = true`), because it would hold up everything else that the view has in
//! flight.

mod files;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tracing::Level;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::filesystem::{WasiFilesystemCtxView, WasiFilesystemView as _};
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::io::{error as errors, poll as waits, streams};
use wasmtime_wasi::p2::bindings::sync::filesystem::types as blocking_files;
use wasmtime_wasi::p2::bindings::sync::io::poll as blocking_waits;
use wasmtime_wasi::p2::bindings::sync::io::streams as blocking_streams;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::WasiHttpCtx;

use crate::guest::held::Held;
use crate::guest::stop::Stop;
use crate::guest::store::{Guest, OutboundHttp, RANDOM_BYTES_MAX, Wasi, no_table, table};
use crate::threads::workers;

/// The version of WASI that wasmtime-wasi links. With another version, the definitions here would not replace those of
/// wasmtime-wasi.
const VERSION: &str = "0.2.12";

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        if self.used_wasi().ctx.is_none() {
            self.wasi().ctx = Some(self.new_wasi());
        }
        let Wasi { ctx, table, .. } = self.wasi();
        let ctx = ctx.as_mut().expect("it was just built");
        WasiCtxView { ctx, table }
    }
}

impl Guest {
    /// WASI of the guest, which is built when it is first used.
    pub(super) fn wasi(&mut self) -> &mut Wasi {
        if self.wasi.is_none() {
            let scope = &self.work().scope;
            // `headers_max_bytes` counts headers as this limit does not, and is checked when a head is complete.
            let mut http = WasiHttpCtx::new();
            http.set_field_size_limit(scope.limits.headers_max_bytes as usize);
            self.wasi = Some(Wasi {
                ctx: None,
                table: table(),
                http,
                http_held: Held::default(),
                no_table: no_table(),
                outbound: OutboundHttp {
                    shared: Arc::clone(&self.shared),
                    scope: Some(Arc::clone(scope)),
                    takes_body_at_once: false,
                },
            });
        }
        self.wasi.as_mut().expect("it was just built")
    }

    /// As [`Guest::wasi`], for a call that may belong to a file.
    fn used_wasi(&mut self) -> &mut Wasi {
        if self.writes_files {
            // The call may change a file, which no roll-back undoes: the request must not run again.
            self.work().scope.files.store(true, Relaxed);
        }
        self.wasi()
    }

    /// Sets whether the body of the next response that the component makes is taken as soon as it is written.
    pub(in crate::guest) fn takes_body_at_once(&mut self, takes: bool) {
        self.wasi().outbound.takes_body_at_once = takes;
    }

    fn new_wasi(&self) -> WasiCtx {
        let mut wasi = WasiCtx::builder();
        wasi.stdout(self.output.stream(Level::INFO))
            .stderr(self.output.stream(Level::WARN));
        wasi.max_random_size(RANDOM_BYTES_MAX);
        // A plain component is a future, also on a worker: its blocking work on files goes to other threads.
        wasi.allow_blocking_current_thread(self.blocks);
        for dir in &self.shared.grants.directories {
            let permissions = if dir.write {
                FsPerms::ReadWrite
            } else {
                FsPerms::ReadOnly
            };
            if let Err(error) = wasi.preopened_dir(&dir.host, &dir.guest, permissions) {
                let (view, folder) = (&self.work().view, dir.host.display());
                tracing::error!(%view, %folder, %error, "a granted folder cannot be opened: the view does not see it");
            }
        }
        wasi.build()
    }
}

/// A sync guest whose waits end at the request's deadline at the latest and count as waiting in the worker pool.
struct Bounded<'a>(&'a mut Guest);

impl HasData for Bounded<'static> {
    type Data<'a> = Bounded<'a>;
}

impl Bounded<'_> {
    fn table(&mut self) -> &mut ResourceTable {
        self.0.ctx().table
    }

    fn wait<T>(
        &mut self,
        wait: impl AsyncFnOnce(&mut ResourceTable) -> wasmtime::Result<T>,
    ) -> wasmtime::Result<T> {
        let mut table = std::mem::take(self.table());
        let done = self.0.wait(wait(&mut table));
        *self.table() = table;
        done.map_err(|why| wasmtime::Error::from(Stop::from(why)))?
    }

    /// Runs work on files, which may wait for a disk. It counts as waiting, not as CPU time.
    fn in_files<T>(&mut self, work: impl FnOnce(&mut WasiFilesystemCtxView<'_>) -> T) -> T {
        let cpu = Arc::clone(&self.0.work().cpu);
        let mut files = self.0.filesystem();
        cpu.pause(|| workers::blocking(|| work(&mut files)))
    }

    /// Runs work on streams. A stream may belong to a file, so the work counts as waiting, not as CPU time.
    fn in_streams<T>(&mut self, work: impl FnOnce(&mut ResourceTable) -> T) -> T {
        let cpu = Arc::clone(&self.0.work().cpu);
        let table = self.table();
        cpu.pause(|| workers::blocking(|| work(table)))
    }
}

impl blocking_waits::Host for Bounded<'_> {
    fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        self.wait(async |table| waits::Host::poll(table, pollables).await)
    }
}

impl blocking_waits::HostPollable for Bounded<'_> {
    fn ready(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<bool> {
        self.wait(async |table| waits::HostPollable::ready(table, pollable).await)
    }

    fn block(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        self.wait(async |table| waits::HostPollable::block(table, pollable).await)
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        waits::HostPollable::drop(self.table(), pollable)
    }
}

/// The table of WASI's resources, which is all that `wasi:io` needs.
struct Table;

impl HasData for Table {
    type Data<'a> = &'a mut ResourceTable;
}

/// Replaces `wasi:io`, which wasmtime-wasi links to all of WASI: a component of `wasi:http` that answers through a stream
/// uses nothing else, so that the rest need not be built.
pub(super) fn link_table(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    errors::add_to_linker::<Guest, Table>(linker, |guest| &mut guest.used_wasi().table)?;
    waits::add_to_linker::<Guest, Table>(linker, |guest| &mut guest.used_wasi().table)?;
    streams::add_to_linker::<Guest, Table>(linker, |guest| &mut guest.used_wasi().table)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Replaces the waits of `wasi:io/poll` by waits that end with the request, and the functions on files and streams by
/// functions that the worker pool counts as waiting.
pub(super) fn bound_waits(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    blocking_waits::add_to_linker::<Guest, Bounded<'static>>(linker, |guest| Bounded(guest))?;
    blocking_files::add_to_linker::<Guest, Bounded<'static>>(linker, |guest| Bounded(guest))?;
    blocking_streams::add_to_linker::<Guest, Bounded<'static>>(linker, |guest| Bounded(guest))?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Replaces every blocking function of WASI by one that traps. The error contains the name of the function.
pub(super) fn refuse_waits(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    for (interface, functions) in BLOCKING {
        let interface = format!("{interface}@{VERSION}");
        let mut instance = linker.instance(&interface)?;
        for function in *functions {
            let name = format!("{interface}.{function}");
            instance.func_new(function, move |_, _, _, _| {
                Err(Stop::SynchronousOnlyOperation(name.clone()).into())
            })?;
        }
    }
    linker.allow_shadowing(false);
    Ok(())
}

/// The functions of WASI that can block: they wait for time, for data, or for a disk.
const BLOCKING: &[(&str, &[&str])] = &[
    ("wasi:io/poll", &["poll", "[method]pollable.block"]),
    (
        "wasi:filesystem/types",
        &[
            "[method]descriptor.advise",
            "[method]descriptor.create-directory-at",
            "[method]descriptor.link-at",
            "[method]descriptor.metadata-hash",
            "[method]descriptor.metadata-hash-at",
            "[method]descriptor.open-at",
            "[method]descriptor.read",
            "[method]descriptor.read-directory",
            "[method]descriptor.readlink-at",
            "[method]descriptor.remove-directory-at",
            "[method]descriptor.rename-at",
            "[method]descriptor.set-size",
            "[method]descriptor.set-times",
            "[method]descriptor.set-times-at",
            "[method]descriptor.stat",
            "[method]descriptor.stat-at",
            "[method]descriptor.symlink-at",
            "[method]descriptor.sync",
            "[method]descriptor.sync-data",
            "[method]descriptor.unlink-file-at",
            "[method]descriptor.write",
            "[method]directory-entry-stream.read-directory-entry",
        ],
    ),
];
