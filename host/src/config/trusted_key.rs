//! Keys that signatures of artifacts are checked with.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minisign_verify::PublicKey;

/// A public key of minisign.
#[derive(Debug, Clone)]
pub struct TrustedKey {
    /// The key.
    pub key: PublicKey,
    line: String,
}

impl PartialEq for TrustedKey {
    fn eq(&self, other: &TrustedKey) -> bool {
        self.line == other.line
    }
}

impl Eq for TrustedKey {}

impl TrustedKey {
    /// Reads a public key: the text of a `.pub` file, or its second line.
    ///
    /// # Errors
    /// A sentence, when it is none.
    pub fn parse(text: &str) -> Result<TrustedKey, String> {
        let lines: Vec<&str> = text.trim().lines().collect();
        let line = match lines[..] {
            [line] | [_, line] => line.trim(),
            _ => "",
        };
        let wrong = || {
            "this is not a public key of minisign: write the path of a `.pub` file, or the second line of such a file".to_owned()
        };
        let key = PublicKey::from_base64(line).map_err(|_| wrong())?;
        Ok(TrustedKey {
            key,
            line: line.to_owned(),
        })
    }

    /// The key's number, as minisign shows it.
    pub fn id(&self) -> String {
        key_id(&self.line).unwrap_or_default()
    }
}

/// The number of a key, or of the key of a signature, from its line in Base64. minisign shows it as one of 64 bits.
pub fn key_id(line: &str) -> Option<String> {
    let bytes = STANDARD.decode(line.trim()).ok()?;
    let number = bytes.get(2..10)?;
    let digits = number.iter().rev().map(|byte| format!("{byte:02X}"));
    Some(digits.collect())
}
