//! Content negotiation (RFC 9110, 12.5): headers like `accept`, which are lists of names with weights.

use http::HeaderMap;
use http::header::{self, AsHeaderName};

/// A weight (`q`) in thousandths. 0 means "not acceptable".
pub type Weight = u16;

/// The names in a header, in lower case, with their weights. Malformed members are left out.
pub fn weighted(headers: &HeaderMap, name: impl AsHeaderName) -> Vec<(String, Weight)> {
    let values = headers.get_all(name).iter();
    let members = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    members.filter_map(member).collect()
}

fn member(text: &str) -> Option<(String, Weight)> {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().filter(|name| !name.is_empty())?;
    let weight = parts.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim())
    });
    let weight = match weight {
        None => 1000,
        Some(text) => weight_of(text)?,
    };
    Some((name.to_ascii_lowercase(), weight))
}

/// Parses a weight: `0` to `1` with up to three decimals.
fn weight_of(text: &str) -> Option<Weight> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = |byte: &u8| byte.is_ascii_digit();
    if !matches!(whole, "0" | "1") || decimals.len() > 3 || !decimals.as_bytes().iter().all(digits)
    {
        return None;
    }
    let thousandths: Weight = format!("{whole}{decimals:0<3}").parse().ok()?;
    (thousandths <= 1000).then_some(thousandths)
}

/// The format of a text that the host itself sends, such as an error page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For programs.
    Json,
    /// For browsers.
    Html,
    /// For clients that ask for neither of the two.
    Text,
}

/// The format that the client's `accept` asks for. Only types that are named count: `*/*` expresses no preference.
pub fn form(headers: &HeaderMap) -> Form {
    let accepted = weighted(headers, header::ACCEPT);
    let best = |is: fn(&str) -> bool| {
        let named = accepted.iter().filter(|(name, _)| is(name));
        named.map(|(_, weight)| *weight).max().unwrap_or(0)
    };
    let html = best(|name| matches!(name, "text/html" | "application/xhtml+xml" | "text/*"));
    let json = best(|name| name == "application/json" || name.ends_with("+json"));
    match (html, json) {
        (0, 0) => Form::Text,
        (html, json) if json > html => Form::Json,
        // Equal weights: somebody wrote this header by hand and wants JSON. Browsers do not name JSON.
        (html, json) if json == html => Form::Json,
        _ => Form::Html,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn accept(value: &str) -> HeaderMap {
        let value = HeaderValue::from_str(value).expect("a header");
        HeaderMap::from_iter([(header::ACCEPT, value)])
    }

    #[test]
    fn clients_get_the_form_they_ask_for() {
        let form = |value| form(&accept(value));
        let firefox = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        assert_eq!(form(firefox), Form::Html);
        assert_eq!(form("*/*"), Form::Text);
        assert_eq!(form("text/plain"), Form::Text);
        assert_eq!(form("application/json"), Form::Json);
        assert_eq!(form("application/problem+json, */*;q=0.1"), Form::Json);
        assert_eq!(form("application/json, text/plain, */*"), Form::Json);
        assert_eq!(form("Text/HTML;q=0.5, application/json;Q=0.4"), Form::Html);
        assert_eq!(form("text/html;q=0, application/json;q=0"), Form::Text);
        assert_eq!(form("text/html, application/vnd.api+json"), Form::Json);
        assert_eq!(form(""), Form::Text);
        assert_eq!(super::form(&HeaderMap::new()), Form::Text);
    }

    #[test]
    fn weights_have_up_to_three_decimals() {
        let weights = |value| weighted(&accept(value), header::ACCEPT);
        let all = weights("a;q=1, b; q=0.5 ,c;level=1;q=0.025,d;q=0,e,f;q=1.000");
        let expected = [1000, 500, 25, 0, 1000, 1000];
        assert_eq!(
            all.iter().map(|(_, weight)| *weight).collect::<Vec<_>>(),
            expected
        );
        assert_eq!(weights("a;q=2,b;q=1.1,c;q=0.1234,d;q=x,e;q=,f;q=-1"), []);
    }

    proptest! {
        #[test]
        fn any_header_can_be_read(value in "[ -~]{0,60}") {
            for (name, weight) in weighted(&accept(&value), header::ACCEPT) {
                prop_assert!(!name.is_empty() && weight <= 1000);
            }
        }
    }
}
