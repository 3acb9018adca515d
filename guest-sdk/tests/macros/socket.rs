//! Mistakes in sockets.
use amphi_sdk::prelude::*;

#[socket]
fn no_path(_: SocketEvent) {}

#[socket(get, "/chat")]
fn a_method(_: SocketEvent) {}

#[socket(method = "GET", "/chat")]
fn a_method_by_name(_: SocketEvent) {}

#[socket(atomic, "/chat")]
fn path_comes_first(_: SocketEvent) {}

#[socket(7)]
fn no_text(_: SocketEvent) {}

#[socket("chat")]
fn no_slash(_: SocketEvent) {}

#[socket("/chat/{room}/{room}")]
fn twice(_: SocketEvent) {}

#[socket("/chat", body = "stream")]
fn a_body(_: SocketEvent) {}

#[socket("/chat", method = "GET")]
fn a_late_method(_: SocketEvent) {}

#[socket("/chat", rooms = 7)]
fn no_such_option(_: SocketEvent) {}

#[socket("/chat", origins = ["https://a.example/path"])]
fn no_origin(_: SocketEvent) {}

#[view(get, "/chat", origins = "*")]
fn origins_of_a_view() {}

#[socket("/chat")]
fn no_event(_: &Context) -> Result<()> {
    Ok(())
}

#[socket("/chat")]
fn event_is_not_last(_: SocketEvent, _: Headers) {}

#[socket("/chat")]
fn takes_the_body(_: Body, _: SocketEvent) {}

#[socket("/chat")]
async fn no_response(_: SocketEvent) -> u32 {
    7
}

#[view(get, "/chat")]
fn no_socket(_: SocketEvent) {}

#[socket("/game")]
fn sync_conversation(_: &Context, _: Socket) -> Result<()> {
    Ok(())
}

#[socket("/game")]
async fn body_of_a_conversation(_: Body, _: Socket) {}

#[socket("/game")]
async fn answer_of_a_conversation(_: Socket) -> &'static str {
    "over"
}

#[socket("/game")]
async fn both_forms(_: Socket, _: SocketEvent) {}

#[view(get, "/game")]
async fn no_conversation(_: Socket) {}

#[subscriber("chat.*")]
async fn no_socket_either(_: SocketEvent) {}

fn main() {}
