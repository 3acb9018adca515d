//! `amphi token`: makes a token for a place's admin API.

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::routes::print;
use crate::telemetry::stderr;

#[derive(Args)]
pub(super) struct Arguments {
    /// Who gets it: the audit log shows this name.
    name: String,
    /// What it is for: read (status, versions, logs), switch (promote and roll back, and read), deploy (everything).
    #[arg(long, value_name = "SCOPE", default_value = "deploy", value_parser = ["read", "switch", "deploy"])]
    scope: String,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let name = &arguments.name;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if name.is_empty() || !name.chars().all(is_plain) {
        bail!("`{name}` cannot be the name of a token: it has letters, digits, `-` and `_`");
    }
    let mut bytes = [0; 32];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.ok().context("the system gives no random bytes")?;
    let token = format!("amphi_{}", URL_SAFE_NO_PAD.encode(bytes));
    let hash = digest(&SHA256, token.as_bytes());
    let hash: String = (hash.as_ref().iter())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    stderr::say(&format!(
        "For the amphi-host.toml of the place:\n\n[deploy.tokens.{name}]\nsha256 = \"{hash}\"\nscopes = [\"{}\"]\n\nThe token, which is shown only now (the commands take it from the variable AMPHI_TOKEN):",
        arguments.scope
    ));
    print(&format!("{token}\n"))
}
