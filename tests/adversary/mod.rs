//! The adversary: random programs against the rules.
//!
//! A program is generated from a seed: requests that run at the same time, each a tree of middleware, views and
//! sub-requests that do random steps ([`program`], [`generate`]). It runs against a real server with small limits ([`run`]),
//! and a model of the rules judges what was observed ([`oracle`]). A program that breaks a rule is reduced while it still
//! breaks that rule ([`shrink`]), and reported with its seed ([`hunt`]). [`siege`] runs all known attacks of guests at the
//! same time, and [`edge`] all known attacks on HTTP servers.

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
