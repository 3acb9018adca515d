//! Signatures of artifacts, in the format of minisign.
//!
//! minisign is Ed25519 in small text files: a key is one line that can stand in a configuration, keys need no service, and
//! the tool itself can make keys and check signatures. What is signed is the manifest, which names everything else by its
//! digest; so `minisign -V` on the manifest says the same as the host. A signature does not say that an artifact is the
//! newest one: an older artifact that was signed stays signed.
//!
//! Two crates of minisign's author do the work: `minisign` makes keys and signatures, `minisign-verify` reads what others
//! have written (the former panics at a signature of the wrong length).

use std::io::Cursor;

use minisign::{KeyPair, SecretKeyBox};
use minisign_verify::Signature;

use super::limits::{ArtifactError, Result};
use super::manifest::AppManifest;
use crate::config::{Place, TrustedKey, key_id};

/// The number of the key that a signature names.
fn signer(text: &str) -> Option<String> {
    key_id(text.lines().nth(1)?)
}

/// Whose artifacts a host runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Every artifact.
    Anyone,
    /// Those with a signature by one of these keys.
    Keys(Vec<TrustedKey>),
}

impl Trust {
    /// Whose artifacts a place runs.
    pub fn of(place: &Place) -> Trust {
        match &place.deploy.trusted_keys {
            Some(keys) => Trust::Keys(keys.clone()),
            None => Trust::Anyone,
        }
    }

    /// Checks that one of the signatures of an artifact is by a trusted key.
    ///
    /// # Errors
    /// When there is none. The sentence names the keys.
    pub fn check(&self, manifest: &AppManifest, signatures: &[String]) -> Result<()> {
        let Trust::Keys(keys) = self else {
            return Ok(());
        };
        let mut seen = Vec::new();
        for text in signatures {
            let (Ok(signature), Some(by)) = (Signature::decode(text), signer(text)) else {
                seen.push("one that cannot be read".to_owned());
                continue;
            };
            let mut of_this_number = keys.iter().filter(|key| key.id() == by).peekable();
            if of_this_number.peek().is_none() {
                seen.push(format!("one by the key {by}, which is not trusted here"));
                continue;
            }
            let verifies = |key: &TrustedKey| {
                let is_legacy_allowed = false;
                let verified = key
                    .key
                    .verify(&manifest.bytes, &signature, is_legacy_allowed);
                verified.is_ok()
            };
            if of_this_number.any(verifies) {
                return Ok(());
            }
            seen.push(format!("one that names the key {by} and is not by it"));
        }
        let trusted: Vec<String> = keys.iter().map(TrustedKey::id).collect();
        let has = match seen.is_empty() {
            true => "none".to_owned(),
            false => seen.join(", "),
        };
        Err(ArtifactError::refused(format!(
            "the artifact {} has no signature by a key that this place trusts (`trusted_keys` has {}); it has {has}",
            manifest.digest,
            trusted.join(", "),
        )))
    }
}

/// Who has signed, by the signatures' own words: `amphi inspect` shows it. Nothing is checked.
pub fn names(signatures: &[String]) -> Vec<String> {
    let name = |text: &String| {
        let unreadable = || "a signature that cannot be read".to_owned();
        signer(text).unwrap_or_else(unreadable)
    };
    signatures.iter().map(name).collect()
}

/// Signs a manifest. `key`: the text of the file of a secret key. `password`: for a key that is encrypted; if there is
/// none, it is asked for at the terminal.
///
/// # Errors
/// A sentence, when the key cannot be read, or the password is missing or wrong.
pub fn sign(
    manifest: &AppManifest,
    key: &str,
    password: Option<String>,
) -> std::result::Result<String, String> {
    let boxed = || SecretKeyBox::from_string(key).map_err(|error| not_a_key(&error));
    let key = match boxed()?.into_unencrypted_secret_key() {
        Ok(key) => key,
        Err(_) => {
            let key = boxed()?.into_secret_key(password);
            key.map_err(|error| not_a_key(&error))?
        }
    };
    let comment = format!("amphi {}", manifest.digest);
    let data = Cursor::new(&manifest.bytes);
    let signature = minisign::sign(None, &key, data, Some(&comment), Some("amphi"));
    let signature = signature.map_err(|error| format!("signing failed: {error}"))?;
    Ok(signature.into_string())
}

fn not_a_key(error: &minisign::PError) -> String {
    format!("the secret key cannot be used: {error}")
}

/// Makes a pair of keys: the texts of the secret and of the public one. The secret key is not encrypted.
///
/// # Errors
/// A sentence, when the system gives no random numbers.
pub fn generate() -> std::result::Result<(String, String), String> {
    let make = || {
        let pair = KeyPair::generate_unencrypted_keypair()?;
        let public = pair.pk.to_box()?.into_string();
        Ok((pair.sk.to_box(None)?.into_string(), public))
    };
    make().map_err(|error: minisign::PError| format!("no key can be made: {error}"))
}
