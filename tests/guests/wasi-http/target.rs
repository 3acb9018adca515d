//! What a request asks a guest for: the last segment of its path, and its query. Both guests include this file.

/// The path and the query of a request.
pub struct Target(String);

impl Target {
    pub fn new(path_with_query: Option<String>) -> Target {
        Target(path_with_query.unwrap_or_default())
    }

    /// The last segment of the path: wherever the component is mounted, it does the same.
    pub fn name(&self) -> &str {
        let path = self.0.split('?').next().unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default()
    }

    /// A value in the query, as it stands there; empty if there is none.
    pub fn text(&self, key: &str) -> &str {
        let query = self.0.split_once('?').map_or("", |(_, query)| query);
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(name, _)| *name == key)
            .map_or("", |(_, value)| value)
    }

    /// A number in the query, or else `other`.
    pub fn number(&self, key: &str, other: u64) -> u64 {
        self.text(key).parse().unwrap_or(other)
    }
}

/// Scheme, authority and the rest of a URL for HTTP.
pub fn parts(url: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    Some((scheme, authority, if path.is_empty() { "/" } else { path }))
}

/// Bytes in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Computes for ever.
pub fn spin() -> ! {
    loop {
        std::hint::black_box(());
    }
}
