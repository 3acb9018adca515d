//! `security-headers`: adds headers that restrict what browsers do with the app's pages.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};

/// Headers for every response. A header that the response has already, from a view, stays as it is.
#[derive(Debug, PartialEq, Eq)]
pub struct SecurityHeaders {
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// Who may show the app's pages in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Nobody.
    Deny,
    /// The app itself.
    SameOrigin,
    /// Anybody.
    Allow,
}

impl Framing {
    /// Each value by its name in the configuration.
    pub const ALL: [(&'static str, Framing); 3] = [
        ("deny", Framing::Deny),
        ("same-origin", Framing::SameOrigin),
        ("allow", Framing::Allow),
    ];
}

/// The options.
#[derive(Debug, Clone)]
pub struct Choices {
    /// Who may show the pages in a frame.
    pub framing: Framing,
    /// What other sites learn about the page that led to them (`referrer-policy`).
    pub referrer_policy: HeaderValue,
    /// What pages may load and run (`content-security-policy`). None: a policy that only restricts framing.
    pub csp: Option<HeaderValue>,
    /// For how many seconds browsers use https only (`strict-transport-security`). 0: no such header.
    pub hsts_max_age_s: u64,
    /// Whether `hsts_max_age_s` applies to all subdomains, too.
    pub hsts_subdomains: bool,
}

impl SecurityHeaders {
    /// Makes the headers.
    pub fn new(choices: Choices) -> SecurityHeaders {
        let fixed = HeaderValue::from_static;
        let mut headers = vec![
            (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
            (header::REFERRER_POLICY, choices.referrer_policy),
            (
                HeaderName::from_static("cross-origin-opener-policy"),
                fixed("same-origin"),
            ),
        ];
        // `x-frame-options` is for older browsers. `frame-ancestors` in the policy says the same to newer ones.
        let (old, ancestors) = match choices.framing {
            Framing::Deny => (Some("DENY"), Some("frame-ancestors 'none'")),
            Framing::SameOrigin => (Some("SAMEORIGIN"), Some("frame-ancestors 'self'")),
            Framing::Allow => (None, None),
        };
        headers.extend(old.map(|old| (header::X_FRAME_OPTIONS, fixed(old))));
        let csp = choices.csp.or_else(|| ancestors.map(fixed));
        headers.extend(csp.map(|csp| (header::CONTENT_SECURITY_POLICY, csp)));
        if choices.hsts_max_age_s > 0 {
            let subdomains = match choices.hsts_subdomains {
                true => "; includeSubDomains",
                false => "",
            };
            let value = format!("max-age={}{subdomains}", choices.hsts_max_age_s);
            let value = HeaderValue::from_str(&value).expect("a number is valid in a header");
            headers.push((header::STRICT_TRANSPORT_SECURITY, value));
        }
        SecurityHeaders { headers }
    }

    pub(super) fn after(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.headers {
            headers.entry(name).or_insert_with(|| value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices() -> Choices {
        Choices {
            framing: Framing::Deny,
            referrer_policy: HeaderValue::from_static("strict-origin-when-cross-origin"),
            csp: None,
            hsts_max_age_s: 0,
            hsts_subdomains: false,
        }
    }

    fn after(choices: Choices, set: &[(HeaderName, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(HeaderName, &'static str)| {
            (name.clone(), HeaderValue::from_static(value))
        };
        let mut headers = set.iter().map(pair).collect();
        SecurityHeaders::new(choices).after(&mut headers);
        headers
    }

    #[test]
    fn every_answer_gets_them() {
        let headers = after(choices(), &[]);
        assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(headers[header::X_FRAME_OPTIONS], "DENY");
        assert_eq!(
            headers[header::CONTENT_SECURITY_POLICY],
            "frame-ancestors 'none'"
        );
        assert_eq!(
            headers[header::REFERRER_POLICY],
            "strict-origin-when-cross-origin"
        );
        assert!(!headers.contains_key(header::STRICT_TRANSPORT_SECURITY));
    }

    #[test]
    fn what_a_view_says_stays() {
        let own = [
            (header::X_FRAME_OPTIONS, "SAMEORIGIN"),
            (header::CONTENT_SECURITY_POLICY, "default-src 'self'"),
        ];
        let headers = after(choices(), &own);
        for (name, value) in own {
            let values: Vec<_> = headers.get_all(name).iter().collect();
            assert_eq!(values, [value]);
        }
    }

    #[test]
    fn choices_are_kept() {
        let headers = after(
            Choices {
                framing: Framing::Allow,
                csp: Some(HeaderValue::from_static("default-src 'self'")),
                hsts_max_age_s: 31_536_000,
                hsts_subdomains: true,
                ..choices()
            },
            &[],
        );
        assert!(!headers.contains_key(header::X_FRAME_OPTIONS));
        assert_eq!(
            headers[header::CONTENT_SECURITY_POLICY],
            "default-src 'self'"
        );
        assert_eq!(
            headers[header::STRICT_TRANSPORT_SECURITY],
            "max-age=31536000; includeSubDomains"
        );
    }
}
