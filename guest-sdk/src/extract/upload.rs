//! A file in a form.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;

/// A file sent with a form: the type of a field of the struct that [`Form`](crate::Form) reads.
///
/// A field of type `Option<Upload>` is `None` when no file was chosen. A `Vec<Upload>` takes the files of an input with the
/// attribute `multiple`.
#[derive(Clone, PartialEq)]
pub struct Upload {
    /// The file's name according to the browser, without folders. The sender of the form chooses it, so do not use it as the
    /// name of a file on disk.
    pub file_name: String,
    /// The media type according to the browser, such as `image/png`. The browser may be wrong: check the bytes when the
    /// type matters.
    pub content_type: String,
    /// The content of the file.
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
