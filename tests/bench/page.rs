//! A real page on two servers: the guestbook's list on Amphi and in Django, and the check that both do the same work.
//!
//! A visitor signs both guestbooks, as a browser does: it opens the page, keeps its cookies, and sends the form with the
//! form's token. The cookies of these visitors go along with all requests that are measured, so that each request has a
//! session to verify and to read. Before anything is measured, the pages of both are compared.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use reqwest::{Client, RequestBuilder, StatusCode, header};
use serde_json::Value;

use crate::peers;
use crate::servers::{Data, Server};

/// The path at which Amphi shows the list with reused instances.
pub(crate) const REUSED: &str = "/reused";
/// How many entries the list shows.
const ENTRIES_SHOWN: usize = 8;
/// How much the sizes of two pages may differ, as a share of the first page's size.
const SIZE_DIFFERENCE_MAX: f64 = 0.1;
/// How long Amphi may take to build the guestbook for development.
const BUILD_TIME_MAX: Duration = Duration::from_secs(900);

/// Visitors that have signed the guestbooks, and what the comparison of the pages has shown.
pub(crate) struct Compared {
    /// The header `cookie` of Amphi's visitor.
    pub(crate) amphi_cookie: String,
    /// The header `cookie` of Django's visitor. All servers of Django share it.
    pub(crate) django_cookie: String,
    /// A paragraph for the table.
    pub(crate) summary: String,
}

/// Signs the guestbooks and compares the pages: an error if the servers do not do the same work. `django` has the name and
/// the URL of each server that shows Django's page, and `folder` is where Django is installed.
pub(crate) fn compare(
    data: &Data,
    amphi: &Server,
    django: &[(&str, &str)],
    folder: &Path,
) -> anyhow::Result<Compared> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(compare_pages(data, amphi, django, folder))
}

async fn compare_pages(
    data: &Data,
    amphi: &Server,
    django: &[(&str, &str)],
    folder: &Path,
) -> anyhow::Result<Compared> {
    let (_, first) = django.first().context("no server shows Django's page")?;
    let amphi_cookie = sign(&amphi.url("/")).await.context("Amphi")?;
    let django_cookie = sign(first).await.context("Django")?;
    // The page shows when an entry was signed, and the two visitors may have signed in different seconds.
    data.align_newest_entries()?;

    let amphi_page = Page::open(&amphi.url("/"), &amphi_cookie).await?;
    let shown = (amphi_page.elements.iter()).filter(|element| *element == "article");
    ensure!(
        shown.count() == ENTRIES_SHOWN && amphi_page.text.contains("Guest 200 & friends"),
        "the list does not show the newest entries: {}",
        amphi_page.text
    );
    let reused_page = Page::open(&amphi.url(REUSED), &amphi_cookie).await?;
    amphi_page
        .ensure_like(&reused_page)
        .context("reused instances")?;
    let mut django_bytes = 0;
    for (name, url) in django {
        let page = Page::open(url, &django_cookie).await?;
        amphi_page
            .ensure_like(&page)
            .with_context(|| name.to_string())?;
        django_bytes = page.bytes;
    }

    eprintln!("building the guestbook for development, to count its statements");
    let amphi_statements = amphi_statements(data, &amphi_cookie).await?;
    let django_statements =
        peers::django_statements(folder, &data.django_database(), &django_cookie)?;
    ensure!(
        amphi_statements.len() == django_statements.len(),
        "the pages do not run the same number of statements: {amphi_statements:?}, {django_statements:?}"
    );
    let summary = format!(
        "The page: {ENTRIES_SHOWN} of 201 entries; the same {} elements and the same text on both servers, for a visitor \
         whose session has the name; both refuse its form without a token (403). Amphi: {} bytes, {}. Django: {} bytes, \
         {}.",
        amphi_page.elements.len(),
        amphi_page.bytes,
        list(&amphi_statements),
        django_bytes,
        list(&django_statements),
    );
    Ok(Compared {
        amphi_cookie,
        django_cookie,
        summary,
    })
}

/// The number and the texts of the statements, for the summary.
fn list(statements: &[String]) -> String {
    format!(
        "{} statements (`{}`)",
        statements.len(),
        statements.join("`; `")
    )
}

/// Signs a guestbook as a browser does. Returns the visitor's cookies, as the header `cookie` has them.
async fn sign(url: &str) -> anyhow::Result<String> {
    let client = client()?;
    let page = client.get(url).send().await?.error_for_status()?;
    let mut cookies = BTreeMap::new();
    keep_cookies(page.headers(), &mut cookies)?;
    let page = page.text().await?;
    let (field, token) = token(&page).context("the form has no token")?;
    let fields = "name=Zo%C3%AB+%26+Ann&message=Hello%2C+%3Ceverybody%3E%21";
    let form = |body: String, cookies: &BTreeMap<String, String>| {
        client
            .post(format!("{url}entries"))
            .header(header::COOKIE, cookie_header(cookies))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body)
    };
    let status = status(form(fields.to_owned(), &cookies)).await?;
    ensure!(
        status == StatusCode::FORBIDDEN,
        "a form without a token was answered with {status}"
    );
    let signed = form(format!("{field}={token}&{fields}"), &cookies)
        .send()
        .await?;
    ensure!(
        signed.status().is_redirection(),
        "the form was answered with {}",
        signed.status()
    );
    keep_cookies(signed.headers(), &mut cookies)?;
    Ok(cookie_header(&cookies))
}

async fn status(request: RequestBuilder) -> anyhow::Result<StatusCode> {
    Ok(request.send().await?.status())
}

/// A client that follows no redirect and opens a new connection for each request, since a server may close kept ones.
fn client() -> anyhow::Result<Client> {
    // Fails if a provider is installed already, which is all right.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .no_proxy()
        .build()?)
}

/// Adds the cookies that an answer sets to `cookies`.
fn keep_cookies(
    headers: &header::HeaderMap,
    cookies: &mut BTreeMap<String, String>,
) -> anyhow::Result<()> {
    for cookie in headers.get_all(header::SET_COOKIE) {
        let pair = cookie
            .to_str()?
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        let (name, value) = pair.split_once('=').context("a cookie has no value")?;
        cookies.insert(name.to_owned(), value.to_owned());
    }
    Ok(())
}

fn cookie_header(cookies: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = (cookies.iter())
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("; ")
}

/// Name and value of the form's hidden field, which has the token.
fn token(page: &str) -> Option<(&str, &str)> {
    let (_, rest) = page.split_once(r#"<input type="hidden" name=""#)?;
    let (name, rest) = rest.split_once(r#"" value=""#)?;
    let (value, _) = rest.split_once('"')?;
    Some((name, value))
}

/// The statements that Amphi's page runs for a request with these cookies, as Amphi's development server lists them.
async fn amphi_statements(data: &Data, cookie: &str) -> anyhow::Result<Vec<String>> {
    let (mut server, since) = (data.guestbook_telling_statements()?, Instant::now());
    let client = client()?;
    let answer: Value = loop {
        server.ensure_running()?;
        let request = client
            .get(server.url("/"))
            .header(header::COOKIE, cookie)
            .header(header::ACCEPT, "application/json");
        match request.send().await {
            Ok(answer) => break serde_json::from_str(&answer.text().await?)?,
            Err(_) if since.elapsed() < BUILD_TIME_MAX => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error).context("Amphi under development does not answer"),
        }
    };
    let statements = answer["development"]["statements"].as_array();
    let statements = statements.with_context(|| format!("the answer lists none: {answer}"))?;
    let text = |statement: &Value| statement["sql"].as_str().map(str::to_owned);
    (statements.iter().map(text).collect::<Option<_>>()).context("a statement has no text")
}

/// What is compared of a page.
#[derive(Debug, PartialEq)]
struct Page {
    bytes: usize,
    /// The names of all elements, in order.
    elements: Vec<String>,
    /// The text between the tags, with single spaces.
    text: String,
}

impl Page {
    /// Requests a page with a visitor's cookies, and checks that its form has the visitor's name, which is in the
    /// session. Cookies that the response sets are not kept. (Django sets its CSRF cookie anew with each page that has
    /// a form. Amphi keeps one token in the session until the session ends.)
    async fn open(url: &str, cookie: &str) -> anyhow::Result<Page> {
        let request = client()?.get(url).header(header::COOKIE, cookie);
        let html = request.send().await?.error_for_status()?.text().await?;
        ensure!(
            html.contains("value=\"Zoë &amp; Ann\""),
            "{url} does not know the visitor's session: {html}"
        );
        Ok(Page::parse(&html))
    }

    fn parse(html: &str) -> Page {
        let mut elements = Vec::new();
        let mut text = String::new();
        for part in html.split('<').skip(1) {
            let (tag, after) = part.split_once('>').unwrap_or((part, ""));
            let name = tag.split([' ', '\n', '/']).next().unwrap_or_default();
            if !name.is_empty() {
                elements.push(name.to_ascii_lowercase());
            }
            text.push_str(after);
            text.push(' ');
        }
        let entities = [
            ("&lt;", "<"),
            ("&gt;", ">"),
            ("&quot;", "\""),
            ("&#x27;", "'"),
            ("&amp;", "&"),
        ];
        for (entity, character) in entities {
            text = text.replace(entity, character);
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        Page {
            bytes: html.len(),
            elements,
            text: words.join(" "),
        }
    }

    /// An error if another page has other elements or another text, or if its size is too different.
    fn ensure_like(&self, other: &Page) -> anyhow::Result<()> {
        if self.elements != other.elements {
            bail!(
                "the elements differ: {:?}, {:?}",
                self.elements,
                other.elements
            );
        }
        if self.text != other.text {
            bail!("the texts differ: {:?}, {:?}", self.text, other.text);
        }
        let difference = other.bytes as f64 / self.bytes as f64 - 1.0;
        ensure!(
            difference.abs() <= SIZE_DIFFERENCE_MAX,
            "the sizes differ too much: {} and {} bytes",
            self.bytes,
            other.bytes
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"<!DOCTYPE html><p class="a">Ann &amp; &lt;b&gt;</p><input type="hidden" name="t" value="x1"><br>"#;

    fn page(html: &str) -> Page {
        Page::parse(html)
    }

    #[test]
    fn a_page_has_elements_and_text() {
        let parsed = page(PAGE);
        assert_eq!(parsed.elements, ["!doctype", "p", "input", "br"]);
        assert_eq!(parsed.text, "Ann & <b>");
        assert_eq!(parsed.bytes, PAGE.len());
    }

    #[test]
    fn white_space_between_tags_and_attributes_do_not_count() {
        let other = PAGE.replace("><", ">\n<").replace(" class=\"a\"", "");
        page(PAGE)
            .ensure_like(&page(&other))
            .expect("they are alike");
    }

    #[test]
    fn other_elements_texts_and_sizes_are_told_apart() {
        let refused = |other: &str| {
            let error = page(PAGE)
                .ensure_like(&page(other))
                .expect_err("they differ");
            error.to_string()
        };
        let elements = refused(&PAGE.replace("<br>", "<hr>"));
        assert!(elements.starts_with("the elements differ"), "{elements}");
        let text = refused(&PAGE.replace("Ann", "Bob"));
        assert!(text.starts_with("the texts differ"), "{text}");
        let size = refused(&PAGE.replace("x1", &"x".repeat(20)));
        assert!(size.starts_with("the sizes differ too much"), "{size}");
    }

    #[test]
    fn the_token_is_found() {
        assert_eq!(token(PAGE), Some(("t", "x1")));
        assert_eq!(token("<p>"), None);
    }

    #[test]
    fn later_cookies_replace_earlier_ones() {
        let mut headers = header::HeaderMap::new();
        for cookie in ["b=1; Path=/; Secure", "a=2", "b=3=4; HttpOnly"] {
            headers.append(header::SET_COOKIE, cookie.parse().expect("a header"));
        }
        let mut cookies = BTreeMap::new();
        keep_cookies(&headers, &mut cookies).expect("they are cookies");
        assert_eq!(cookie_header(&cookies), "a=2; b=3=4");
    }
}
