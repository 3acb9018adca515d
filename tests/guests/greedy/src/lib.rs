//! Views that want more of the host than they may have, each as a sync view below `/sync` and as an async one below
//! `/async`. What they ask for is in `deeds`.

use amphi_sdk::views;

mod blocking;
mod deeds;
mod waiting;

views![
    blocking::ask,
    blocking::hold,
    blocking::fetch,
    blocking::heard,
    waiting::ask,
    waiting::hold,
    waiting::fetch,
    waiting::heard,
    waiting::sleep,
];
