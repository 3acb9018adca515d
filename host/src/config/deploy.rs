//! `[deploy]` of `amphi-host.toml`: which artifacts a place takes, and who may change what runs there.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::check::Checker;
use super::error::ConfigError;
use super::raw;
use super::trusted_key::TrustedKey;

/// What the address of a socket in the file system begins with.
const UNIX: &str = "unix:";
/// The most bytes of the name of a fleet.
const FLEET_BYTES: usize = 64;

/// Which artifacts a place takes, and who may change what runs there.
#[derive(Debug, Clone)]
pub struct Deploy {
    /// The only app that the place takes, if it names one.
    pub app: Option<String>,
    /// Whose artifacts the place runs; none: everybody's.
    pub trusted_keys: Option<Vec<TrustedKey>>,
    /// Where the admin API listens, if it does.
    pub listen: Option<AdminAddress>,
    /// Who may use it. Empty: whoever may open its socket, which is one in the file system.
    pub tokens: Vec<Token>,
    /// How many versions are kept beside the active one, to go back to.
    pub keep: usize,
    /// The most bytes of an artifact that is uploaded.
    pub artifact_max_bytes: u64,
    /// What a version has to answer before it becomes active.
    pub health: Option<Health>,
    /// The hosts that this one serves the same with, if there are others.
    pub fleet: Option<FleetConfig>,
}

impl Default for Deploy {
    fn default() -> Deploy {
        let raw = raw::Deploy::default();
        Deploy {
            app: None,
            trusted_keys: None,
            listen: None,
            tokens: Vec::new(),
            keep: raw.keep,
            artifact_max_bytes: raw.artifact_max_mb << 20,
            health: None,
            fleet: None,
        }
    }
}

/// Hosts that serve the same. The type has no `Debug` of its own: URLs may have passwords.
#[derive(Clone)]
pub struct FleetConfig {
    /// Their name. Hosts with the same NATS and the same name are one fleet.
    pub name: String,
    /// The NATS servers.
    pub urls: Vec<String>,
}

impl fmt::Debug for FleetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FleetConfig").field(&self.name).finish()
    }
}

/// An address of the admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// A port.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdminAddress::Tcp(address) => write!(f, "http://{address}"),
            AdminAddress::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// A request that shows whether a version works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// Its path, with its query.
    pub path: String,
    /// The status that it has to have.
    pub status: u16,
}

/// A token of the admin API. The place has its hash only. A token is 32 random bytes, so one round of SHA-256 keeps it
/// as secret as a slow hash would.
#[derive(Debug, Clone)]
pub struct Token {
    /// Who has it: the name that the audit log shows.
    pub name: String,
    /// The SHA-256 of its text.
    pub sha256: [u8; 32],
    /// What it is for.
    pub scopes: Vec<Scope>,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Status, versions, logs.
    Read,
    /// Promoting a candidate, and going back to a version that is kept.
    Switch,
    /// New versions. It includes the others.
    Deploy,
}

impl Scope {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Switch => "switch",
            Scope::Deploy => "deploy",
        }
    }
}

impl Checker<'_> {
    /// `nats`: the servers of `[channels]`.
    pub(super) fn deploy(
        &self,
        whole: &Spanned<raw::Deploy>,
        nats: Option<String>,
    ) -> Result<Deploy, ConfigError> {
        let raw = whole.get_ref();
        let trusted_keys = (raw.trusted_keys.as_ref())
            .map(|keys| {
                let keys = keys.iter();
                keys.map(|key| self.trusted_key(key))
                    .collect::<Result<Vec<_>, _>>()
            })
            .transpose()?;
        let tokens = raw.tokens.iter();
        let tokens = tokens.map(|(name, token)| {
            let (hash, at) = (token.sha256.get_ref(), &token.sha256);
            let sha256 = from_hex(hash).ok_or_else(|| {
                self.error(at, "this is not a SHA-256 of 64 hexadecimal digits: `amphi token NAME` makes a token and prints the line".to_owned())
            })?;
            Ok(Token {
                name: name.clone(),
                sha256,
                scopes: token.scopes.clone(),
            })
        });
        let tokens = tokens.collect::<Result<Vec<_>, ConfigError>>()?;
        let listen = (raw.listen.as_ref())
            .map(|listen| self.admin_address(listen, raw.remote, !tokens.is_empty()))
            .transpose()?;
        if let Some(health) = &raw.health
            && !health.get_ref().starts_with('/')
        {
            return Err(self.error(health, "`health` is a path: it begins with `/`".to_owned()));
        }
        for (key, number, max) in [
            ("keep", raw.keep as u64, 100),
            ("artifact_max_mb", raw.artifact_max_mb, 3_000),
        ] {
            if !(1..=max).contains(&number) {
                let sentence = format!("`{key}` of `[deploy]` is {number}; it can be 1 to {max}");
                return Err(self.error(whole, sentence));
            }
        }
        let fleet = (raw.fleet.as_ref())
            .map(|name| self.fleet(name, nats))
            .transpose()?;
        Ok(Deploy {
            fleet,
            app: raw.app.clone(),
            trusted_keys,
            listen,
            tokens,
            keep: raw.keep,
            artifact_max_bytes: raw.artifact_max_mb << 20,
            health: (raw.health.as_ref()).map(|path| Health {
                path: path.get_ref().clone(),
                status: raw.health_status,
            }),
        })
    }

    fn fleet(
        &self,
        name: &Spanned<String>,
        nats: Option<String>,
    ) -> Result<FleetConfig, ConfigError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let text = name.get_ref();
        if text.is_empty() || text.len() > FLEET_BYTES || !text.bytes().all(plain) {
            return Err(self.error(name, format!(
                "`fleet` is a name of at most {FLEET_BYTES} letters, digits, `-` and `_`, the same on each host"
            )));
        }
        let Some(urls) = nats else {
            return Err(self.error(name, "the hosts of a fleet find each other by NATS: write `nats = \"nats://127.0.0.1:4222\"` in `[channels]`".to_owned()));
        };
        Ok(FleetConfig {
            name: text.clone(),
            urls: urls.split(',').map(|url| url.trim().to_owned()).collect(),
        })
    }

    fn admin_address(
        &self,
        listen: &Spanned<String>,
        remote: bool,
        has_tokens: bool,
    ) -> Result<AdminAddress, ConfigError> {
        if let Some(path) = listen.get_ref().strip_prefix(UNIX) {
            return Ok(AdminAddress::Unix(self.folder.join(path)));
        }
        let address = self.address(listen)?;
        if !has_tokens {
            return Err(self.error(listen, "nobody could use this address: make a token with `amphi token NAME`, and write its lines here; or listen on a socket in the file system, e.g. listen = \"unix:admin.sock\"".to_owned()));
        }
        if !address.ip().is_loopback() && !remote {
            return Err(self.error(listen, format!("{address} can be reached from other machines, and this address speaks no TLS: put a proxy with TLS or a tunnel before an address of this machine, or write `remote = true` if the network is trusted")));
        }
        Ok(AdminAddress::Tcp(address))
    }

    fn trusted_key(&self, text: &Spanned<String>) -> Result<TrustedKey, ConfigError> {
        if let Ok(key) = TrustedKey::parse(text.get_ref()) {
            return Ok(key);
        }
        let path = self.folder.join(text.get_ref());
        let read =
            std::fs::read_to_string(&path).map_err(|error| {
                self.error(text, format!(
                "this is neither a public key of minisign nor a file with one ({}: {error})",
                path.display()
            ))
            })?;
        TrustedKey::parse(&read)
            .map_err(|sentence| self.error(text, format!("{}: {sentence}", path.display())))
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).ok()?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    is_hex.then_some(bytes)
}
