//! Secrets: values that are in the environment or in a file of their own, not in `amphi.toml`.

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use ring::rand::{SecureRandom as _, SystemRandom};
use toml::Spanned;

use super::Purpose;
use super::check::Checker;
use super::error::ConfigError;
use super::raw::Secret;

/// The number of random bytes in a secret that the host makes.
const GENERATED_BYTES: usize = 32;

/// The value of a module's secret, if the secret is missing and not needed.
const MADE_UP: &str = "made up, because the secret is not there and nobody needs it";
/// The URL of a database, if it is missing and not needed.
const MADE_UP_URL: &str = "postgres://localhost/made-up";

impl Checker<'_> {
    /// A secret of a module. It is needed if the module's views answer requests.
    pub(super) fn secret(&self, secret: &Spanned<Secret>) -> Result<String, ConfigError> {
        let made_up = (self.purpose != Purpose::Serve).then_some(MADE_UP);
        self.secret_of(secret, secret.get_ref(), made_up)
    }

    /// The URL of a database. It is needed if the database is opened.
    pub(super) fn secret_url<T>(
        &self,
        at: &Spanned<T>,
        secret: &Secret,
    ) -> Result<String, ConfigError> {
        let made_up = (self.purpose == Purpose::Check).then_some(MADE_UP_URL);
        self.secret_of(at, secret, made_up)
    }

    /// The value of a secret. `at`: the secret's place in the configuration, for errors. `made_up`: given if the secret
    /// is not needed; a missing secret then gets this value, and no file is made.
    fn secret_of<T>(
        &self,
        at: &Spanned<T>,
        secret: &Secret,
        made_up: Option<&str>,
    ) -> Result<String, ConfigError> {
        let (path, generate) = match secret {
            Secret {
                env: Some(name),
                file: None,
                generate: false,
            } => {
                let value = std::env::var(name).ok();
                return value.or(made_up.map(str::to_owned)).ok_or_else(|| {
                    self.error(at, format!("the environment variable {name} is not set, or is not UTF-8: set it before starting"))
                });
            }
            Secret {
                env: None,
                file: Some(path),
                generate,
            } => (self.folder.join(path), *generate),
            Secret { generate: true, .. } => {
                return Err(self.error(at, "`generate` makes a file that is missing: write { file = \"path\", generate = true }".into()));
            }
            _ => {
                return Err(self.error(
                    at,
                    "a secret comes from one place: { env = \"NAME\" } or { file = \"path\" }"
                        .into(),
                ));
            }
        };
        self.keep_private("the secret's file", &path);
        if let Some(made_up) = made_up.filter(|_| !path.is_file()) {
            return Ok(made_up.to_owned());
        }
        if generate {
            make_if_missing(&path).map_err(|error| {
                self.error(
                    at,
                    format!(
                        "the secret's file {} cannot be made: {error}",
                        path.display()
                    ),
                )
            })?;
        }
        let text = std::fs::read_to_string(&path).map_err(|error| {
            let way_out = match error.kind() {
                ErrorKind::NotFound => "; with `generate = true` beside `file`, the host makes one",
                _ => "",
            };
            let path = path.display();
            self.error(
                at,
                format!("the secret's file {path} cannot be read: {error}{way_out}"),
            )
        })?;
        warn_if_shared(&path);
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// Logs a warning when other users of the machine can read a secret. That is no error: containers get their secrets
/// like that.
fn warn_if_shared(path: &Path) {
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!(
            file = %path.display(),
            "a secret's file can be used by others than its owner (mode {:o}): `chmod 600` keeps it secret",
            mode & 0o777
        );
    }
}

/// Makes a file with a random text that only the host's user can read. When two hosts start at the same time, both use
/// the text of the first one.
fn make_if_missing(path: &Path) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut bytes = [0; GENERATED_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| std::io::Error::other("the system gives no random numbers"))?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    for byte in bytes {
        write!(file, "{byte:02x}")?;
    }
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => {
            tracing::info!(file = %path.display(), "a secret was missing and has been made: keep its file with the app's data");
            Ok(())
        }
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error),
    }
}
