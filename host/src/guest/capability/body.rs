//! `body`: reads a request body that the host keeps.

use wasmtime::component::{Accessor, HasSelf};

use crate::contract::body_types::Error;
use crate::guest::bindings::{body, body_async};
use crate::guest::store::Guest;
use crate::http::body::RequestBody;
use crate::threads::deadline::Ended;
use crate::threads::workers;
use crate::view::Mode;

/// The most bytes that one call of `read` returns.
const PIECE_MAX: u32 = 1 << 20;

impl From<Ended> for Error {
    fn from(_: Ended) -> Error {
        Error::Aborted
    }
}

impl body::Host for Guest {
    fn read(&mut self, offset: u64, max: u32) -> wasmtime::Result<Result<Vec<u8>, Error>> {
        let Some(body) = &self.work().body else {
            return Ok(Ok(Vec::new()));
        };
        if self.work().ended().is_some() {
            return Ok(Err(Error::Aborted));
        }
        let max = max.min(PIECE_MAX);
        let piece = match body {
            RequestBody::Spooled(body) => workers::blocking(|| body.read(offset, max)),
            RequestBody::Arriving(body) => {
                match self.wait(body.read(Mode::Sync, Some(offset), max)) {
                    Ok(piece) => piece.map(Vec::from),
                    Err(why) => return Ok(Err(why.into())),
                }
            }
        };
        Ok(piece.map_err(|error| Error::Io(error.to_string())))
    }
}

impl body_async::Host for Guest {}

impl body_async::HostWithStore<Guest> for HasSelf<Guest> {
    async fn read(
        accessor: &Accessor<Guest, Self>,
        offset: u64,
        max: u32,
    ) -> wasmtime::Result<Result<Vec<u8>, Error>> {
        let max = max.min(PIECE_MAX);
        let (body, held) = accessor.with(|mut store| {
            let work = store.get().work();
            (work.body.clone(), work.scope.hold_call(max.into()))
        });
        let Some(body) = body else {
            return Ok(Ok(Vec::new()));
        };
        let _held = match held {
            Ok(held) => held,
            Err(sentence) => return Ok(Err(Error::Io(sentence))),
        };
        let piece = match body {
            RequestBody::Arriving(body) => body
                .read(Mode::Async, Some(offset), max)
                .await
                .map(Vec::from),
            RequestBody::Spooled(body) => match body.read_memory(offset, max) {
                Some(piece) => Ok(piece),
                None => tokio::task::spawn_blocking(move || body.read(offset, max)).await?,
            },
        };
        Ok(piece.map_err(|error| Error::Io(error.to_string())))
    }
}
