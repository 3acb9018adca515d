//! A file in a form.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;

/// A file that was sent with a form, as a field of the struct that [`Form`](crate::Form) reads.
///
/// A field of type `Option<Upload>` is none when no file was chosen, and `Vec<Upload>` has those of an input with
/// `multiple`.
#[derive(Clone, PartialEq)]
pub struct Upload {
    /// What the browser says the file is called: a name, never a path. Whoever sends the form chooses it, so do not
    /// make it the name of a file.
    pub file_name: String,
    /// What the browser says that it is, such as `image/png`. Look at the bytes where it matters.
    pub content_type: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload")
            .field("file_name", &self.file_name)
            .field("content_type", &self.content_type)
            .field("bytes", &self.bytes.len())
            .finish()
    }
}

impl<'de> Deserialize<'de> for Upload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(rename = "Upload")]
        struct Parts {
            file_name: String,
            content_type: String,
            bytes: Bytes,
        }
        let Parts {
            file_name,
            content_type,
            bytes: Bytes(bytes),
        } = Parts::deserialize(deserializer)?;
        Ok(Self {
            file_name,
            content_type,
            bytes,
        })
    }
}

struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Of;

        impl Visitor<'_> for Of {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a file")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }
        }

        deserializer.deserialize_byte_buf(Of)
    }
}
