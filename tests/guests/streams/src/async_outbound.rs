//! The async views of outbound requests.

use amphi_sdk::prelude::*;

use crate::outbound::{self, Target, told};

#[view(get, "/async/outbound/download")]
pub async fn download(cx: &Context, Query(target): Query<Target>) -> String {
    told(outbound::download(cx, target).await)
}

#[view(get, "/async/outbound/proxy")]
pub async fn proxy(cx: &Context, Query(target): Query<Target>) -> Result<Response> {
    outbound::proxy(cx, target).await
}

#[view(get, "/async/outbound/upload")]
pub async fn upload(cx: &Context, Query(target): Query<Target>) -> Result<String> {
    match outbound::upload(cx, target).await {
        Err(error) if error.http_kind().is_some() => Ok(told(Err(error))),
        done => done,
    }
}

#[view(get, "/async/outbound/hold")]
pub async fn hold(cx: &Context, Query(target): Query<Target>) -> Result<String> {
    outbound::hold(cx, target).await
}

#[view(get, "/async/outbound/abandon")]
pub async fn abandon(cx: &Context, Query(target): Query<Target>) -> Result<String> {
    outbound::abandon(cx, target).await
}

#[view(post, "/async/outbound/pass", body = "stream")]
pub async fn pass(
    cx: &Context,
    Query(target): Query<Target>,
    body: BodyReader,
) -> Result<Response> {
    outbound::pass(cx, target, body).await
}
