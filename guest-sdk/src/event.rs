//! Events.

use crate::extract::BodyUse;
use crate::mode::Mode;
use crate::{Context, Error, FromRequest, Request, Result};
use serde::de::DeserializeOwned;

/// Something that was published. Within a transaction, an event leaves with the commit, so whoever gets it finds in
/// the database what its publisher wrote.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(post, "/orders/{id}/paid", atomic)]
/// fn pay(cx: &Context, Path(id): Path<i64>) -> Result<()> {
///     cx.db().execute("update orders set paid = 1 where id = $1", (id,))?;
///     cx.publish("orders.paid", &id)
/// }
///
/// #[subscriber("orders.*")]
/// async fn on_order(event: Event) -> Result<()> {
///     let id: i64 = event.json()?;
///     log::info!("news of an order", topic = event.topic, id = id);
///     Ok(())
/// }
///
/// views![pay, on_order];
/// # fn main() {}
/// ```
///
/// The modules need `publish = ["orders.*"]` and `subscribe = ["orders.*"]`. A subscriber that fails is logged, and
/// its transaction rolled back; it does not get the event again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is about, e.g. `orders.paid`.
    pub topic: String,
    /// What was published.
    pub payload: Vec<u8>,
}

impl Event {
    /// The payload, read as JSON.
    ///
    /// # Errors
    /// When it is none, or not of this shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.payload)
            .map_err(|error| Error::internal(format!("the event on `{}`: {error}", self.topic)))
    }
}

impl FromRequest for Event {
    const BODY: BodyUse = BodyUse::Whole;

    fn from_request<M: Mode>(_: &Context<M>, request: &mut Request) -> Result<Self> {
        Ok(Self {
            topic: std::mem::take(&mut request.path),
            payload: request.take_body(),
        })
    }
}
