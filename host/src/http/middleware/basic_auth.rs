//! `basic-auth`: requires a name and a password, which the browser asks the user for (RFC 7617).
//!
//! Checking a password takes long on purpose. Checks run on other threads than the event loops, a bounded number at a
//! time. Requests wait for a check in a bounded queue that is fair to client addresses (`queue.rs`). Credentials that
//! were right are remembered for a while, as a keyed digest only. A request with remembered credentials does not wait
//! in the queue.
//!
//! The time until a password is refused does not depend on the name. Hashes may differ in cost, so a wrong password is
//! checked once against a hash of each cost, whether the name is known or not.

mod queue;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use argon2::Argon2;
use argon2::password_hash::{PasswordVerifier as _, phc::PasswordHash};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use ring::hmac;

use super::request_head::Refused;
use crate::telemetry::error::Failure;
use crate::telemetry::metrics::{GaugeGuard, METRICS};
use queue::{Asker, FairQueue};

/// The users, and the state of the checks.
pub struct BasicAuth {
    users: Arc<Users>,
    challenge: HeaderValue,
    limits: Limits,
    checks: FairQueue,
    names: RandomState,
    remembered: Mutex<Remembered>,
    key: hmac::Key,
}

/// The bytes of a password that bcrypt reads. Of a longer password, bcrypt compares only the beginning.
const BCRYPT_BYTES_MAX: usize = 72;

/// The users by name, and one hash of each cost that occurs.
#[derive(PartialEq, Eq)]
struct Users {
    by_name: BTreeMap<String, Password>,
    costs: BTreeMap<String, Password>,
}

impl Users {
    fn new(by_name: BTreeMap<String, Password>) -> Users {
        let costs = by_name.values().map(|hash| (hash.cost(), hash.clone()));
        Users {
            costs: costs.collect(),
            by_name,
        }
    }

    /// Whether `password` is the password of the user `name`. A refusal takes the same time for every name. Blocks the
    /// thread.
    fn check(&self, name: &str, password: &str) -> bool {
        let known = self.by_name.get(name);
        if known.is_some_and(|hash| hash.fits(password)) {
            return true;
        }
        self.others(known).for_each(|hash| {
            std::hint::black_box(hash.fits(password));
        });
        false
    }

    /// One hash of each cost that occurs, except for the cost of `known`.
    fn others(&self, known: Option<&Password>) -> impl Iterator<Item = &Password> {
        let done = known.map(Password::cost);
        let costs = self.costs.iter();
        let others = costs.filter(move |(cost, _)| done.as_ref() != Some(*cost));
        others.map(|(_, hash)| hash)
    }

    /// Whether the password is longer than bcrypt reads, and some user has a hash of bcrypt.
    fn is_too_long(&self, password: &str) -> bool {
        let bcrypt = |hash: &Password| matches!(hash, Password::Bcrypt(_));
        password.len() > BCRYPT_BYTES_MAX && self.costs.values().any(bcrypt)
    }
}

/// Limits on checking passwords.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The most passwords that are checked at the same time.
    pub checks_max: usize,
    /// The most requests that wait for a check.
    pub queue_max: usize,
    /// How long a request waits for a check at most.
    pub queue_timeout: Duration,
    /// The most credentials that are remembered. With 0, every request is checked.
    pub remember_max: usize,
    /// How long credentials are remembered.
    pub remember: Duration,
}

/// The hash of a password.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// As `htpasswd -B` writes it: `$2y$…`.
    Bcrypt(String),
    /// `$argon2id$…`.
    Argon2(String),
}

impl Password {
    /// Parses a hash.
    ///
    /// # Errors
    /// A sentence, when the hash is malformed or of another kind.
    pub fn parse(hash: &str) -> Result<Password, String> {
        if hash.starts_with("$2") && bcrypt::HashParts::from_str(hash).is_ok() {
            Ok(Password::Bcrypt(hash.to_owned()))
        } else if hash.starts_with("$argon2") && PasswordHash::new(hash).is_ok() {
            Ok(Password::Argon2(hash.to_owned()))
        } else {
            Err("is no hash that can be checked: make one with `htpasswd -nB NAME` (bcrypt, `$2y$…`) or with Argon2 (`$argon2id$…`)".to_owned())
        }
    }

    /// The cost of a check, as a text. Checks with equal texts take the same effort.
    fn cost(&self) -> String {
        match self {
            Password::Bcrypt(hash) => {
                let cost = bcrypt::HashParts::from_str(hash).map(|parts| parts.get_cost());
                format!("bcrypt {}", cost.unwrap_or(0))
            }
            // `$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH`
            Password::Argon2(hash) => hash.split('$').take(4).collect::<Vec<_>>().join("$"),
        }
    }

    /// Whether this is the hash of the password. Blocks the thread, for a time that does not depend on the password.
    fn fits(&self, password: &str) -> bool {
        match self {
            Password::Bcrypt(hash) => {
                let bytes = password.as_bytes();
                let seen = &bytes[..bytes.len().min(BCRYPT_BYTES_MAX)];
                // bcrypt reads a short password several times, with a NUL after each time. So a password that has a NUL
                // inside could have the same hash as a shorter one.
                let fits = bcrypt::verify(seen, hash).unwrap_or(false);
                fits && seen.len() == bytes.len() && !bytes.contains(&0)
            }
            Password::Argon2(hash) => PasswordHash::new(hash).is_ok_and(|hash| {
                let argon2 = Argon2::default();
                argon2.verify_password(password.as_bytes(), &hash).is_ok()
            }),
        }
    }
}

/// Leaves the hash out, so that it does not get into logs.
impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Password::Bcrypt(_) => "Bcrypt(…)",
            Password::Argon2(_) => "Argon2(…)",
        })
    }
}

/// Parses a file as `htpasswd` writes it: `NAME:HASH` on each line.
///
/// # Errors
/// The number of the line that is wrong, and why.
pub fn parse_file(text: &str) -> Result<BTreeMap<String, Password>, (usize, String)> {
    let mut users = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |sentence: String| (index + 1, sentence);
        let (name, hash) = (line.split_once(':')).ok_or_else(|| {
            wrong("has no `:`: a line is NAME:HASH, as `htpasswd -B` writes it".to_owned())
        })?;
        let password = Password::parse(hash)
            .map_err(|sentence| wrong(format!("is wrong: what follows `{name}:` {sentence}")))?;
        if users.insert(name.to_owned(), password).is_some() {
            return Err(wrong(format!(
                "names `{name}` again: keep one of the lines"
            )));
        }
    }
    Ok(users)
}

impl BasicAuth {
    /// `users` has at least one user. `realm` is the text with which browsers tell the user what the password is for.
    pub fn new(users: BTreeMap<String, Password>, realm: &str, limits: Limits) -> BasicAuth {
        let plain = realm.replace(|c: char| c == '"' || c == '\\' || c.is_control(), "");
        let challenge = format!("Basic realm=\"{plain}\", charset=\"UTF-8\"");
        let random = ring::rand::SystemRandom::new();
        BasicAuth {
            users: Arc::new(Users::new(users)),
            challenge: HeaderValue::from_str(&challenge).expect("what would be wrong is taken out"),
            checks: FairQueue::new(limits.checks_max, limits.queue_max, limits.queue_timeout),
            names: RandomState::new(),
            remembered: Mutex::default(),
            key: hmac::Key::generate(hmac::HMAC_SHA256, &random)
                .expect("the system has randomness"),
            limits,
        }
    }

    /// Returns the user's name, or refuses the request. `client` is the client's address, as trusted proxies report it.
    pub(super) async fn before(
        &self,
        request: &Parts,
        client: IpAddr,
    ) -> Result<String, Box<Refused>> {
        let Some((user, password)) = credentials(&request.headers) else {
            return Err(self.ask("This page asks for a name and a password."));
        };
        let digest = self.digest(&user, &password);
        if self.remembered.lock().has(digest, self.limits.remember) {
            return Ok(user);
        }
        let asker = Asker::new(client, self.names.hash_one(&user));
        let turn = self.checks.enter(asker).await.map_err(busy)?;
        let (users, name) = (Arc::clone(&self.users), user.clone());
        let too_long = users.is_too_long(&password);
        let check = move || {
            // The turn is held until the check has ended, even if the client has disconnected meanwhile.
            let _turn = turn;
            users.check(&name, &password)
        };
        let fits = tokio::task::spawn_blocking(check).await;
        let fits = fits.map_err(|error| {
            Box::new(Refused {
                failure: Failure::host(format!("checking a password: {error}")),
                headers: HeaderMap::new(),
            })
        })?;
        if !fits {
            return Err(self.ask(match too_long {
                // The text is the same for every name, so that it does not reveal which names exist.
                true => "The name or the password is wrong. Passwords that are kept with bcrypt have 72 bytes at most: this one is longer.",
                false => "The name or the password is wrong.",
            }));
        }
        let max = self.limits.remember_max;
        self.remembered
            .lock()
            .add(digest, max, self.limits.remember);
        Ok(user)
    }

    fn ask(&self, text: &'static str) -> Box<Refused> {
        let mut refused = Refused::unauthorized(text);
        (refused.headers).insert(header::WWW_AUTHENTICATE, self.challenge.clone());
        refused
    }

    /// An HMAC of the credentials. Without this process's key, it reveals nothing about the password.
    fn digest(&self, user: &str, password: &str) -> Digest {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&user.len().to_le_bytes());
        context.update(user.as_bytes());
        context.update(password.as_bytes());
        let mut digest = Digest::default();
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }
}

fn busy(sentence: String) -> Box<Refused> {
    Box::new(Refused {
        failure: Failure::limit(StatusCode::SERVICE_UNAVAILABLE, sentence),
        headers: HeaderMap::new(),
    })
}

/// The name and the password in `authorization`. None if the header is missing, malformed, or there twice.
fn credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let mut sent = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(sent), None) = (sent.next(), sent.next()) else {
        return None;
    };
    let (scheme, encoded) = sent.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

type Digest = [u8; 32];

/// Digests of credentials that were right, with the time of their check. `order` has the oldest first.
#[derive(Default)]
struct Remembered {
    since: HashMap<Digest, (Instant, GaugeGuard)>,
    order: VecDeque<Digest>,
}

impl Remembered {
    fn has(&self, digest: Digest, time: Duration) -> bool {
        let since = self.since.get(&digest).map(|(since, _)| since.elapsed());
        since.is_some_and(|since| since < time)
    }

    fn add(&mut self, digest: Digest, max: usize, time: Duration) {
        while let Some(oldest) = self.order.front()
            && (self.order.len() >= max.max(1) || !self.has(*oldest, time))
        {
            self.since.remove(oldest);
            self.order.pop_front();
        }
        if max > 0 && !self.since.contains_key(&digest) {
            let held = GaugeGuard::new(&METRICS.credentials);
            self.since.insert(digest, (Instant::now(), held));
            self.order.push_back(digest);
        }
    }
}

/// Compares the configuration, and not what is remembered.
impl PartialEq for BasicAuth {
    fn eq(&self, other: &BasicAuth) -> bool {
        (&self.users, &self.challenge, &self.limits)
            == (&other.users, &other.challenge, &other.limits)
    }
}

impl Eq for BasicAuth {}

impl fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BasicAuth")
            .field("users", &self.users.by_name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use argon2::password_hash::PasswordHasher as _;
    use http::Request;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Users whose hashes are cheap to check, for tests only.
    fn users() -> BTreeMap<String, Password> {
        let ann = bcrypt::hash("correct horse", 4).expect("a hash");
        let params = argon2::Params::new(8, 1, 1, None).expect("the least there can be");
        let argon2 = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let bob = argon2
            .hash_password(b"battery staple")
            .expect("a hash")
            .to_string();
        BTreeMap::from([
            ("ann".to_owned(), Password::parse(&ann).expect("bcrypt")),
            ("bob".to_owned(), Password::parse(&bob).expect("Argon2")),
        ])
    }

    fn limits() -> Limits {
        Limits {
            checks_max: 1,
            queue_max: 0,
            queue_timeout: Duration::from_secs(5),
            remember_max: 2,
            remember: Duration::from_secs(60),
        }
    }

    fn auth(limits: Limits) -> BasicAuth {
        BasicAuth::new(users(), "The \"shop\"", limits)
    }

    fn request(headers: &[&str]) -> Parts {
        let request = (headers.iter()).fold(Request::builder(), |request, value| {
            request.header(header::AUTHORIZATION, *value)
        });
        request.body(()).expect("a request").into_parts().0
    }

    fn with(user: &str, password: &str) -> Parts {
        let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
        request(&[&format!("basic {encoded}")])
    }

    async fn status(auth: &BasicAuth, request: &Parts) -> Result<String, StatusCode> {
        let done = auth.before(request, CLIENT).await;
        done.map_err(|refused| refused.failure.status)
    }

    #[tokio::test]
    async fn r14_the_right_password_names_the_user() {
        let auth = auth(limits());
        let ann = with("ann", "correct horse");
        for _ in 0..2 {
            assert_eq!(status(&auth, &ann).await, Ok("ann".into()));
        }
        assert_eq!(auth.remembered.lock().order.len(), 1);
        let bob = with("bob", "battery staple");
        assert_eq!(status(&auth, &bob).await, Ok("bob".into()));
        for (user, password) in [
            ("ann", "wrong"),
            ("ann", ""),
            ("eve", "correct horse"),
            ("Ann", "correct horse"),
            ("bob", "correct horse"),
        ] {
            let refused = status(&auth, &with(user, password)).await;
            assert_eq!(refused, Err(StatusCode::UNAUTHORIZED), "{user}");
        }
        assert_eq!(auth.remembered.lock().order.len(), 2);
    }

    #[tokio::test]
    async fn whoever_sends_none_is_asked() {
        let auth = auth(limits());
        for headers in [
            &[][..],
            &["Basic"],
            &["Basic !"],
            &["Basic YW5u"],
            &["Bearer YW5uOmNvcnJlY3QgaG9yc2U="],
            &["Basic YQ==", "Basic YQ=="],
        ] {
            let refused = auth.before(&request(headers), CLIENT).await;
            let refused = refused.expect_err("nobody");
            assert_eq!(refused.failure.status, StatusCode::UNAUTHORIZED);
            let challenge = &refused.headers[header::WWW_AUTHENTICATE];
            assert_eq!(challenge, "Basic realm=\"The shop\", charset=\"UTF-8\"");
        }
    }

    #[tokio::test]
    async fn checks_are_bounded() {
        let auth = auth(limits());
        let _turn = auth.checks.enter(Asker::new(CLIENT, 0)).await;
        let refused = auth.before(&with("ann", "correct horse"), CLIENT).await;
        let failure = refused.expect_err("the only check is taken").failure;
        assert_eq!(failure.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(failure.detail.contains("password checks"), "{failure}");
    }

    /// A wrong password is checked against the same costs for every name.
    #[test]
    fn unknown_names_take_as_long_as_known_ones() {
        let mut all = users();
        let dear = bcrypt::hash("x", 5).expect("a hash");
        all.insert("eve".to_owned(), Password::parse(&dear).expect("bcrypt"));
        let users = Users::new(all);
        assert_eq!(users.costs.len(), 3);
        for name in ["ann", "bob", "eve", "nobody"] {
            let known = users.by_name.get(name);
            let checked = known.into_iter().chain(users.others(known));
            let mut costs: Vec<String> = checked.map(Password::cost).collect();
            costs.sort();
            assert!(costs.iter().eq(users.costs.keys()), "{name}: {costs:?}");
            assert!(!users.check(name, "wrong"), "{name}");
        }
    }

    /// bcrypt reads only 72 bytes of a password.
    #[tokio::test]
    async fn what_bcrypt_would_cut_is_refused() {
        let long = "x".repeat(72);
        let hash = bcrypt::hash(&long, 4).expect("a hash");
        let mut all = users();
        all.insert("eve".to_owned(), Password::parse(&hash).expect("bcrypt"));
        let auth = BasicAuth::new(all, "x", limits());
        assert_eq!(status(&auth, &with("eve", &long)).await, Ok("eve".into()));
        for name in ["eve", "bob", "nobody"] {
            let refused = auth.before(&with(name, &format!("{long}y")), CLIENT).await;
            let failure = refused.expect_err("it is another password").failure;
            assert_eq!(failure.status, StatusCode::UNAUTHORIZED);
            assert!(failure.client_text.contains("72 bytes"), "{failure}");
        }
        let repeated = status(&auth, &with("ann", "correct horse\0correct horse")).await;
        assert_eq!(repeated, Err(StatusCode::UNAUTHORIZED));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_gets_old() {
        let mut remembered = Remembered::default();
        let minute = Duration::from_secs(60);
        for n in 0..5 {
            remembered.add([n; 32], 2, minute);
        }
        assert!(remembered.has([4; 32], minute) && remembered.has([3; 32], minute));
        assert!(!remembered.has([2; 32], minute));
        assert!(!remembered.has([4; 32], Duration::ZERO));
        remembered.add([9; 32], 2, Duration::ZERO);
        assert_eq!((remembered.order.len(), remembered.since.len()), (1, 1));
        remembered.add([8; 32], 0, minute);
        assert!(!remembered.has([8; 32], minute));
    }

    #[test]
    fn hashes_that_are_weak_or_broken_are_refused() {
        for wrong in [
            "",
            "secret",
            "$apr1$x$y",
            "{SHA}abc=",
            "$2y$05$short",
            "$argon2id$x",
        ] {
            let sentence = Password::parse(wrong).expect_err("it is wrong");
            assert!(sentence.contains("`htpasswd -nB NAME`"), "{sentence}");
        }
        let hash = bcrypt::hash("x", 4).expect("a hash");
        let file = format!("# users\n\nann:{hash}\nbob:{hash}\n");
        assert_eq!(parse_file(&file).expect("it is right").len(), 2);
        let wrong = |text: &str| parse_file(text).expect_err("it is wrong");
        assert_eq!(wrong("\nann").0, 2);
        assert_eq!(wrong("ann:$apr1$x").0, 1);
        assert_eq!(wrong(&format!("ann:{hash}\nann:{hash}")).0, 2);
        let shown = format!("{:?}", auth(limits()));
        assert!(!shown.contains("$2"), "{shown}");
    }
}
