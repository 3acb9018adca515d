//! `#[view]`: leaves the function unchanged, and adds a type of the same name that implements the trait `View`.
//!
//! The constant `SYNC` of a sync view, or `ASYNC` of an async view, is a function that runs the extractors and then the
//! view. A component's table of views uses only the constant of the component's mode. So views of the other mode are
//! type-checked, but the component does not contain them.

use crate::attribute::{
    MiddlewareAttribute, Options, SocketAttribute, SubscriberAttribute, ViewAttribute,
};
use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{FnArg, Ident, ItemFn, PathArguments, ReturnType, Type};

/// The kind of function that an attribute makes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    View,
    Middleware,
    Subscriber,
    Socket,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::View => "view",
            Role::Middleware => "middleware",
            Role::Subscriber => "subscriber",
            Role::Socket => "socket",
        }
    }
}

pub(crate) fn expand(role: Role, attribute: TokenStream, item: TokenStream) -> TokenStream {
    let function = match syn::parse2::<ItemFn>(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            let name = role.name();
            let text = format!("`#[{name}]` goes on a `fn` or an `async fn` outside of any `impl`");
            let error = syn::Error::new(error.span(), text).into_compile_error();
            return quote!(#item #error);
        }
    };
    match describe(role, attribute, function.clone()) {
        Ok(tokens) => tokens,
        Err(error) => broken(function, &error),
    }
}

/// The output after an error in the attribute: the error, the function, and an incomplete view of the same name.
/// Function and view are there so that the compiler reports no further errors about their absence.
fn broken(mut function: ItemFn, error: &syn::Error) -> TokenStream {
    let mode = mode(&function);
    for argument in &mut function.sig.inputs {
        let FnArg::Typed(argument) = argument else {
            continue;
        };
        let ty = match &mut *argument.ty {
            Type::Reference(reference) => &mut *reference.elem,
            ty => ty,
        };
        if let Type::Path(path) = ty
            && let Some(name) = path.path.get_ident().cloned()
            && (name == "Context" || name == "Next")
        {
            let mode = Ident::new(mode, name.span());
            *ty = syn::parse_quote!(::amphi_sdk::#mode::#name);
        }
    }
    let error = error.to_compile_error();
    if function.sig.receiver().is_some() {
        return quote!(#function #error);
    }
    let (visibility, name) = (&function.vis, &function.sig.ident);
    quote! {
        #[allow(dead_code, reason = "its attribute is wrong, so it is not a view")]
        #function

        #[allow(non_camel_case_types, dead_code, reason = "named like the function")]
        #visibility enum #name {}

        impl ::amphi_sdk::__private::View for #name {
            const NAME: &'static str = "";
            const KIND: ::amphi_sdk::__private::Kind = ::amphi_sdk::__private::Kind::Middleware;
            const ATOMIC: ::core::option::Option<bool> = ::core::option::Option::None;
            const CPU_MS: ::core::option::Option<u32> = ::core::option::Option::None;
            const TIMEOUT_MS: ::core::option::Option<u32> = ::core::option::Option::None;
        }

        #error
    }
}

/// The error for an attribute that takes no arguments but has some; `None` when it has none.
pub(crate) fn without_arguments(name: &str, attribute: TokenStream) -> Option<TokenStream> {
    let first = attribute.into_iter().next()?;
    let text = format!("`#[{name}]` takes no arguments");
    Some(syn::Error::new(first.span(), text).into_compile_error())
}

/// The module of the SDK with the types of the function's mode.
fn mode(function: &ItemFn) -> &'static str {
    match function.sig.asyncness {
        Some(_) => "asynch",
        None => "sync",
    }
}

/// Reads the attribute: the `Kind` of the view, and the options.
fn read(role: Role, attribute: TokenStream) -> syn::Result<(TokenStream, Options)> {
    let kind = quote!(::amphi_sdk::__private::Kind);
    Ok(match role {
        Role::View => {
            let ViewAttribute {
                method,
                pattern,
                options,
            } = syn::parse2(attribute)?;
            (
                quote!(#kind::Route { method: #method, pattern: #pattern }),
                options,
            )
        }
        Role::Middleware => {
            let MiddlewareAttribute(options) = syn::parse2(attribute)?;
            (quote!(#kind::Middleware), options)
        }
        Role::Subscriber => {
            let SubscriberAttribute { topic, options } = syn::parse2(attribute)?;
            (quote!(#kind::Subscriber(#topic)), options)
        }
        Role::Socket => {
            let SocketAttribute {
                pattern,
                mut options,
            } = syn::parse2(attribute)?;
            let origins = options.origins.take().unwrap_or_default();
            (
                quote!(#kind::Socket { pattern: #pattern, origins: &[#(#origins),*] }),
                options,
            )
        }
    })
}

fn describe(role: Role, attribute: TokenStream, mut function: ItemFn) -> syn::Result<TokenStream> {
    check_signature(&function)?;
    let (kind, options) = read(role, attribute)?;
    let (atomic, cpu_ms, timeout_ms) = (
        option(options.atomic),
        option(options.cpu_ms),
        option(options.timeout_ms),
    );
    let (read_only, retries) = (
        options.read_only.unwrap_or(false),
        options.retries.unwrap_or(0),
    );
    let stream_body = options.stream_body.unwrap_or(false);
    let isolation = option(
        (options.isolation).map(|level| quote!(::amphi_sdk::__private::types::Isolation::#level)),
    );

    let layers = options.middleware.unwrap_or_default();
    let layers = layers
        .iter()
        .map(|path| quote_spanned!(path.span()=> ::amphi_sdk::__private::Layer::of::<#path>()));
    let layers = quote!(#(#layers),*);

    let takes_context = resolve(role, &mut function)?;
    let glue = glue(role, &function, takes_context)?;
    let name = &function.sig.ident;
    let visibility = &function.vis;
    let title = name.to_string();
    let about = format!("The view [`{title}`](fn@{title}), for `views!` and tests.");

    Ok(quote! {
        #[allow(dead_code, reason = "a build of the other mode leaves this view out")]
        #function

        #[doc = #about]
        #[allow(non_camel_case_types, reason = "named like the view it describes")]
        #visibility enum #name {}

        ::amphi_sdk::__declare_view!(#title);

        impl ::amphi_sdk::__private::View for #name {
            const NAME: &'static str =
                ::amphi_sdk::__private::without_crate(::core::concat!(::core::module_path!(), "::", #title));
            const KIND: ::amphi_sdk::__private::Kind = #kind;
            const READ_ONLY: bool = #read_only;
            const ISOLATION: ::core::option::Option<::amphi_sdk::__private::types::Isolation> = #isolation;
            const RETRIES: u32 = #retries;
            const ATOMIC: ::core::option::Option<bool> = #atomic;
            const CPU_MS: ::core::option::Option<u32> = #cpu_ms;
            const TIMEOUT_MS: ::core::option::Option<u32> = #timeout_ms;
            const STREAM_BODY: bool = #stream_body;
            const MIDDLEWARE: &'static [::amphi_sdk::__private::Layer] = &[#layers];
            #glue
        }
    })
}

/// The host calls a view with a request alone. So the function cannot have a receiver or type parameters.
fn check_signature(function: &ItemFn) -> syn::Result<()> {
    let signature = &function.sig;
    if let Some(receiver) = signature.receiver() {
        return Err(syn::Error::new(
            receiver.span(),
            "a view is a free function: the host has no `self` to call it on; take `cx: &Context`",
        ));
    }
    if signature.generics.type_params().next().is_some()
        || signature.generics.const_params().next().is_some()
    {
        return Err(syn::Error::new(
            signature.generics.span(),
            "a view cannot be generic: the host would not know which types to choose",
        ));
    }
    for argument in &signature.inputs {
        if let FnArg::Typed(argument) = argument
            && let Type::ImplTrait(ty) = &*argument.ty
        {
            return Err(syn::Error::new(
                ty.span(),
                "a view cannot be generic: name the extractor's type instead of `impl …`",
            ));
        }
    }
    Ok(())
}

/// Replaces the types `&Context` (of the first parameter) and `Next` by the types of the function's mode, such as
/// `&sync::Context`. Returns whether the function takes a context.
fn resolve(role: Role, function: &mut ItemFn) -> syn::Result<bool> {
    let mode = mode(function);
    let mut takes_context = false;
    for (index, argument) in function.sig.inputs.iter_mut().enumerate() {
        let FnArg::Typed(argument) = argument else {
            continue;
        };
        if last_name(&argument.ty).is_some_and(|name| name == "Next") {
            if role != Role::Middleware {
                return Err(syn::Error::new(
                    argument.ty.span(),
                    "only `#[middleware]` takes `Next`: nothing comes after a view",
                ));
            }
            if let Type::Path(path) = &*argument.ty
                && path.path.segments.len() == 1
                && matches!(path.path.segments[0].arguments, PathArguments::None)
            {
                let span = argument.ty.span();
                let mode = Ident::new(mode, span);
                *argument.ty = syn::parse2(quote_spanned!(span=> ::amphi_sdk::#mode::Next))?;
            }
            continue;
        }
        if role != Role::Socket && last_name(&argument.ty).is_some_and(|name| name == "SocketEvent")
        {
            return Err(syn::Error::new(
                argument.ty.span(),
                "only `#[socket]` takes `SocketEvent`: no other function is called for the events of a web socket",
            ));
        }
        if role != Role::Socket && last_name(&argument.ty).is_some_and(|name| name == "Socket") {
            return Err(syn::Error::new(
                argument.ty.span(),
                "only `#[socket]` takes `Socket`: no other function keeps the conversation of a web socket",
            ));
        }
        let by_reference = matches!(&*argument.ty, Type::Reference(_));
        let (ty, mutable) = match &mut *argument.ty {
            Type::Reference(reference) => (&mut *reference.elem, reference.mutability.is_some()),
            ty => (ty, false),
        };
        let Type::Path(path) = ty else { continue };
        let Some(last) = path.path.segments.last() else {
            continue;
        };
        if last.ident != "Context" {
            continue;
        }
        if index > 0 || !by_reference || mutable {
            return Err(syn::Error::new(
                argument.ty.span(),
                "the context must be the first parameter of a view, and a reference: `cx: &Context`",
            ));
        }
        let bare = path.path.segments.len() == 1 && matches!(last.arguments, PathArguments::None);
        if bare {
            let span = last.ident.span();
            let mode = Ident::new(mode, span);
            let context = Ident::new("Context", span);
            *ty = syn::parse2(quote_spanned!(span=> ::amphi_sdk::#mode::#context))?;
        }
        takes_context = true;
    }
    Ok(takes_context)
}

/// The last segment of a type's path.
fn last_name(ty: &Type) -> Option<&Ident> {
    match ty {
        Type::Path(path) => path.path.segments.last().map(|segment| &segment.ident),
        _ => None,
    }
}

/// Removes `Request` and `Next` from the parameters of middleware: they are not extractors.
fn take_rest(role: Role, name: &Ident, parameters: &mut Vec<&Type>) -> syn::Result<()> {
    if role != Role::Middleware {
        return Ok(());
    }
    let form = "the last two parameters of middleware are `request: Request, next: Next`";
    for (wanted, at) in [("Next", "second"), ("Request", "first")] {
        match parameters.pop() {
            Some(ty) if last_name(ty).is_some_and(|name| name == wanted) => {}
            Some(ty) => {
                let text = format!("{form}: this one must be `{wanted}`, the {at} of the two");
                return Err(syn::Error::new(ty.span(), text));
            }
            None => return Err(syn::Error::new(name.span(), form)),
        }
    }
    Ok(())
}

/// The constant `SYNC` or `ASYNC`. Each step has the span of the user's code that it is about, so that rustc reports a wrong
/// type there.
fn glue(role: Role, function: &ItemFn, takes_context: bool) -> syn::Result<TokenStream> {
    let signature = &function.sig;
    let name = &signature.ident;
    let cx = Ident::new("cx", Span::mixed_site());
    let request = Ident::new("request", Span::mixed_site());
    let is_async = signature.asyncness.is_some();

    let mut extractors: Vec<&Type> = signature
        .inputs
        .iter()
        .filter_map(|argument| match argument {
            FnArg::Typed(argument) => Some(&*argument.ty),
            FnArg::Receiver(_) => None,
        })
        .collect();
    let context = takes_context.then(|| {
        let ty = extractors.remove(0);
        quote_spanned!(ty.span()=> &#cx,)
    });

    take_rest(role, name, &mut extractors)?;
    let converses = role == Role::Socket && takes_socket(name, &mut extractors, is_async)?;
    // In a view, only the last parameter may read the body. In middleware, no extractor may: `Request` has the body. What
    // opens a socket has none.
    let last = match role {
        Role::Middleware => extractors.len(),
        _ if converses => extractors.len(),
        _ => extractors.len().saturating_sub(1),
    };
    let rest = (role == Role::Middleware).then(|| quote!(#request, ::amphi_sdk::Next::of(&#cx)));

    let checks = extractors
        .iter()
        .map(|ty| quote_spanned!(ty.span()=> <#ty as ::amphi_sdk::FromRequest>::check_settings));
    let checks = quote! {
        const CHECKS: &'static [::amphi_sdk::__private::SettingsCheck] = &[#(#checks),*];
    };
    let mut steps = TokenStream::new();
    let mut arguments = Vec::new();
    for (index, ty) in extractors.into_iter().enumerate() {
        let variable = Ident::new(&format!("argument_{index}"), Span::mixed_site());
        let extractor = quote_spanned!(ty.span()=> <#ty as ::amphi_sdk::FromRequest>);
        if index < last {
            let problem = match role {
                Role::Middleware => {
                    "this extractor reads the request's body, which middleware passes on: read it with `cx.load(&mut request)`"
                }
                Role::Socket => {
                    "this extractor reads the request's body: the request that opens a web socket has none"
                }
                _ => {
                    "this extractor reads the request's body: it must be the last parameter of the view, and the only one that does"
                }
            };
            steps.extend(quote_spanned! {ty.span()=>
                const _: () = ::core::assert!(
                    ::core::matches!(#extractor::BODY, ::amphi_sdk::extract::BodyUse::Unused),
                    #problem
                );
            });
        }
        let wants_body = quote_spanned!(ty.span()=> ::core::matches!(#extractor::BODY, ::amphi_sdk::extract::BodyUse::Whole));
        let wants_beginning = quote_spanned!(ty.span()=> ::core::matches!(#extractor::BODY, ::amphi_sdk::extract::BodyUse::Beginning));
        steps.extend(if is_async {
            // `load_body_async` returns a boxed future, so a component whose views read no body has no code for reading
            // one.
            quote! {
                if #wants_body && let ::core::option::Option::Some(loading) =
                    ::amphi_sdk::__private::load_body_async(&#cx, &mut #request)
                {
                    loading.await?;
                }
                if #wants_beginning && let ::core::option::Option::Some(loading) =
                    ::amphi_sdk::__private::begin_body_async(&#cx, &mut #request)
                {
                    loading.await?;
                }
            }
        } else {
            quote! {
                if #wants_body {
                    ::amphi_sdk::__private::load_body(&#cx, &mut #request)?;
                }
                if #wants_beginning {
                    ::amphi_sdk::__private::begin_body(&#cx, &mut #request)?;
                }
            }
        });
        let wait = is_async.then(|| quote!(.await));
        steps.extend(quote_spanned! {ty.span()=>
            let #variable = if #extractor::LOADS {
                #extractor::load(&#cx, &mut #request)#wait?
            } else {
                #extractor::from_request(&#cx, &mut #request)?
            };
        });
        arguments.push(variable);
    }

    let place = match &signature.output {
        ReturnType::Type(_, ty) => ty.span(),
        ReturnType::Default => name.span(),
    };
    let wait = is_async.then(|| quote!(.await));
    let output = Ident::new("output", place);
    // An extractor may change the request, so what the event is has to be read before.
    let opens = Ident::new("opens", Span::mixed_site());
    let (before, respond) = match role {
        Role::Socket => (
            quote!(let #opens = #request.method == "GET";),
            quote_spanned!(place=> ::amphi_sdk::__private::respond_to_event(&#cx, #opens, #output)),
        ),
        _ => (
            TokenStream::new(),
            quote_spanned!(place=> ::amphi_sdk::__private::respond(&#cx, #output)),
        ),
    };
    let call = if converses {
        let socket = Ident::new("socket", Span::mixed_site());
        let conversation = quote_spanned!(place=> ::amphi_sdk::__private::conversation);
        quote! {
            if #request.method != "GET" {
                return ::core::result::Result::Ok(::amphi_sdk::__private::of_other_form());
            }
            #steps
            let #output = #conversation(
                &#cx,
                move |#cx: ::amphi_sdk::asynch::Context, #socket: ::amphi_sdk::Socket| async move {
                    #name(#context #(#arguments,)* #socket).await
                },
            );
            #output
        }
    } else {
        quote! {
            #before
            #steps
            let #output = #name(#context #(#arguments,)* #rest)#wait;
            #respond
        }
    };
    let unused = quote! {
        #[allow(unused_mut, unused_variables, reason = "a view may take neither the context nor extractors")]
    };

    Ok(if is_async {
        quote! {
            #checks
            const ASYNC: ::core::option::Option<::amphi_sdk::__private::AsyncView> = ::core::option::Option::Some({
                #unused
                fn call(
                    #cx: ::amphi_sdk::asynch::Context,
                    mut #request: ::amphi_sdk::Request,
                ) -> ::amphi_sdk::__private::Outcome {
                    ::std::boxed::Box::pin(async move { #call })
                }
                call
            });
        }
    } else {
        quote! {
            #checks
            const SYNC: ::core::option::Option<::amphi_sdk::__private::SyncView> = ::core::option::Option::Some({
                #unused
                fn call(
                    #cx: ::amphi_sdk::sync::Context,
                    mut #request: ::amphi_sdk::Request,
                ) -> ::amphi_sdk::Result<::amphi_sdk::Response> {
                    #call
                }
                call
            });
        }
    })
}

/// Whether a socket keeps the conversation: its last parameter is `Socket`, which is no extractor, and not `SocketEvent`.
fn takes_socket(name: &Ident, extractors: &mut Vec<&Type>, is_async: bool) -> syn::Result<bool> {
    let last = extractors.last().copied();
    match last.and_then(last_name) {
        Some(event) if event == "SocketEvent" => Ok(false),
        Some(socket) if socket == "Socket" && is_async => {
            extractors.pop();
            Ok(true)
        }
        Some(socket) if socket == "Socket" => Err(syn::Error::new(
            socket.span(),
            "a sync function is called for each event of a web socket: take `event: SocketEvent`. Only an `async fn` can keep the conversation, and take `Socket`",
        )),
        _ => Err(syn::Error::new(
            name.span(),
            "the last parameter of a socket is `event: SocketEvent`, or, for an `async fn` that keeps the conversation, `mut socket: Socket`",
        )),
    }
}

fn option(value: Option<impl ToTokens>) -> TokenStream {
    match value {
        Some(value) => quote!(::core::option::Option::Some(#value)),
        None => quote!(::core::option::Option::None),
    }
}
