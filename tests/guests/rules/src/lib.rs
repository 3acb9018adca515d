//! Views, middleware and subscribers that do what the tests tell them, step by step.
//!
//! What both modes share is in `steps`; `blocking` and `waiting` differ in `async`, `.await` and what is joined.

use amphi_sdk::views;

mod blocking;
mod steps;
mod waiting;

views![
    blocking::run,
    blocking::run_atomic,
    blocking::read,
    blocking::read_atomic,
    blocking::limited,
    blocking::brief,
    blocking::serializable,
    blocking::repeatable,
    blocking::retried,
    blocking::first,
    blocking::second,
    blocking::third,
    blocking::heard,
    waiting::run,
    waiting::run_atomic,
    waiting::read,
    waiting::read_atomic,
    waiting::limited,
    waiting::brief,
    waiting::serializable,
    waiting::repeatable,
    waiting::retried,
    waiting::first,
    waiting::second,
    waiting::third,
    waiting::heard,
];
