//! `views!` refuses items that are not views.
use amphi_sdk::prelude::*;

#[view(get, "/")]
fn home() {}

fn helper() {}

struct Page;

views![home, helper, Page];

fn main() {}
