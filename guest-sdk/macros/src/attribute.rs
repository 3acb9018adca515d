//! The arguments of `#[view(…)]`, `#[middleware(…)]`, `#[subscriber(…)]` and `#[socket(…)]`.

use crate::pattern;
use proc_macro2::Span;
use quote::ToTokens;
use syn::parse::{Parse, ParseStream};
use syn::{Ident, LitBool, LitInt, LitStr, Path, Token};

const METHODS: [&str; 8] = [
    "get", "post", "put", "patch", "delete", "head", "options", "any",
];
const FORM: &str = "write `#[view(get, \"/path/{parameter}\")]`";

/// The arguments of `#[view]`, checked.
pub(crate) struct ViewAttribute {
    /// `GET`, `POST`, …
    pub(crate) method: String,
    pub(crate) pattern: LitStr,
    pub(crate) options: Options,
}

impl Parse for ViewAttribute {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let method = method(input)?;
        if input.is_empty() {
            return Err(missing("the path is missing"));
        }
        input.parse::<Token![,]>()?;
        let literal: LitStr = input.parse().map_err(|error| {
            syn::Error::new(
                error.span(),
                format!("the path must be a string literal: {FORM}"),
            )
        })?;
        pattern::check(&literal.value()).map_err(|text| syn::Error::new(literal.span(), text))?;
        Ok(ViewAttribute {
            method,
            pattern: literal,
            options: Options::after_comma(input, &VIEW_OPTIONS)?,
        })
    }
}

/// The arguments of `#[middleware]`, checked.
pub(crate) struct MiddlewareAttribute(pub(crate) Options);

impl Parse for MiddlewareAttribute {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let mut options = Options::default();
        if !input.is_empty() {
            options.option(input, &MIDDLEWARE_OPTIONS)?;
        }
        options.more(input, &MIDDLEWARE_OPTIONS)?;
        Ok(Self(options))
    }
}

/// The arguments of `#[subscriber]`, checked.
pub(crate) struct SubscriberAttribute {
    pub(crate) topic: LitStr,
    pub(crate) options: Options,
}

impl Parse for SubscriberAttribute {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let form = "write `#[subscriber(\"orders.paid\")]` or `#[subscriber(\"orders.*\")]`";
        let topic: LitStr = input.parse().map_err(|error| {
            syn::Error::new(error.span(), format!("the topic is missing: {form}"))
        })?;
        if !is_topics(&topic.value()) {
            let text = format!("`{}` is not a topic: {form}", topic.value());
            return Err(syn::Error::new(topic.span(), text));
        }
        Ok(Self {
            topic,
            options: Options::after_comma(input, &VIEW_OPTIONS[2..])?,
        })
    }
}

/// The arguments of `#[socket]`, checked.
pub(crate) struct SocketAttribute {
    pub(crate) pattern: LitStr,
    pub(crate) options: Options,
}

impl Parse for SocketAttribute {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let form = "write `#[socket(\"/chat/{room}\")]`";
        if input.is_empty() {
            let text = format!("the path is missing: {form}");
            return Err(syn::Error::new(Span::call_site(), text));
        }
        if let Ok(name) = input.fork().parse::<Ident>() {
            let text = name.to_string();
            let text = match METHODS.contains(&text.as_str()) || text == "method" {
                true => format!("a socket has no method, since clients open it with GET: {form}"),
                false => format!("the path comes first, as a string literal: {form}"),
            };
            return Err(syn::Error::new(name.span(), text));
        }
        let pattern: LitStr = input.parse().map_err(|error| {
            let text = format!("the path must be a string literal: {form}");
            syn::Error::new(error.span(), text)
        })?;
        pattern::check(&pattern.value()).map_err(|text| syn::Error::new(pattern.span(), text))?;
        Ok(Self {
            pattern,
            options: Options::after_comma(input, &SOCKET_OPTIONS)?,
        })
    }
}

/// Whether the text is a topic, or a pattern of topics. A topic is words with dots between them. In a pattern, `.*` at
/// the end stands for any further words, and `*` alone for every topic. The host checks topics by the same rule.
fn is_topics(text: &str) -> bool {
    let word = |word: &str| {
        let of_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        !word.is_empty() && word.chars().all(of_word)
    };
    text == "*" || text.strip_suffix(".*").unwrap_or(text).split('.').all(word)
}

const VIEW_OPTIONS: [&str; 8] = [
    "body",
    "middleware",
    "atomic",
    "read_only",
    "isolation",
    "retries",
    "cpu_ms",
    "timeout_ms",
];
const SOCKET_OPTIONS: [&str; 8] = [
    "origins",
    "middleware",
    "atomic",
    "read_only",
    "isolation",
    "retries",
    "cpu_ms",
    "timeout_ms",
];
const MIDDLEWARE_OPTIONS: [&str; 2] = ["cpu_ms", "timeout_ms"];
const ISOLATIONS: [(&str, &str); 3] = [
    ("read-committed", "ReadCommitted"),
    ("repeatable-read", "RepeatableRead"),
    ("serializable", "Serializable"),
];

/// The options after the first arguments, in any order.
#[derive(Default)]
pub(crate) struct Options {
    /// Whether the view reads the body of its request while it arrives.
    pub(crate) stream_body: Option<bool>,
    pub(crate) atomic: Option<bool>,
    pub(crate) read_only: Option<bool>,
    /// The variant of `Isolation`, the enum of the contract.
    pub(crate) isolation: Option<Ident>,
    pub(crate) retries: Option<u32>,
    pub(crate) cpu_ms: Option<u32>,
    pub(crate) timeout_ms: Option<u32>,
    pub(crate) middleware: Option<Vec<Path>>,
    /// Origins whose pages may open the socket, beside the app's own.
    pub(crate) origins: Option<Vec<LitStr>>,
}

impl Options {
    fn after_comma(input: ParseStream, known: &[&str]) -> syn::Result<Self> {
        let mut options = Self::default();
        options.more(input, known)?;
        Ok(options)
    }

    fn more(&mut self, input: ParseStream, known: &[&str]) -> syn::Result<()> {
        while !input.is_empty() {
            input.parse::<Token![,]>()?;
            if !input.is_empty() {
                self.option(input, known)?;
            }
        }
        Ok(())
    }

    fn option(&mut self, input: ParseStream, known: &[&str]) -> syn::Result<()> {
        let name: Ident = input.parse()?;
        let text = name.to_string();
        if !known.contains(&text.as_str()) {
            let (last, first) = known.split_last().expect("there are options");
            let first: Vec<String> = first.iter().map(|known| format!("`{known}`")).collect();
            let reason = match text.as_str() {
                "body" if known == SOCKET_OPTIONS => {
                    "a socket has no `body`: the host calls it with one whole message after the other"
                        .to_owned()
                }
                "method" if known == SOCKET_OPTIONS => {
                    "a socket has no `method`: clients open it with GET".to_owned()
                }
                _ => format!("unknown option `{text}`"),
            };
            let text = format!(
                "{reason}; the options are {} and `{last}`",
                first.join(", ")
            );
            return Err(syn::Error::new(name.span(), text));
        }
        match text.as_str() {
            "body" => once(&mut self.stream_body, body(input, &name)?, &name),
            "middleware" => once(&mut self.middleware, paths(input)?, &name),
            "origins" => once(&mut self.origins, origins(input)?, &name),
            "atomic" => once(&mut self.atomic, flag(input)?, &name),
            "read_only" => once(&mut self.read_only, flag(input)?, &name),
            "isolation" => once(&mut self.isolation, isolation(input)?, &name),
            "retries" => once(&mut self.retries, retries(input)?, &name),
            "cpu_ms" => once(&mut self.cpu_ms, milliseconds(input)?, &name),
            _ => once(&mut self.timeout_ms, milliseconds(input)?, &name),
        }
    }
}

fn flag(input: ParseStream) -> syn::Result<bool> {
    if !input.peek(Token![=]) {
        return Ok(true);
    }
    input.parse::<Token![=]>()?;
    Ok(input.parse::<LitBool>()?.value)
}

/// Reads `= "stream"`.
fn body(input: ParseStream, name: &Ident) -> syn::Result<bool> {
    let form = "write `body = \"stream\"`: the view starts at once and reads the body while it arrives; without this option, the host receives the whole body first";
    if !input.peek(Token![=]) {
        return Err(syn::Error::new(name.span(), form));
    }
    input.parse::<Token![=]>()?;
    match input.fork().parse::<LitStr>() {
        Ok(text) if text.value() == "stream" => input.parse::<LitStr>().map(|_| true),
        _ => Err(input.error(form)),
    }
}

/// Reads `= [staff, auth::signed_in]`, or one path without brackets.
fn paths(input: ParseStream) -> syn::Result<Vec<Path>> {
    input.parse::<Token![=]>()?;
    if !input.peek(syn::token::Bracket) {
        return Ok(vec![function_path(input)?]);
    }
    let list;
    syn::bracketed!(list in input);
    let paths = list.parse_terminated(function_path, Token![,])?;
    Ok(paths.into_iter().collect())
}

fn function_path(input: ParseStream) -> syn::Result<Path> {
    if let Ok(text) = input.parse::<LitStr>() {
        return Err(syn::Error::new(
            text.span(),
            "write the names of functions with `#[middleware]`, without quotes: `middleware = [staff]`; built-in middleware is named in amphi.toml, for the app or for a module",
        ));
    }
    Path::parse_mod_style(input)
}

/// Reads `= ["https://app.example.com"]`, or one origin without brackets.
fn origins(input: ParseStream) -> syn::Result<Vec<LitStr>> {
    input.parse::<Token![=]>()?;
    if !input.peek(syn::token::Bracket) {
        return Ok(vec![origin(input)?]);
    }
    let list;
    syn::bracketed!(list in input);
    let origins = list.parse_terminated(origin, Token![,])?;
    Ok(origins.into_iter().collect())
}

fn origin(input: ParseStream) -> syn::Result<LitStr> {
    let literal: LitStr = input.parse()?;
    let text = literal.value();
    let is_origin = text.split_once("://").is_some_and(|(scheme, host)| {
        let of_host = |c: char| !c.is_whitespace() && !matches!(c, '/' | '?' | '#' | '@' | '*');
        !scheme.is_empty() && !host.is_empty() && host.chars().all(of_host)
    });
    if is_origin || text == "*" {
        return Ok(literal);
    }
    let text = format!(
        "`{text}` is not an origin: write scheme and host without a path, as in `origins = [\"https://app.example.com\"]`, or `\"*\"` for all"
    );
    Err(syn::Error::new(literal.span(), text))
}

fn isolation(input: ParseStream) -> syn::Result<Ident> {
    input.parse::<Token![=]>()?;
    let level: LitStr = input.parse()?;
    let known = ISOLATIONS.iter().find(|(name, _)| *name == level.value());
    match known {
        Some((_, variant)) => Ok(Ident::new(variant, level.span())),
        None => {
            let names = ISOLATIONS.map(|(name, _)| format!("\"{name}\"")).join(", ");
            let text = format!(
                "unknown isolation level \"{}\"; write one of {names}",
                level.value()
            );
            Err(syn::Error::new(level.span(), text))
        }
    }
}

fn retries(input: ParseStream) -> syn::Result<u32> {
    input.parse::<Token![=]>()?;
    let number: LitInt = input.parse()?;
    match number.base10_parse() {
        Ok(times @ 0..=10) => Ok(times),
        _ => Err(syn::Error::new(
            number.span(),
            "a request is run again at most 10 times: write a number from 0 to 10",
        )),
    }
}

/// The error for arguments that end too early. `ParseStream::error` is not used: at the end of the input, it would add
/// words of syn's own.
fn missing(what: &str) -> syn::Error {
    syn::Error::new(Span::call_site(), format!("{what}: {FORM}"))
}

fn method(input: ParseStream) -> syn::Result<String> {
    if input.is_empty() {
        return Err(missing("the method and the path are missing"));
    }
    if input.peek(LitStr) {
        return Err(input.error(format!("the method must come before the path: {FORM}")));
    }
    let method: Ident = input.parse()?;
    let name = method.to_string();
    if name == "method" && input.peek(Token![=]) {
        input.parse::<Token![=]>()?;
        let written: LitStr = input.parse()?;
        let text = written.value();
        if text.is_empty() || !text.chars().all(|c| c.is_ascii_uppercase() || c == '-') {
            let text = format!("`{text}` is not a method: write capital letters, as in \"PURGE\"");
            return Err(syn::Error::new(written.span(), text));
        }
        return Ok(text);
    }
    if name == "any" {
        return Ok("*".to_owned());
    }
    if !METHODS.contains(&name.as_str()) {
        let text = format!(
            "unknown method `{name}`; write one of {}, or `method = \"{}\"`",
            METHODS.join(", "),
            name.to_uppercase()
        );
        return Err(syn::Error::new(method.span(), text));
    }
    Ok(name.to_uppercase())
}

fn milliseconds(input: ParseStream) -> syn::Result<u32> {
    input.parse::<Token![=]>()?;
    let number: LitInt = input.parse()?;
    match number.base10_parse() {
        Ok(0) | Err(_) => Err(syn::Error::new(
            number.span(),
            format!(
                "`{}` is not a valid number of milliseconds: write a number from 1 to {}",
                number.to_token_stream(),
                u32::MAX
            ),
        )),
        Ok(value) => Ok(value),
    }
}

fn once<T>(place: &mut Option<T>, value: T, name: &Ident) -> syn::Result<()> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(syn::Error::new(
            name.span(),
            format!("`{name}` is given twice"),
        )),
    }
}
