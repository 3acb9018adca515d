//! The sync views of outbound requests.

use amphi_sdk::prelude::*;

use crate::outbound::{self, Target, told};

#[view(get, "/sync/outbound/download")]
pub fn download(cx: &Context, Query(target): Query<Target>) -> String {
    told(outbound::download(cx, target))
}

#[view(get, "/sync/outbound/proxy")]
pub fn proxy(cx: &Context, Query(target): Query<Target>) -> Result<Response> {
    outbound::proxy(cx, target)
}

#[view(get, "/sync/outbound/upload")]
pub fn upload(cx: &Context, Query(target): Query<Target>) -> Result<String> {
    match outbound::upload(cx, target) {
        Err(error) if error.http_kind().is_some() => Ok(told(Err(error))),
        done => done,
    }
}

#[view(get, "/sync/outbound/hold")]
pub fn hold(cx: &Context, Query(target): Query<Target>) -> Result<String> {
    outbound::hold(cx, target)
}

#[view(get, "/sync/outbound/abandon")]
pub fn abandon(cx: &Context, Query(target): Query<Target>) -> Result<String> {
    outbound::abandon(cx, target)
}

#[view(post, "/sync/outbound/pass", body = "stream")]
pub fn pass(cx: &Context, Query(target): Query<Target>, body: BodyReader) -> Result<Response> {
    outbound::pass(cx, target, body)
}
