//! The adversary: random programs against the rules.
//!
//! A seed gives a program ([`program`], [`generate`]): requests that run at once, each a tree of middleware, views and
//! sub-requests that do random steps. The program runs against a real server with little capacity ([`run`]). A model of the rules
//! judges what was seen ([`oracle`]). A program that breaks a rule is made smaller as long as it still fails ([`shrink`]), and
//! reported with its seed ([`hunt`]). [`siege`] runs known attacks by guests and clients all at once, and [`edge`] attacks on
//! HTTP.

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
