//! The adversary: random programs against the rules.
//!
//! A seed gives a program ([`program`], [`generate`]): requests that run at the same time, each a tree of middleware,
//! views and sub-requests that do random steps. The program runs against a real server with little capacity ([`run`]).
//! A model of the rules judges what was seen ([`oracle`]). A program that breaks a rule is made smaller as long as it
//! still fails ([`shrink`]), and is reported with its seed ([`hunt`]).
//!
//! Two more modules run known attacks instead of random programs, all attacks at the same time: [`siege`] attacks by
//! guests and clients, and [`edge`] attacks on how the host handles HTTP.

mod checks;
pub mod edge;
pub mod generate;
pub mod hunt;
mod levels;
pub mod oracle;
pub mod program;
pub mod run;
pub mod show;
pub mod shrink;
pub mod siege;

#[cfg(test)]
mod tests;
