//! A browser, as far as forms need one: it keeps the session cookie, and the CSRF token of the last page.

use reqwest::RequestBuilder;

use super::{Reply, Server};

/// A browser.
pub struct Browser<'a> {
    server: &'a Server,
    /// The session, as the header `cookie` has it; empty at first.
    pub cookie: String,
    /// The CSRF token of the last page that had a form; empty at first.
    pub token: String,
}

/// The `content-type` of a form.
pub const FORM: &str = "application/x-www-form-urlencoded";

impl<'a> Browser<'a> {
    /// A browser without a session.
    pub fn new(server: &'a Server) -> Browser<'a> {
        Browser {
            server,
            cookie: String::new(),
            token: String::new(),
        }
    }

    /// A browser that has opened a page with a form.
    ///
    /// # Panics
    /// When the page has no form, or comes without a session.
    pub async fn at(server: &'a Server, path: &str) -> Browser<'a> {
        let mut browser = Browser::new(server);
        let page = browser.get(path).await;
        page.ok();
        assert!(!browser.token.is_empty(), "a page with a form: {page:?}");
        assert!(
            !browser.cookie.is_empty(),
            "a page with a session: {page:?}"
        );
        browser
    }

    /// A request with the browser's session.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let request = self.server.request(method, path);
        match self.cookie.as_str() {
            "" => request,
            cookie => request.header("cookie", cookie),
        }
    }

    /// Sends a request, and keeps session and token of the response.
    pub async fn send(&mut self, request: RequestBuilder) -> Reply {
        let reply = Reply::of(request).await;
        if let Some(cookie) = reply.header("set-cookie").split(';').next()
            && !cookie.is_empty()
        {
            cookie.clone_into(&mut self.cookie);
        }
        if let Some(token) = token_of(&reply) {
            self.token = token;
        }
        reply
    }

    /// Opens a page.
    pub async fn get(&mut self, path: &str) -> Reply {
        self.send(self.request("GET", path)).await
    }

    /// Sends the form of the last page, with these fields.
    pub async fn post(&mut self, path: &str, fields: &str) -> Reply {
        let request = self.request("POST", path).header("content-type", FORM);
        let body = format!("csrf_token={}&{fields}", self.token);
        self.send(request.header("sec-fetch-site", "same-origin").body(body))
            .await
    }
}

/// The CSRF token of a page's first form.
fn token_of(page: &Reply) -> Option<String> {
    let text = str::from_utf8(&page.body).ok()?;
    let (_, token) = text.split_once("name=\"csrf_token\" value=\"")?;
    let (token, _) = token.split_once('"')?;
    Some(token.to_owned())
}
