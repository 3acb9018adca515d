//! The adversary: random programs against the rules.
//!
//! A seed makes a program: requests that run at once, each a tree of middleware, views and sub-requests that do random
//! steps ([`program`], [`generate`]). It is run against a real server that has little of everything ([`run`]), and what
//! was seen is judged by a model of the rules ([`oracle`]). A program that breaks a rule is made smaller as long as it
//! still does ([`shrink`]), and reported with its seed ([`hunt`]). [`siege`] does what is known to hurt, all at once,
//! and [`edge`] what hurts servers of HTTP.

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
