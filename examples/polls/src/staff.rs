//! The login for the admin pages. The host reads the password from a file.

use crate::site;
use amphi_sdk::prelude::*;
use askama::Template;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Minimum length of the password: a shorter one can be guessed.
const PASSWORD_MIN: usize = 12;
/// The path of the first admin page.
pub const HOME: &str = "/admin";

/// The staff member who has logged in.
#[derive(Clone, Debug)]
pub struct Staff {
    pub name: String,
}

/// The account, from the settings and secrets of `amphi.toml`.
struct Account {
    name: String,
    password: String,
}

impl Account {
    fn read<M: Mode>(cx: &Context<M>) -> Result<Self> {
        let password = cx.config("admin_password").unwrap_or_default();
        if password.chars().count() < PASSWORD_MIN {
            return Err(Error::internal(format!(
                "the secret `admin_password` has fewer than {PASSWORD_MIN} characters"
            )));
        }
        let name = cx.config("admin_name").unwrap_or_else(|| "admin".into());
        Ok(Self { name, password })
    }

    fn is_of(&self, given: &Credentials) -> bool {
        // All digests have the same length, so the time of the comparison does not reveal the lengths of the texts.
        let equal = |known: &str, given: &str| {
            let [known, given]: [[u8; 32]; 2] =
                [known, given].map(|text| Sha256::digest(text).into());
            known[..].ct_eq(&given[..])
        };
        bool::from(equal(&self.name, &given.name) & equal(&self.password, &given.password))
    }

    /// The value in a session that has logged in. It depends on the password, so a new password ends earlier sessions.
    fn mark(&self) -> String {
        let digest = Sha256::digest(format!("session of {}: {}", self.name, self.password));
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[extractor]
pub async fn staff(cx: &Context, session: Session) -> Result<Staff> {
    let account = Account::read(cx)?;
    match session.get::<String>("staff") {
        Some(mark) if mark == account.mark() => Ok(Staff { name: account.name }),
        _ => Err(Error::unauthorized("Please log in.")),
    }
}

/// Redirects clients that have not logged in to the login page.
#[middleware]
pub fn staff_only(staff: Option<Staff>, request: Request, next: Next) -> Result<Response> {
    if staff.is_some() {
        let response = next.run(request)?;
        return response
            .with_header("cache-control", "no-store")
            .into_response();
    }
    // The content of a form that was sent is lost, so the login leads to the list and not to the path of the form.
    let back = match request.method.as_str() {
        "GET" | "HEAD" => way_back(&request.path),
        _ => HOME,
    };
    Redirect::see_other(format!("/admin/login?next={back}")).into_response()
}

/// The admin page to show after the login. `HOME` replaces any other path: a link must not lead to another site.
fn way_back(path: &str) -> &str {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '/';
    match path.strip_prefix(HOME) {
        Some(rest) if path.chars().all(plain) && (rest.is_empty() || rest.starts_with('/')) => path,
        _ => HOME,
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Target {
    next: String,
}

#[derive(Deserialize)]
pub struct Credentials {
    name: String,
    password: String,
    #[serde(default)]
    next: String,
}

#[derive(Template)]
#[template(path = "admin/login.html")]
struct LogIn<'a> {
    site: String,
    csrf: &'a Csrf,
    name: &'a str,
    next: &'a str,
    problem: bool,
}

#[view(get, "/admin/login")]
pub fn log_in_form(cx: &Context, csrf: Csrf, Query(target): Query<Target>) -> Result<Html> {
    let page = LogIn {
        site: site(cx),
        csrf: &csrf,
        name: "",
        next: way_back(&target.next),
        problem: false,
    };
    Ok(Html(page.render()?))
}

#[view(post, "/admin/login", atomic = false)]
pub fn log_in(
    cx: &Context,
    session: Session,
    csrf: Csrf,
    Protected(Form(given)): Protected<Form<Credentials>>,
) -> Result<Response> {
    let account = Account::read(cx)?;
    let next = way_back(&given.next);
    if !account.is_of(&given) {
        let page = LogIn {
            site: site(cx),
            csrf: &csrf,
            name: &given.name,
            next,
            problem: true,
        };
        return (StatusCode::UNPROCESSABLE_ENTITY, Html(page.render()?)).into_response();
    }
    session.clear();
    session.set("staff", &account.mark())?;
    Redirect::see_other(next).into_response()
}

#[view(post, "/admin/logout", atomic = false)]
pub fn log_out(session: Session, _: Protected) -> Redirect {
    session.clear();
    Redirect::see_other("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_stays_in_the_admin() {
        for path in ["/admin", "/admin/questions/7", "/admin/questions/7/delete"] {
            assert_eq!(way_back(path), path);
        }
        for path in [
            "",
            "/",
            "/administrator",
            "//evil.example",
            "https://evil.example/admin",
            "/admin/\\evil.example",
            "/admin?next=//evil.example",
            "/admin/../..",
        ] {
            assert_eq!(way_back(path), HOME, "{path}");
        }
    }
}
