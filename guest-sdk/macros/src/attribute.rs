//! What stands in the parentheses of `#[view(…)]`.

use crate::pattern;
use proc_macro2::Span;
use quote::ToTokens;
use syn::parse::{Parse, ParseStream};
use syn::{Ident, LitBool, LitInt, LitStr, Token};

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];
const FORM: &str = "write `#[view(get, \"/path/{parameter}\")]`";

/// The checked attribute.
pub(crate) struct ViewAttribute {
    /// `GET`, `POST`, …
    pub(crate) method: String,
    pub(crate) pattern: LitStr,
    pub(crate) atomic: Option<bool>,
    pub(crate) cpu_ms: Option<u32>,
    pub(crate) timeout_ms: Option<u32>,
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
                format!("the path is a text in quotes: {FORM}"),
            )
        })?;
        pattern::check(&literal.value()).map_err(|text| syn::Error::new(literal.span(), text))?;

        let mut attribute = ViewAttribute {
            method,
            pattern: literal,
            atomic: None,
            cpu_ms: None,
            timeout_ms: None,
        };
        while !input.is_empty() {
            input.parse::<Token![,]>()?;
            if !input.is_empty() {
                attribute.option(input)?;
            }
        }
        Ok(attribute)
    }
}

impl ViewAttribute {
    fn option(&mut self, input: ParseStream) -> syn::Result<()> {
        let name: Ident = input.parse()?;
        match name.to_string().as_str() {
            "atomic" => {
                let value = if input.peek(Token![=]) {
                    input.parse::<Token![=]>()?;
                    input.parse::<LitBool>()?.value
                } else {
                    true
                };
                once(&mut self.atomic, value, &name)
            }
            "cpu_ms" => once(&mut self.cpu_ms, milliseconds(input)?, &name),
            "timeout_ms" => once(&mut self.timeout_ms, milliseconds(input)?, &name),
            other => Err(syn::Error::new(
                name.span(),
                format!(
                    "a view has no option `{other}`; there are `atomic`, `cpu_ms` and `timeout_ms`"
                ),
            )),
        }
    }
}

/// At the end of the input, syn would put its own words before these.
fn missing(what: &str) -> syn::Error {
    syn::Error::new(Span::call_site(), format!("{what}: {FORM}"))
}

fn method(input: ParseStream) -> syn::Result<String> {
    if input.is_empty() {
        return Err(missing("the method and the path are missing"));
    }
    if input.peek(LitStr) {
        return Err(input.error(format!("the method comes before the path: {FORM}")));
    }
    let method: Ident = input.parse()?;
    let name = method.to_string();
    if !METHODS.contains(&name.as_str()) {
        let text = format!("no method `{name}`; write one of {}", METHODS.join(", "));
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
                "`{}` is no number of milliseconds: write one from 1 to {}",
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
            format!("`{name}` is said twice"),
        )),
    }
}
