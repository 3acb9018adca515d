//! Users: their accounts, the sessions of browsers, and the tokens of programs.

use crate::layout::{field, page};
use amphi_sdk::database::ErrorKind;
use amphi_sdk::prelude::*;
use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use maud::{Markup, html};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

/// The user who has logged in with the browser.
#[derive(Clone, Debug, FromRow)]
pub struct User {
    pub id: i64,
    pub email: String,
}

#[extractor]
pub async fn user(cx: &Context, session: Session) -> Result<User> {
    let id: i64 = session
        .get("user")
        .ok_or_else(|| Error::unauthorized("Please log in."))?;
    cx.db()
        .query_one("select id, email from users where id = $1", (id,))
        .await?
        .ok_or_else(|| Error::unauthorized("Please log in again."))
}

/// Redirects clients that have not logged in to the login page.
#[middleware]
pub fn signed_in(user: Option<User>, request: Request, next: Next) -> Result<Response> {
    match user {
        Some(_) => next.run(request),
        None => Redirect::see_other("/login").into_response(),
    }
}

/// The user whose token a program sends in `authorization: Bearer …`.
pub struct Client {
    pub user_id: i64,
}

#[extractor]
pub async fn client(cx: &Context, headers: Headers) -> Result<Client> {
    let token = headers
        .get("authorization")
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| {
            Error::unauthorized(
                "This needs `authorization: Bearer …` with a token of your account.",
            )
        })?;
    let user_id = cx
        .db()
        .query_one(
            "select user_id from tokens where hash = $1",
            (digest(token),),
        )
        .await?
        .ok_or_else(|| Error::unauthorized("There is no such token."))?;
    Ok(Client { user_id })
}

fn digest(token: &str) -> Vec<u8> {
    Sha256::digest(token).to_vec()
}

/// A hash that fits no password, verified when an address has no account. This takes as long as verifying the hash of a
/// user, so the time of the response does not reveal which addresses have an account.
pub const NOBODY: &str = concat!(
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
);

#[derive(Deserialize)]
pub struct Credentials {
    email: String,
    password: String,
}

#[view(get, "/signup")]
pub fn sign_up_form(cx: &Context, csrf: Csrf) -> Markup {
    form(cx, &csrf, "Sign up", "/signup", "", None)
}

/// Runs without a transaction, so that no other request waits while the password is hashed. One statement needs none.
#[view(post, "/signup", atomic = false)]
pub fn sign_up(
    cx: &Context,
    session: Session,
    csrf: Csrf,
    Protected(Form(new)): Protected<Form<Credentials>>,
) -> Result<Response> {
    let email = new.email.trim().to_lowercase();
    let problem = if !email.contains('@') || email.len() > 200 || email.contains(char::is_control) {
        Some("This is no e-mail address.")
    } else if new.password.chars().count() < 8 {
        Some("A password has at least 8 characters.")
    } else {
        None
    };
    if let Some(problem) = problem {
        let page = form(cx, &csrf, "Sign up", "/signup", &email, Some(problem));
        return (StatusCode::UNPROCESSABLE_ENTITY, page).into_response();
    }
    let hash = Argon2::default()
        .hash_password(new.password.as_bytes())?
        .to_string();
    let added: Result<Option<i64>> = cx.db().query_one(
        "insert into users (email, password, created_at) values ($1, $2, $3) returning id",
        (&email, &hash, OffsetDateTime::now_utc()),
    );
    match added {
        Ok(id) => {
            session.clear();
            session.set("user", &id)?;
            log::info!("signed up", user = id.unwrap_or_default());
            Redirect::see_other("/").into_response()
        }
        Err(error) if error.database_kind() == Some(ErrorKind::Unique) => {
            let page = form(
                cx,
                &csrf,
                "Sign up",
                "/signup",
                &email,
                Some("There is an account with this address."),
            );
            (StatusCode::CONFLICT, page).into_response()
        }
        Err(error) => Err(error),
    }
}

#[view(get, "/login")]
pub fn log_in_form(cx: &Context, csrf: Csrf) -> Markup {
    form(cx, &csrf, "Log in", "/login", "", None)
}

/// Runs without a transaction, as `sign_up` does: verifying a password takes as long as hashing it.
#[view(post, "/login", atomic = false)]
pub fn log_in(
    cx: &Context,
    session: Session,
    csrf: Csrf,
    Protected(Form(given)): Protected<Form<Credentials>>,
) -> Result<Response> {
    let email = given.email.trim().to_lowercase();
    let found: Option<(i64, String)> = cx
        .db()
        .query_one("select id, password from users where email = $1", (&email,))?;
    let (id, hash) = match found {
        Some((id, hash)) => (Some(id), hash),
        None => (None, NOBODY.to_owned()),
    };
    let fits = Argon2::default()
        .verify_password(given.password.as_bytes(), &PasswordHash::new(&hash)?)
        .is_ok();
    let Some(id) = id.filter(|_| fits) else {
        let page = form(
            cx,
            &csrf,
            "Log in",
            "/login",
            &email,
            Some("Address or password is wrong."),
        );
        return (StatusCode::UNPROCESSABLE_ENTITY, page).into_response();
    };
    session.clear();
    session.set("user", &id)?;
    Redirect::see_other("/").into_response()
}

#[view(post, "/logout")]
pub fn log_out(session: Session, _: Protected) -> Redirect {
    session.clear();
    Redirect::see_other("/login")
}

fn form(
    cx: &sync::Context,
    csrf: &Csrf,
    title: &str,
    action: &str,
    email: &str,
    problem: Option<&str>,
) -> Markup {
    page(
        cx,
        None,
        title,
        html! {
            h1 { (title) }
            @if let Some(problem) = problem { p.problem role="alert" { (problem) } }
            form.stack action=(action) method="post" {
                (csrf.field())
                (field("email", "E-mail", html! { input #email name="email" type="email" value=(email) autocomplete="username" required; }))
                (field("password", "Password", html! { input #password name="password" type="password" required; }))
                button { (title) }
            }
            @if action == "/login" { p { "No account yet? " a href="/signup" { "Sign up" } } }
            @else { p { "Have one already? " a href="/login" { "Log in" } } }
        },
    )
}

#[derive(FromRow)]
struct Token {
    id: i64,
    label: String,
    created_at: OffsetDateTime,
}

#[view(get, "/account", middleware = [signed_in])]
pub fn account(cx: &Context, user: User, csrf: Csrf) -> Result<Markup> {
    account_page(cx, &user, &csrf, None)
}

fn account_page(
    cx: &sync::Context,
    user: &User,
    csrf: &Csrf,
    fresh: Option<&str>,
) -> Result<Markup> {
    let tokens: Vec<Token> = cx.db().query(
        "select id, label, created_at from tokens where user_id = $1 order by id",
        (user.id,),
    )?;
    Ok(page(
        cx,
        Some((user, csrf)),
        "Account",
        html! {
            h1 { "Tokens for the API" }
            @if let Some(token) = fresh {
                p { "Your new token, which is shown this once: " code #token { (token) } }
            }
            ul {
                @for token in &tokens {
                    li {
                        (token.label) " (" (token.created_at.date()) ") "
                        form.inline action={ "/tokens/" (token.id) "/revoke" } method="post" { (csrf.field()) button { "Revoke" } }
                    }
                }
            }
            form action="/tokens" method="post" {
                (csrf.field())
                input name="label" aria-label="What it is for" placeholder="What it is for" required;
                button { "Make a token" }
            }
        },
    ))
}

#[derive(Deserialize)]
pub struct NewToken {
    label: String,
}

#[view(post, "/tokens", middleware = [signed_in])]
pub fn add_token(
    cx: &Context,
    user: User,
    csrf: Csrf,
    Protected(Form(new)): Protected<Form<NewToken>>,
) -> Result<Response> {
    let label = new.label.trim();
    if label.is_empty() || label.len() > 100 || label.contains(char::is_control) {
        return Err(Error::unprocessable(
            "A token's label has 1 to 100 bytes, and no control characters.",
        ));
    }
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes)?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    cx.db().execute(
        "insert into tokens (user_id, label, hash, created_at) values ($1, $2, $3, $4)",
        (user.id, label, digest(&token), OffsetDateTime::now_utc()),
    )?;
    account_page(cx, &user, &csrf, Some(&token))?
        .with_header("cache-control", "no-store")
        .into_response()
}

#[view(post, "/tokens/{id}/revoke", middleware = [signed_in])]
pub fn revoke_token(
    cx: &Context,
    user: User,
    Path(id): Path<i64>,
    _: Protected,
) -> Result<Redirect> {
    match cx.db().execute(
        "delete from tokens where user_id = $1 and id = $2",
        (user.id, id),
    )? {
        0 => Err(Error::not_found("There is no such token.")),
        _ => Ok(Redirect::see_other("/account")),
    }
}
