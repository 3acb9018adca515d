//! Views whose bodies stream: sync views below `/sync`, and async views of the same names below `/async`.

use amphi_sdk::views;
use serde::Deserialize;

mod async_outbound;
mod async_views;
mod outbound;
mod sync_outbound;
mod sync_views;

#[derive(Deserialize)]
struct Drip {
    count: u32,
    #[serde(default)]
    ms: u64,
}

#[derive(Deserialize)]
struct Size {
    mb: u64,
    declared: Option<u64>,
}

/// How a stream ends.
enum Ending {
    Well,
    Error,
    Panic,
    Spin,
    Sleep,
    Trailers,
    OpenBlock,
}

impl Ending {
    fn of(text: &str) -> Ending {
        match text {
            "error" => Ending::Error,
            "panic" => Ending::Panic,
            "spin" => Ending::Spin,
            "sleep" => Ending::Sleep,
            "trailers" => Ending::Trailers,
            "open-block" => Ending::OpenBlock,
            _ => Ending::Well,
        }
    }
}

views![
    sync_views::lines,
    sync_views::big,
    sync_views::endless,
    sync_views::ends,
    sync_views::csv,
    sync_views::committed,
    sync_views::upload,
    sync_views::around,
    sync_views::from,
    sync_outbound::download,
    sync_outbound::proxy,
    sync_outbound::upload,
    sync_outbound::hold,
    sync_outbound::abandon,
    sync_outbound::pass,
    async_views::lines,
    async_views::big,
    async_views::endless,
    async_views::ends,
    async_views::csv,
    async_views::committed,
    async_views::upload,
    async_views::around,
    async_views::from,
    async_outbound::download,
    async_outbound::proxy,
    async_outbound::upload,
    async_outbound::hold,
    async_outbound::abandon,
    async_outbound::pass,
];
