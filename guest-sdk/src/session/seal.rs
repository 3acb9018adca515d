//! The text of a session's cookie: the values and the end of the session as JSON, then a signature of that JSON. Each
//! of the two is in base64.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// The values of a session, by name.
pub(crate) type Values = serde_json::Map<String, serde_json::Value>;

/// The signed content.
#[derive(Serialize, Deserialize)]
pub(super) struct Payload {
    /// When the session ends, in seconds since 1970.
    pub(super) end: u64,
    pub(super) values: Values,
}

impl Payload {
    /// The text of the cookie named `name`.
    pub(super) fn seal(&self, name: &str, key: &str) -> crate::Result<String> {
        let mut text = URL_SAFE_NO_PAD.encode(serde_json::to_vec(self)?);
        let signature = signer(name, key, &text).finalize().into_bytes();
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut text);
        Ok(text)
    }

    /// The payload, if it was signed with this key for a cookie of this name.
    pub(super) fn open(text: &str, name: &str, key: &str) -> Option<Self> {
        let (payload, signature) = text.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        // This comparison takes constant time.
        signer(name, key, payload).verify_slice(&signature).ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }
}

/// Computes the signature. It also covers the name of the cookie, so that no other signed cookie of the app is valid as
/// a session.
fn signer(name: &str, key: &str, payload: &str) -> Hmac<Sha256> {
    let mut signer =
        Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("a key may be of any length");
    for part in ["amphi session 1", name, payload] {
        signer.update(part.as_bytes());
        // A zero byte ends each part. No part contains a zero byte, so two different lists of parts never have the same
        // signature.
        signer.update(&[0]);
    }
    signer
}

#[cfg(test)]
mod tests {
    use super::{Payload, Values};

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn sealed() -> String {
        let mut values = Values::new();
        values.insert("user".into(), "ann".into());
        Payload { end: 7, values }
            .seal("session", KEY)
            .expect("texts are JSON")
    }

    #[test]
    fn what_was_sealed_opens() {
        let payload = Payload::open(&sealed(), "session", KEY).expect("it is right");
        assert_eq!(
            (payload.end, payload.values["user"].as_str()),
            (7, Some("ann"))
        );
    }

    #[test]
    fn nothing_else_opens() {
        let good = sealed();
        assert!(Payload::open(&good, "other", KEY).is_none());
        assert!(Payload::open(&good, "session", &KEY.replace('0', "1")).is_none());
        let (payload, signature) = good.split_once('.').expect("it has both");
        for bad in [
            "",
            ".",
            payload,
            &format!("{payload}."),
            &format!("{payload}.{}", &signature[1..]),
            &format!("A{}", &good[1..]),
            &format!("{good}A"),
        ] {
            assert!(Payload::open(bad, "session", KEY).is_none(), "{bad}");
        }
        for index in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[index] ^= 1;
            let changed = String::from_utf8(bytes).expect("it was ASCII");
            // The last character of base64 has unused bits. A decoder that ignored them would accept a change of these
            // bits.
            assert!(
                Payload::open(&changed, "session", KEY).is_none(),
                "{changed}"
            );
        }
    }
}
