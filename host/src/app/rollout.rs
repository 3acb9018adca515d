//! A candidate: a version that is loaded beside the served one, and the clients that get it.

mod comparison;
pub mod shadow;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::App;
use shadow::{Shadow, ShadowOptions};

/// The cookie by which a client stays on its version while a share of the clients gets the candidate.
pub const COOKIE: &str = "amphi_rollout";
/// A share is in hundredths of a percent: so many are all clients.
pub const ALL: u32 = 10_000;
/// Numbers of clients that have none yet: by a step that has no divisor in common with `ALL`, each number comes once
/// before one comes again, and each stretch of them is spread evenly. So the split is as exact as it can be.
const STEP: u64 = 6_181;

/// Who gets the candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// A share of the clients, in hundredths of a percent.
    Share(u32, Sticky),
    /// Requests with this header.
    Header(HeaderName, HeaderValue),
    /// Nobody: the candidate gets copies of requests, and its answers are compared.
    Shadow,
}

/// By what a client is known again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sticky {
    /// A cookie. A client that keeps no cookies gets another number with each request.
    Cookie,
    /// Its address.
    Address,
}

/// A candidate beside the served app.
pub struct Rollout {
    /// The candidate.
    pub app: Arc<App>,
    /// Who gets it.
    pub audience: Audience,
    /// In shadow mode: what is compared, and what the comparisons have found.
    pub shadow: Option<Arc<Shadow>>,
    /// Tells this rollout from others, for connections that last.
    number: u64,
    /// How many clients have got a number.
    clients: AtomicU64,
}

/// Which version a request gets.
#[derive(Debug, Default)]
pub struct Choice {
    /// The rollout whose candidate the request gets; none: the served app.
    pub candidate: Option<u64>,
    /// The cookie that keeps the client on its version, if it has none yet.
    pub cookie: Option<HeaderValue>,
}

impl Rollout {
    /// A rollout of this app.
    pub fn new(app: Arc<App>, audience: Audience) -> Rollout {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let shadow = match &audience {
            Audience::Shadow => Some(Arc::new(Shadow::new(ShadowOptions::default()))),
            Audience::Share(..) | Audience::Header(..) => None,
        };
        Rollout {
            shadow,
            app,
            audience,
            number: NUMBERS.fetch_add(1, Relaxed),
            clients: AtomicU64::new(0),
        }
    }

    /// A rollout of this app in shadow mode, with these options.
    pub fn in_shadow(app: Arc<App>, options: ShadowOptions) -> Rollout {
        Rollout {
            shadow: Some(Arc::new(Shadow::new(options))),
            ..Rollout::new(app, Audience::Shadow)
        }
    }

    /// Chooses for a request. `client`: its address.
    pub fn choose(&self, parts: &Parts, client: IpAddr) -> Choice {
        match &self.audience {
            Audience::Shadow => Choice::default(),
            Audience::Header(name, value) => {
                let has = parts.headers.get_all(name).iter().any(|it| it == value);
                self.chosen(has, None)
            }
            Audience::Share(share, Sticky::Address) => {
                let number = siphasher::sip::SipHasher13::new().hash(client.to_string().as_bytes());
                self.chosen(number % u64::from(ALL) < u64::from(*share), None)
            }
            Audience::Share(share, Sticky::Cookie) => match number(&parts.headers) {
                Some(number) => self.chosen(number < *share, None),
                None => {
                    let turn = self.clients.fetch_add(1, Relaxed);
                    let number = turn.wrapping_mul(STEP) % u64::from(ALL);
                    // A page under the same name with another scheme or path is the same app.
                    let cookie = format!("{COOKIE}={number}; Path=/; HttpOnly; SameSite=Lax");
                    let cookie = HeaderValue::from_str(&cookie).expect("it is ASCII");
                    self.chosen(number < u64::from(*share), Some(cookie))
                }
            },
        }
    }

    fn chosen(&self, is_candidate: bool, cookie: Option<HeaderValue>) -> Choice {
        Choice {
            candidate: is_candidate.then_some(self.number),
            cookie,
        }
    }

    /// Whether a connection that got a candidate got this one.
    pub(super) fn is(&self, number: u64) -> bool {
        self.number == number && self.shadow.is_none()
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Audience::Share(share, sticky) => {
                let (whole, part) = (share / 100, share % 100);
                write!(f, "{whole}")?;
                if part > 0 {
                    write!(f, ".{part:02}")?;
                }
                f.write_str(match sticky {
                    Sticky::Cookie => "%",
                    Sticky::Address => "% by address",
                })
            }
            Audience::Header(name, value) => {
                write!(f, "header:{name}={}", value.to_str().unwrap_or_default())
            }
            Audience::Shadow => f.write_str("shadow"),
        }
    }
}

impl FromStr for Audience {
    type Err = String;

    fn from_str(text: &str) -> Result<Audience, String> {
        let wrong = || {
            format!(
                "`{}` does not say who gets the candidate: write a share of the clients (`5%`, `0.25%`, `5% by address`) or a header (`header:x-canary=1`)",
                text.escape_debug()
            )
        };
        if text == "shadow" {
            return Ok(Audience::Shadow);
        }
        if let Some(header) = text.strip_prefix("header:") {
            let (name, value) = header.split_once('=').ok_or_else(wrong)?;
            let (name, value) = (name.trim().parse(), value.trim().parse::<HeaderValue>());
            return match (name, value) {
                // Others could not be written down again.
                (Ok(name), Ok(value)) if value.to_str().is_ok() => {
                    Ok(Audience::Header(name, value))
                }
                _ => Err(wrong()),
            };
        }
        let (number, sticky) = text.split_once('%').ok_or_else(wrong)?;
        let sticky = match sticky.trim() {
            "" => Sticky::Cookie,
            "by address" => Sticky::Address,
            _ => return Err(wrong()),
        };
        let (whole, part) = number.trim().split_once('.').unwrap_or((number.trim(), ""));
        let is_plain = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !is_plain(whole) || !is_plain(part) || part.len() > 2 {
            return Err(wrong());
        }
        let share: u32 = format!("{whole}{part:0<2}").parse().map_err(|_| wrong())?;
        match share <= ALL {
            true => Ok(Audience::Share(share, sticky)),
            false => Err(wrong()),
        }
    }
}

/// The number of a client, from its cookie. What is no number counts as no cookie.
fn number(headers: &HeaderMap) -> Option<u32> {
    let cookies = headers.get_all(header::COOKIE).iter();
    let mut pairs = cookies
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == COOKIE)?;
    value.parse().ok().filter(|number| *number < ALL)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn audiences_are_read_as_they_are_written() {
        for (text, shown) in [
            ("5%", "5%"),
            ("0.25%", "0.25%"),
            (" 12.5 % by address", "12.50% by address"),
            ("100%", "100%"),
            ("0%", "0%"),
            ("header:X-Canary=1", "header:x-canary=1"),
            ("shadow", "shadow"),
        ] {
            let audience: Audience = text.parse().expect("it is right");
            assert_eq!(audience.to_string(), shown);
            assert_eq!(shown.parse(), Ok(audience));
        }
        for wrong in [
            "",
            "5",
            "%",
            ".%",
            "5.%x",
            "-1%",
            "+5%",
            "1.234%",
            "101%",
            "100.01%",
            "1e1%",
            "5% by",
            "header:",
            "header:a",
            "header: =1",
            "header:a=\u{1}",
            "Shadow",
            "99999999999999999999%",
        ] {
            let parsed: Result<Audience, String> = wrong.parse();
            let sentence = parsed.expect_err(wrong);
            assert!(sentence.contains("does not say who gets"), "{sentence}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_read_again(text in "[0-9.%]{0,8}|.{0,20}|header:.{0,20}") {
            if let Ok(audience) = text.parse::<Audience>() {
                prop_assert_eq!(audience.to_string().parse(), Ok(audience));
            }
        }

        /// Numbers come evenly: of any stretch of new clients, each share is got within a few clients.
        #[test]
        fn each_stretch_of_new_clients_is_split_evenly(first in 0_u64..u64::MAX / STEP - 20_000, share in 0..=ALL) {
            let is_in = |turn: u64| turn.wrapping_mul(STEP) % u64::from(ALL) < u64::from(share);
            let all = (first..first + u64::from(ALL)).filter(|turn| is_in(*turn)).count();
            prop_assert_eq!(all, share as usize);
            let some = (first..first + 1_000).filter(|turn| is_in(*turn)).count() as f64;
            prop_assert!((some - f64::from(share) / 10.0).abs() <= 8.0, "{some} of 1,000 for {share}");
        }
    }
}
