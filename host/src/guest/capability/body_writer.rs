//! `body-writer`: writes the body of the response while the client receives it.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use wasmtime::component::{Accessor, HasSelf};

use crate::contract::body_types::Error;
use crate::guest::bindings::{body_writer, body_writer_async};
use crate::guest::store::{Guest, Work};
use crate::http::message::{HeadSize, check_trailers, header_bytes};
use crate::http::stream::{BodyWriter, NotWritten};
use crate::telemetry::error::shown;

impl From<NotWritten> for Error {
    fn from(why: NotWritten) -> Error {
        match why {
            NotWritten::Gone => Error::Aborted,
            NotWritten::TooLong(sentence) | NotWritten::Undeclared(sentence) => Error::Io(sentence),
            NotWritten::Finished => nothing_to_write(),
        }
    }
}

fn nothing_to_write() -> Error {
    Error::Io(
        "there is no body to write: a view writes its body from the function of its stream"
            .to_owned(),
    )
}

impl Work {
    fn writer(&self) -> Result<Arc<BodyWriter>, Error> {
        self.writer.clone().ok_or_else(nothing_to_write)
    }

    fn set_trailers(&self, trailers: &[(String, String)]) -> Result<(), Error> {
        let writer = self.writer()?;
        let size = HeadSize {
            headers: trailers.len(),
            bytes: header_bytes(trailers),
        };
        let checked = size.check("response", self.scope.limits.head_max());
        checked.map_err(Error::Io)?;
        let mut map = HeaderMap::with_capacity(trailers.len());
        for (name, value) in trailers {
            let invalid = |what: &str| Error::Io(format!("the trailer `{}` {what}", shown(name)));
            let key = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| invalid("has a name that is not valid"))?;
            let value = HeaderValue::from_str(value)
                .map_err(|_| invalid("has a value that is not valid"))?;
            map.append(key, value);
        }
        check_trailers(&map, self.scope.limits.head_max()).map_err(Error::Io)?;
        writer.set_trailers(map);
        Ok(())
    }
}

impl body_writer::Host for Guest {
    fn write(&mut self, data: Vec<u8>) -> wasmtime::Result<Result<(), Error>> {
        let writer = match self.work().writer() {
            Ok(writer) => writer,
            Err(error) => return Ok(Err(error)),
        };
        Ok(match self.wait(writer.write(data.into())) {
            Ok(written) => written.map_err(Error::from),
            Err(why) => Err(why.into()),
        })
    }

    fn set_trailers(
        &mut self,
        trailers: Vec<(String, String)>,
    ) -> wasmtime::Result<Result<(), Error>> {
        Ok(self.work().set_trailers(&trailers))
    }
}

impl body_writer_async::Host for Guest {
    fn set_trailers(
        &mut self,
        trailers: Vec<(String, String)>,
    ) -> wasmtime::Result<Result<(), Error>> {
        Ok(self.work().set_trailers(&trailers))
    }
}

impl body_writer_async::HostWithStore<Guest> for HasSelf<Guest> {
    async fn write(
        accessor: &Accessor<Guest, Self>,
        data: Vec<u8>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let (writer, held) = accessor.with(|mut store| {
            let work = store.get().work();
            (work.writer(), work.scope.hold_call(data.len() as u64))
        });
        let (writer, _held) = match (writer, held) {
            (Ok(writer), Ok(held)) => (writer, held),
            (Err(error), _) => return Ok(Err(error)),
            (_, Err(sentence)) => return Ok(Err(Error::Io(sentence))),
        };
        Ok(writer.write(data.into()).await.map_err(Error::from))
    }
}
