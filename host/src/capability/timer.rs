//! `timer`: waiting without holding the loop.

use std::time::Duration;

use wasmtime::component::{Accessor, HasSelf};

use super::Guest;
use crate::bindings::timer::{Host, HostWithStore};

impl Host for Guest {}

impl HostWithStore<Guest> for HasSelf<Guest> {
    async fn sleep(_: &Accessor<Guest, Self>, ms: u32) -> wasmtime::Result<()> {
        tokio::time::sleep(Duration::from_millis(ms.into())).await;
        Ok(())
    }
}
