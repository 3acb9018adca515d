//! Sessions: a few values in a signed cookie. The signature keeps everyone but the app from changing them.

mod seal;

pub(crate) use seal::Values;

use crate::extract::Cookies;
use crate::mode::Mode;
use crate::{Context, Error, FromRequest, Request, Response, Result};
use cookie::{Cookie, SameSite};
use seal::Payload;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

/// Minimum length of a signing key: a shorter one can be guessed.
const KEY_MIN_CHARACTERS: usize = 32;
const DAYS_DEFAULT: u32 = 14;
/// Browsers limit the lifetime of a cookie to 400 days.
const DAYS_MAX: u32 = 400;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Limit for the values of a session, written as JSON. Browsers limit a cookie, including its name, to 4096 bytes.
/// Base64 and the signature take more than a quarter of these bytes.
const VALUES_MAX_BYTES: usize = 2900;

/// Values that belong to one browser and are kept from one request to the next: an extractor for views and middleware
/// of both modes.
///
/// The response carries the changes to the browser in a cookie. When the view fails (an error, or a status of 500 or
/// above), the changes of the session are discarded, like the changes of the view's transaction.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(get, "/visits")]
/// fn visits(session: Session) -> Result<String> {
///     let visits: u32 = session.get("visits").unwrap_or(0);
///     session.set("visits", &(visits + 1))?;
///     Ok(format!("{visits} before"))
/// }
///
/// #[view(post, "/leave")]
/// async fn leave(session: Session, _: Protected) -> Redirect {
///     session.clear();
///     Redirect::see_other("/visits")
/// }
/// # use amphi_sdk::testing::{App, get, post};
/// # let app = App::new();
/// # let first = app.call::<visits>(get("/visits"));
/// # assert_eq!(first.session::<u32>("visits"), Some(1));
/// # assert_eq!(app.call::<visits>(get("/visits").session("visits", &4)).text(), "4 before");
/// # let left = app.call::<leave>(post("/leave").session("visits", &4).csrf());
/// # assert_eq!((left.status().as_u16(), left.session::<u32>("visits")), (303, None));
/// ```
///
/// The values are in a cookie. Its signature (HMAC-SHA256) prevents changes, but the values are not encrypted: the user
/// of the browser can read them. There is room for a user's id, a language, a message for the next page. Put data that
/// is larger, or that must be revocable immediately, into a table, and the key of its row into the session. When
/// someone signs in or out, call [`clear`](Self::clear) first: it removes all values and the CSRF token of the previous
/// user.
///
/// Middleware and the view both read the cookie that came with the request, and the response has one cookie with the
/// changes of both. So a value that middleware sets in the session is not visible to the view before the next request.
/// To pass a value to the view within this request, use [`Context::set`]. A response that sets the cookie is made
/// `cache-control: private`, because a cache in front of the server must not give the session of one browser to
/// another. The response of a view that takes the session is also made private, unless the view sets `cache-control`. A
/// sub-request does not get the cookies of its caller.
///
/// | setting or secret of the module | default | |
/// |---|---|---|
/// | `session_key` | — | The signing key, at least 32 characters: `secrets = { session_key = { file = "session.key", generate = true } }`. Modules with the same key share their sessions |
/// | `session_key_previous` | none | The old key, after a change of `session_key`. Cookies signed with the old key stay valid, and are signed again with `session_key` |
/// | `session_days` | 14 | Lifetime of the cookie in days. The cookie is renewed when half of its lifetime is over. So a session that is not used any more ends after at least half, and at most all, of this time |
/// | `session_name` | `session` | The name of the cookie |
/// | `session_secure` | `true`, but `false` under `amphi up` | Whether browsers send the cookie over HTTPS only. Without TLS in front of `amphi serve`, sessions work only when this is `false` |
#[derive(Clone)]
pub struct Session(Rc<RefCell<State>>);

struct State {
    settings: Settings,
    values: Values,
    /// The changes that this call has made to the values, in order.
    changes: Vec<Change>,
    /// Whether the browser's cookie should be renewed: half of its lifetime is over, or it was signed with the previous
    /// key.
    outdated: bool,
    /// Whether the request has a cookie with the name of the session's cookie, valid or not.
    has_cookie: bool,
}

enum Change {
    Clear,
    Remove(String),
    Set(String, serde_json::Value),
    /// Sets the value only if it is missing. In middleware, the rest of the chain may have set the value already, and
    /// the page that the rest made contains that value.
    SetIfMissing(String, serde_json::Value),
}

impl Change {
    fn apply(self, values: &mut Values) {
        match self {
            Change::Clear => values.clear(),
            Change::Remove(name) => {
                values.remove(&name);
            }
            Change::Set(name, value) => {
                values.insert(name, value);
            }
            Change::SetIfMissing(name, value) => {
                values.entry(name).or_insert(value);
            }
        }
    }
}

impl Session {
    /// The value of this name. `None` when there is none, or when it is not a `T`, e.g. because an older version of the
    /// app set it.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        T::deserialize(self.0.borrow().values.get(name)?).ok()
    }

    /// Sets a value.
    ///
    /// # Errors
    ///
    /// When the values no longer fit into a cookie.
    pub fn set<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<()> {
        self.change(name, serde_json::to_value(value)?, Change::Set)
    }

    /// Sets a value. If middleware calls this, and the rest of the chain sets a value of the same name, the value of
    /// the rest is kept instead.
    pub(crate) fn set_if_missing(&self, name: &str, value: String) -> Result<()> {
        self.change(name, value.into(), Change::SetIfMissing)
    }

    fn change(
        &self,
        name: &str,
        value: serde_json::Value,
        change: fn(String, serde_json::Value) -> Change,
    ) -> Result<()> {
        let mut state = self.0.borrow_mut();
        if state.values.get(name) == Some(&value) {
            return Ok(());
        }
        let before = state.values.insert(name.into(), value.clone());
        let size = serde_json::to_vec(&state.values)?.len();
        if size > VALUES_MAX_BYTES {
            match before {
                Some(before) => state.values.insert(name.into(), before),
                None => state.values.remove(name),
            };
            return Err(Error::internal(format!(
                "session value `{name}`: the session would have {size} bytes of JSON, and its cookie has room for \
                 {VALUES_MAX_BYTES}; keep it in a table, and its key in the session"
            )));
        }
        state.changes.push(change(name.into(), value));
        Ok(())
    }

    /// Removes a value.
    pub fn remove(&self, name: &str) {
        let mut state = self.0.borrow_mut();
        if state.values.remove(name).is_some() {
            state.changes.push(Change::Remove(name.into()));
        }
    }

    /// Removes all values and the CSRF token. Values set after this belong to a new session.
    pub fn clear(&self) {
        let mut state = self.0.borrow_mut();
        state.values.clear();
        state.changes.push(Change::Clear);
    }

    /// Whether [`set_if_missing`](Self::set_if_missing) set this value in this call. If so, it did not come with the
    /// request.
    pub(crate) fn was_missing(&self, name: &str) -> bool {
        let is_it = |change: &Change| matches!(change, Change::SetIfMissing(set, _) if set == name);
        self.0.borrow().changes.iter().any(is_it)
    }

    /// Whether the cookie may have been lost because the browser does not send it over plain HTTP: the request has no
    /// session cookie, and the setting `session_secure` is on.
    pub(crate) fn may_be_lost(&self) -> bool {
        let state = self.0.borrow();
        !state.has_cookie && state.settings.secure
    }

    /// The session in this call of a guest function. All extractors of the call share it.
    pub(crate) fn of<M: Mode>(cx: &Context<M>, request: &Request) -> Result<Self> {
        if let Some(session) = cx.session.get() {
            return Ok(session.clone());
        }
        let session = Self(Rc::new(RefCell::new(State::read(cx, request)?)));
        cx.session.set(session, write)
    }
}

impl FromRequest for Session {
    fn from_request<M: Mode>(cx: &Context<M>, request: &mut Request) -> Result<Self> {
        Self::of(cx, request)
    }

    fn check_settings(setting: crate::extract::Settings<'_>) -> Result<()> {
        Settings::read(setting).map(drop)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.borrow();
        f.debug_tuple("Session")
            .field(&state.values.keys().collect::<Vec<_>>())
            .finish()
    }
}

impl State {
    fn read<M: Mode>(cx: &Context<M>, request: &Request) -> Result<Self> {
        let settings = Settings::read(|name| cx.config(name))?;
        let cookies = Cookies::of(&request.headers);
        // A request may have several cookies of this name, set for other paths or by other apps. Take the first one
        // whose signature is valid.
        let named = |(name, _): &(&str, &str)| *name == settings.name;
        let texts: Vec<&str> = (cookies.iter().filter(named))
            .map(|(_, text)| text)
            .collect();
        let opened = texts.iter().find_map(|text| settings.open(text));
        let mut state = Self {
            values: Values::new(),
            changes: Vec::new(),
            outdated: false,
            has_cookie: !texts.is_empty(),
            settings,
        };
        if let Some((payload, with_previous)) = opened {
            let left = payload.end.saturating_sub(now());
            state.outdated = with_previous || left < state.settings.lifetime().as_secs() / 2;
            state.values = payload.values;
        }
        Ok(state)
    }
}

/// Adds the session's cookie to the response, if the cookie has to change. Also sets `vary` and, if missing,
/// `cache-control`.
fn write(session: &Session, response: &mut Response) -> Result<()> {
    let mut state = session.0.borrow_mut();
    let State {
        settings, values, ..
    } = &*state;
    add_vary(response);
    if response.headers.get("cache-control").is_none() {
        response.headers.append("cache-control", "private");
    }
    // In middleware, the rest of the chain may have set the session's cookie already. Then this call's changes are
    // applied to the values in that cookie.
    let within = settings.set_in(response);
    if state.changes.is_empty() && (within.is_some() || !state.outdated) {
        return Ok(());
    }
    let mut values = within.unwrap_or_else(|| values.clone());
    for change in std::mem::take(&mut state.changes) {
        change.apply(&mut values);
    }
    let State {
        settings,
        has_cookie,
        ..
    } = &*state;
    let had_another = settings.take_from(response);
    if values.is_empty() && !has_cookie && !had_another {
        return Ok(());
    }
    let cookie = settings.cookie(values)?;
    response.headers.append("set-cookie", cookie.to_string());
    make_private(response);
    Ok(())
}

/// Adds `private` to `cache-control`, and removes what allows shared caches. A response with a session's cookie is for
/// one browser: if a cache gave it to other browsers, they would share the session and its CSRF token.
fn make_private(response: &mut Response) {
    let said: Vec<String> = (response.headers.get_all("cache-control"))
        .flat_map(|value| value.split(','))
        .map(|directive| directive.trim().to_owned())
        .collect();
    let named = |directive: &str, names: &[&str]| {
        let name = directive.split('=').next().unwrap_or_default();
        names.iter().any(|known| name.eq_ignore_ascii_case(known))
    };
    let mut kept: Vec<&str> = (said.iter().map(String::as_str))
        .filter(|directive| !directive.is_empty() && !named(directive, &["public", "s-maxage"]))
        .collect();
    // `private="set-cookie"` makes only that header private, not the whole response.
    let is_private =
        |directive: &&str| !directive.contains('=') && named(directive, &["private", "no-store"]);
    if !kept.iter().any(is_private) {
        kept.push("private");
    }
    let kept = kept.join(", ");
    response.headers.set("cache-control", kept);
}

/// Tells caches that the response depends on the cookies of the request, so that they do not give it to other browsers.
fn add_vary(response: &mut Response) {
    let known = response
        .headers
        .get_all("vary")
        .flat_map(|value| value.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case("cookie"));
    if !known {
        response.headers.append("vary", "cookie");
    }
}

/// The settings of sessions.
pub(crate) struct Settings {
    key: String,
    key_previous: Option<String>,
    name: String,
    days: u32,
    secure: bool,
}

impl Settings {
    pub(crate) fn read(config: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let key = config("session_key").ok_or_else(|| {
            Error::internal(
                "sessions need the secret `session_key`: add `secrets = { session_key = { file = \"session.key\", \
                 generate = true } }` to the module's table in amphi.toml",
            )
        })?;
        let key_previous = config("session_key_previous");
        for (name, key) in [
            ("session_key", Some(&key)),
            ("session_key_previous", key_previous.as_ref()),
        ] {
            let length = key.map_or(KEY_MIN_CHARACTERS, |key| key.chars().count());
            if length < KEY_MIN_CHARACTERS {
                return Err(Error::internal(format!(
                    "the secret `{name}` has {length} characters, and needs at least {KEY_MIN_CHARACTERS} that nobody \
                     can guess: `openssl rand -hex 32` makes some"
                )));
            }
        }
        Ok(Self {
            key,
            key_previous,
            name: config("session_name").unwrap_or_else(|| "session".into()),
            days: match config("session_days") {
                None => DAYS_DEFAULT,
                Some(text) => number_of_days(&text)?,
            },
            secure: match config("session_secure") {
                None => config("amphi.development").is_none(),
                Some(text) => text.parse().map_err(|_| {
                    Error::internal(format!(
                        "the setting `session_secure` is `{text}`: write true or false"
                    ))
                })?,
            },
        })
    }

    fn lifetime(&self) -> Duration {
        DAY * self.days
    }

    /// The content of a cookie with a valid signature, and whether the previous key signed it.
    fn open(&self, text: &str) -> Option<(Payload, bool)> {
        let with = |key: &str| Payload::open(text, &self.name, key);
        let opened = match with(&self.key) {
            Some(payload) => (payload, false),
            None => (with(self.key_previous.as_ref()?)?, true),
        };
        (opened.0.end > now()).then_some(opened)
    }

    /// The values in the session's cookie that the response sets; empty when that cookie ends the session. `None` when
    /// the response does not set the session's cookie.
    pub(crate) fn set_in(&self, response: &Response) -> Option<Values> {
        let cookie = (response.headers.get_all("set-cookie"))
            .filter_map(|text| Cookie::parse(text).ok())
            .filter(|cookie| cookie.name() == self.name)
            .last()?;
        let opened = self.open(cookie.value());
        Some(opened.map_or_else(Values::new, |(payload, _)| payload.values))
    }

    /// Removes the session's cookie from the response. Returns whether there was one.
    fn take_from(&self, response: &mut Response) -> bool {
        response.headers.remove_if(|name, value| {
            name == "set-cookie"
                && Cookie::parse(value).is_ok_and(|cookie| cookie.name() == self.name)
        })
    }

    /// The cookie for these values. If there are no values, the cookie ends the session.
    pub(crate) fn cookie(&self, values: Values) -> Result<Cookie<'static>> {
        let lifetime = match values.is_empty() {
            true => Duration::ZERO,
            false => self.lifetime(),
        };
        let value = match values.is_empty() {
            true => String::new(),
            false => Payload {
                end: now() + lifetime.as_secs(),
                values,
            }
            .seal(&self.name, &self.key)?,
        };
        let seconds = i64::try_from(lifetime.as_secs()).expect("400 days are a small number");
        Ok(Cookie::build((self.name.clone(), value))
            .path("/")
            .http_only(true)
            .same_site(SameSite::Lax)
            .secure(self.secure)
            .max_age(cookie::time::Duration::seconds(seconds))
            .build())
    }
}

fn number_of_days(text: &str) -> Result<u32> {
    match text.parse() {
        Ok(days @ 1..=DAYS_MAX) => Ok(days),
        _ => Err(Error::internal(format!(
            "the setting `session_days` is `{text}`: write a number from 1 to {DAYS_MAX}"
        ))),
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// The part of a context that holds the session of the call, and the function that writes the session into the
/// response. It stays empty when the call uses no session. Only [`Session::of`] refers to that function, so a component
/// that uses no sessions does not contain their code.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place(Rc<RefCell<Option<(Session, Write)>>>);

type Write = fn(&Session, &mut Response) -> Result<()>;

impl Place {
    fn get(&self) -> Option<Session> {
        self.0.borrow().as_ref().map(|(session, _)| session.clone())
    }

    fn set(&self, session: Session, write: Write) -> Result<Session> {
        self.0.replace(Some((session.clone(), write)));
        Ok(session)
    }

    /// Checks that a conversation has not changed the session, since its response has gone out before.
    pub(crate) fn assert_unchanged(&self) -> Result<()> {
        match self.0.borrow().as_ref() {
            Some((session, _)) if !session.0.borrow().changes.is_empty() => Err(Error::internal(
                "a conversation cannot change the session: the response that carries it has gone out with the handshake",
            )),
            _ => Ok(()),
        }
    }

    /// Writes the session's changes into the response of a call that has succeeded.
    pub(crate) fn write(&self, response: &mut Response) -> Result<()> {
        match self.0.borrow().as_ref() {
            Some((session, write)) if !response.status.is_server_error() => {
                write(session, response)
            }
            _ => Ok(()),
        }
    }
}
