//! `timer`: lets async guests sleep. A sleep is a future on the event loop.

use std::time::Duration;

use wasmtime::component::{Accessor, HasSelf};

use crate::guest::bindings::timer::{Host, HostWithStore};
use crate::guest::store::Guest;

impl Host for Guest {}

impl HostWithStore<Guest> for HasSelf<Guest> {
    async fn sleep(accessor: &Accessor<Guest, Self>, ms: u32) -> wasmtime::Result<()> {
        let held = accessor.with(|mut store| store.get().work().scope.hold_call(0));
        let _held = held.map_err(wasmtime::Error::msg)?;
        tokio::time::sleep(Duration::from_millis(ms.into())).await;
        Ok(())
    }
}
