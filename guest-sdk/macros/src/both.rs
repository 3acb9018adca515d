//! `#[both]` makes a sync and an async function of one function that the user writes. `#[extractor]` makes an extractor
//! of a function that is written in the same way.
//!
//! The user writes the async function. The sync function has the same tokens without `.await`, and without the `async`
//! of closures. Both functions are nested in one function that is generic over the mode, so callers of both modes use
//! one name. A component contains only the function of its own mode.

use proc_macro2::{Delimiter, Group, Span, TokenStream, TokenTree};
use quote::{ToTokens as _, format_ident, quote};
use syn::spanned::Spanned;
use syn::{
    AngleBracketedGenericArguments, FnArg, GenericArgument, GenericParam, Ident, ItemFn, Lifetime,
    PathArguments, ReturnType, Type, TypeParamBound, TypeReference, parse_quote,
};

const FORM: &str =
    "write `#[both] async fn name(cx: &Context, …) -> …`, with `.await` as in an async view";

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    match parse(&item).and_then(|function| Ok(Parts::of(function)?.function())) {
        Ok(tokens) => tokens,
        Err(error) => error.into_compile_error(),
    }
}

pub(crate) fn expand_extractor(item: TokenStream) -> TokenStream {
    match parse(&item).and_then(extractor) {
        Ok(tokens) => tokens,
        Err(error) => error.into_compile_error(),
    }
}

fn parse(item: &TokenStream) -> syn::Result<ItemFn> {
    let function: ItemFn =
        syn::parse2(item.clone()).map_err(|error| syn::Error::new(error.span(), FORM))?;
    match function.sig.asyncness {
        Some(_) => Ok(function),
        None => Err(syn::Error::new(
            function.sig.fn_token.span(),
            format!("a function under `#[both]` is written as an async function: {FORM}"),
        )),
    }
}

/// The parts of a function under `#[both]`, checked.
struct Parts {
    function: ItemFn,
    /// The parameters after the context, each a name and its type.
    arguments: Vec<(Ident, Type)>,
    /// The patterns of the parameters, as the user wrote them.
    patterns: Vec<syn::Pat>,
    context: syn::Pat,
    output: Type,
    sync_body: TokenStream,
}

impl Parts {
    fn of(mut function: ItemFn) -> syn::Result<Self> {
        let mut inputs = std::mem::take(&mut function.sig.inputs).into_iter();
        let context = match inputs.next() {
            Some(FnArg::Typed(argument)) if is_context(&argument.ty) => *argument.pat,
            Some(other) => {
                let text = format!("the first parameter must be the context: {FORM}");
                return Err(syn::Error::new(other.span(), text));
            }
            None => {
                let text = format!("the context is missing: {FORM}");
                return Err(syn::Error::new(function.sig.ident.span(), text));
            }
        };
        let (mut arguments, mut patterns) = (Vec::new(), Vec::new());
        for (index, input) in inputs.enumerate() {
            let FnArg::Typed(mut argument) = input else {
                return Err(syn::Error::new(input.span(), FORM));
            };
            *argument.ty = with_lifetimes(&argument.ty)?;
            if let Type::ImplTrait(written) = &*argument.ty {
                let name = format_ident!("Argument{index}");
                let bounds = &written.bounds;
                let parameter: GenericParam = parse_quote!(#name: #bounds);
                function.sig.generics.params.push(parameter);
                *argument.ty = parse_quote!(#name);
            }
            arguments.push((format_ident!("argument_{index}"), *argument.ty));
            patterns.push(*argument.pat);
        }
        let both: TypeParamBound = TypeParamBound::Lifetime(both());
        for parameter in &mut function.sig.generics.params {
            match parameter {
                GenericParam::Type(parameter) => parameter.bounds.push(both.clone()),
                GenericParam::Lifetime(parameter) => parameter.bounds.push(self::both()),
                GenericParam::Const(_) => {}
            }
        }
        let output = match &function.sig.output {
            ReturnType::Default => parse_quote!(()),
            ReturnType::Type(_, ty) => (**ty).clone(),
        };
        if let Type::ImplTrait(written) = &output {
            return Err(syn::Error::new(
                written.span(),
                "a function under `#[both]` needs a named result type: write a type instead of `impl …`",
            ));
        }
        let output = with_lifetimes(&output)?;
        let block = &function.block;
        let sync_body = without_await(quote!(#block))?;
        Ok(Self {
            function,
            arguments,
            patterns,
            context,
            output,
            sync_body,
        })
    }

    fn function(&self) -> TokenStream {
        let ItemFn {
            attrs, vis, block, ..
        } = &self.function;
        let (name, generics) = (&self.function.sig.ident, &self.function.sig.generics);
        let (parameters, conditions) = (&generics.params, &generics.where_clause);
        // Rust wants lifetimes before other parameters.
        let (lifetimes, others): (Vec<_>, Vec<_>) = parameters
            .iter()
            .partition(|parameter| matches!(parameter, GenericParam::Lifetime(_)));
        let (names, types): (Vec<_>, Vec<_>) =
            self.arguments.iter().map(|(name, ty)| (name, ty)).unzip();
        let (patterns, context, output) = (&self.patterns, &self.context, &self.output);
        let sync_body = &self.sync_body;
        let mode = Ident::new("ModeOfCaller", Span::mixed_site());
        let cx = Ident::new("cx", Span::mixed_site());
        let (sync, asynch) = (
            Ident::new("sync_text", Span::mixed_site()),
            Ident::new("async_text", Span::mixed_site()),
        );
        quote! {
            #(#attrs)*
            #vis fn #name<'both, #(#lifetimes,)* #(#others,)* #mode: ::amphi_sdk::mode::Mode>(
                #cx: &'both ::amphi_sdk::Context<#mode>,
                #(#names: #types,)*
            ) -> <#mode as ::amphi_sdk::mode::Mode>::Output<'both, #output>
            #conditions
            {
                #[allow(unused_mut, unused_braces, clippy::needless_pass_by_value, clippy::trivially_copy_pass_by_ref, reason = "the user wrote the async function; these lints would be about the sync one")]
                fn #sync<'both, #(#lifetimes,)* #(#others,)*>(
                    #context: &'both ::amphi_sdk::sync::Context,
                    (#(#patterns,)*): (#(#types,)*),
                ) -> #output
                #conditions
                #sync_body

                fn #asynch<'both, #(#lifetimes,)* #(#others,)*>(
                    #context: &'both ::amphi_sdk::asynch::Context,
                    (#(#patterns,)*): (#(#types,)*),
                ) -> ::core::pin::Pin<::std::boxed::Box<dyn ::core::future::Future<Output = #output> + 'both>>
                #conditions
                {
                    ::std::boxed::Box::pin(async move {
                        let output: #output = #block;
                        output
                    })
                }

                <#mode as ::amphi_sdk::mode::Mode>::choose(#cx, (#(#names,)*), #sync, #asynch)
            }
        }
    }
}

fn both() -> Lifetime {
    Lifetime::new("'both", Span::call_site())
}

/// Whether this is `&Context`.
fn is_context(ty: &Type) -> bool {
    let Type::Reference(TypeReference {
        elem,
        mutability: None,
        ..
    }) = ty
    else {
        return false;
    };
    let Type::Path(path) = &**elem else {
        return false;
    };
    let last = path.path.segments.last();
    last.is_some_and(|last| {
        last.ident == "Context" && matches!(last.arguments, PathArguments::None)
    })
}

/// Gives the lifetime of the context, `'both`, to references without a lifetime.
fn with_lifetimes(ty: &Type) -> syn::Result<Type> {
    syn::parse2(named(quote!(#ty)))
}

fn named(tokens: TokenStream) -> TokenStream {
    let mut made = TokenStream::new();
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(and) if and.as_char() == '&' => {
                made.extend([TokenTree::Punct(and)]);
                let has_one =
                    matches!(tokens.peek(), Some(TokenTree::Punct(tick)) if tick.as_char() == '\'');
                if !has_one {
                    made.extend(both().to_token_stream());
                }
            }
            TokenTree::Punct(tick) if tick.as_char() == '\'' && next_is(&mut tokens, "_") => {
                tokens.next();
                made.extend(both().to_token_stream());
            }
            // An elided lifetime in `Fn(&T)` belongs to that function type, so it stays. In a tuple, it becomes
            // `'both`.
            TokenTree::Group(group) => {
                let of_function = group.delimiter() == Delimiter::Parenthesis && after_name(&made);
                let inner = match of_function {
                    true => group.stream(),
                    false => named(group.stream()),
                };
                let mut group = Group::new(group.delimiter(), inner);
                group.set_span(group.span());
                made.extend([TokenTree::Group(group)]);
            }
            other => made.extend([other]),
        }
    }
    made
}

/// Whether the last token is a name, so that parentheses after it belong to it, as in `Fn(…)`.
fn after_name(tokens: &TokenStream) -> bool {
    matches!(tokens.clone().into_iter().last(), Some(TokenTree::Ident(_)))
}

/// The tokens for the sync function: without `.await`, and without the `async` of closures.
fn without_await(tokens: TokenStream) -> syn::Result<TokenStream> {
    let mut kept: Vec<TokenTree> = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match &token {
            TokenTree::Punct(dot) if dot.as_char() == '.' && next_is(&mut tokens, "await") => {
                tokens.next();
                continue;
            }
            TokenTree::Ident(word) if word == "async" => {
                if is_closure(&mut tokens) {
                    continue;
                }
                return Err(syn::Error::new(
                    word.span(),
                    "an `async` block has no sync form: write its content without the block, or write two functions",
                ));
            }
            // A method of one of these names, as in `cx.socket().join(…)`, is another one.
            TokenTree::Ident(word)
                if JOINS.iter().any(|join| word == join)
                    && !matches!(kept.last(), Some(TokenTree::Punct(dot)) if dot.as_char() == '.') =>
            {
                let text = format!(
                    "`{word}` waits for several things at once, which sync views cannot do: await one after the other, or write two functions"
                );
                return Err(syn::Error::new(word.span(), text));
            }
            _ => {}
        }
        kept.push(match token {
            TokenTree::Group(group) => {
                let mut inner = Group::new(group.delimiter(), without_await(group.stream())?);
                inner.set_span(group.span());
                TokenTree::Group(inner)
            }
            other => other,
        });
    }
    Ok(kept.into_iter().collect())
}

const JOINS: [&str; 4] = ["join", "try_join", "join_all", "try_join_all"];

type Tokens = std::iter::Peekable<proc_macro2::token_stream::IntoIter>;

fn next_is(tokens: &mut Tokens, wanted: &str) -> bool {
    matches!(tokens.peek(), Some(TokenTree::Ident(word)) if word == wanted)
}

/// Whether the `async` before these tokens belongs to a closure.
fn is_closure(tokens: &mut Tokens) -> bool {
    match tokens.peek() {
        Some(TokenTree::Punct(bar)) => bar.as_char() == '|',
        // `async move |…|` is a closure. In the block `async move { … }`, a group in braces follows `move`.
        Some(TokenTree::Ident(word)) if word == "move" => {
            let mut rest = tokens.clone();
            rest.next();
            !matches!(rest.next(), Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace)
        }
        _ => false,
    }
}

/// The output of `#[extractor]`: what `#[both]` makes of the function, and an extractor that calls the function.
fn extractor(function: ItemFn) -> syn::Result<TokenStream> {
    let made = match &function.sig.output {
        ReturnType::Type(_, ty) => of_result(ty),
        ReturnType::Default => None,
    };
    let Some(made) = made else {
        return Err(syn::Error::new(
            function.sig.ident.span(),
            "an extractor returns `Result<T>`, and views take `T`: write `#[extractor] async fn user(cx: &Context, session: Session) -> Result<User>`",
        ));
    };
    let parts = Parts::of(function)?;
    let name = &parts.function.sig.ident;
    let (mut steps, mut arguments, mut taken) = (TokenStream::new(), Vec::new(), Vec::new());
    for (variable, ty) in &parts.arguments {
        if matches!(ty, Type::Reference(reference) if reference.mutability.is_some()) {
            arguments.push(quote!(request));
            continue;
        }
        steps.extend(quote::quote_spanned! {ty.span()=>
            const {
                ::core::assert!(
                    ::core::matches!(<#ty as ::amphi_sdk::FromRequest>::BODY, ::amphi_sdk::extract::BodyUse::Unused)
                        && !<#ty as ::amphi_sdk::FromRequest>::LOADS,
                    "an extractor can take extractors that read the head of the request (`Path`, `Query`, `Headers`, `Cookies`, `Session`, `Csrf`), and none that is made by `#[extractor]`: put the body of that one into a function with `#[both]`, and call it from both"
                );
            }
            let #variable = match <#ty as ::amphi_sdk::FromRequest>::from_request(cx, request) {
                ::core::result::Result::Ok(value) => value,
                ::core::result::Result::Err(refused) => {
                    return <M as ::amphi_sdk::mode::Mode>::ready(::core::result::Result::Err(refused));
                }
            };
        });
        arguments.push(quote!(#variable));
        taken.push(ty);
    }
    let both = parts.function();
    Ok(quote! {
        #both

        impl ::amphi_sdk::FromRequest for #made {
            const LOADS: bool = true;

            fn check_settings(setting: ::amphi_sdk::extract::Settings<'_>) -> ::amphi_sdk::Result<()> {
                #(<#taken as ::amphi_sdk::FromRequest>::check_settings(setting)?;)*
                ::core::result::Result::Ok(())
            }

            fn from_request<M: ::amphi_sdk::mode::Mode>(
                _: &::amphi_sdk::Context<M>,
                _: &mut ::amphi_sdk::Request,
            ) -> ::amphi_sdk::Result<Self> {
                ::core::result::Result::Err(::amphi_sdk::Error::internal(
                    "this extractor waits for the host: call `load` instead of `from_request`",
                ))
            }

            fn load<'a, M: ::amphi_sdk::mode::Mode>(
                cx: &'a ::amphi_sdk::Context<M>,
                request: &'a mut ::amphi_sdk::Request,
            ) -> <M as ::amphi_sdk::mode::Mode>::Output<'a, ::amphi_sdk::Result<Self>>
            where
                Self: 'a,
            {
                #steps
                #name(cx, #(#arguments),*)
            }
        }
    })
}

/// The `T` of `Result<T>`.
fn of_result(ty: &Type) -> Option<Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last()?;
    let PathArguments::AngleBracketed(AngleBracketedGenericArguments { args, .. }) =
        &last.arguments
    else {
        return None;
    };
    match (last.ident == "Result", args.first()?) {
        (true, GenericArgument::Type(ty)) => Some(ty.clone()),
        _ => None,
    }
}
