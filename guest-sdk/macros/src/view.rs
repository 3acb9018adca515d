//! `#[view]`: leaves the function alone and describes it on a type of the same name.
//!
//! The description of a sync view is a constant `SYNC`, of an async view `ASYNC`: a function that takes a
//! raw request through the extractors into the view. A component's table reads only the constant of the
//! mode it is built for, so views of the other mode are type-checked and never compiled in.

use crate::attribute::ViewAttribute;
use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{FnArg, Ident, ItemFn, PathArguments, ReturnType, Type};

pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let described = syn::parse2::<ItemFn>(item.clone())
        .map_err(|error| {
            syn::Error::new(
                error.span(),
                "`#[view]` goes on a `fn` or an `async fn` outside of any `impl`",
            )
        })
        .and_then(|function| describe(attribute, function));
    match described {
        Ok(tokens) => tokens,
        // The function stays, so that this is the only error about it.
        Err(error) => {
            let error = error.into_compile_error();
            quote!(#item #error)
        }
    }
}

fn describe(attribute: TokenStream, mut function: ItemFn) -> syn::Result<TokenStream> {
    check_signature(&function)?;
    let ViewAttribute {
        method,
        pattern,
        atomic,
        cpu_ms,
        timeout_ms,
    } = syn::parse2(attribute)?;
    let (atomic, cpu_ms, timeout_ms) = (option(atomic), option(cpu_ms), option(timeout_ms));

    let takes_context = resolve_context(&mut function)?;
    let glue = glue(&function, takes_context);
    let name = &function.sig.ident;
    let visibility = &function.vis;
    let title = name.to_string();
    let about = format!("The view [`{title}`](fn@{title}), for `views!` and tests.");

    Ok(quote! {
        #[allow(dead_code, reason = "a build of the other mode leaves this view out")]
        #function

        #[doc = #about]
        #[allow(non_camel_case_types, dead_code, reason = "named like the view it describes")]
        #visibility enum #name {}

        impl ::amphi_sdk::__private::View for #name {
            const NAME: &'static str =
                ::amphi_sdk::__private::without_crate(::core::concat!(::core::module_path!(), "::", #title));
            const METHOD: &'static str = #method;
            const PATTERN: &'static str = #pattern;
            const ATOMIC: ::core::option::Option<bool> = #atomic;
            const CPU_MS: ::core::option::Option<u32> = #cpu_ms;
            const TIMEOUT_MS: ::core::option::Option<u32> = #timeout_ms;
            #glue
        }
    })
}

/// A view is called by the host with a request: anything a caller would have to choose is an error.
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

/// Turns a first parameter `&Context` into the context of the function's mode, and tells whether there
/// is a context at all.
fn resolve_context(function: &mut ItemFn) -> syn::Result<bool> {
    let mode = if function.sig.asyncness.is_some() {
        "asynch"
    } else {
        "sync"
    };
    for (index, argument) in function.sig.inputs.iter_mut().enumerate() {
        let FnArg::Typed(argument) = argument else {
            continue;
        };
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
                "the context is the first parameter of a view and shared: `cx: &Context`",
            ));
        }
        let bare = path.path.segments.len() == 1 && matches!(last.arguments, PathArguments::None);
        if bare {
            let span = last.ident.span();
            let mode = Ident::new(mode, span);
            let context = Ident::new("Context", span);
            *ty = syn::parse2(quote_spanned!(span=> ::amphi_sdk::#mode::#context))?;
        }
        return Ok(index == 0);
    }
    Ok(false)
}

/// The constant `SYNC` or `ASYNC`. Each step carries the place of the user's code it is about, because
/// that is where rustc then reports a type that does not fit.
fn glue(function: &ItemFn, takes_context: bool) -> TokenStream {
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

    let mut steps = TokenStream::new();
    let mut arguments = Vec::new();
    let last = extractors.len().saturating_sub(1);
    for (index, ty) in extractors.into_iter().enumerate() {
        let variable = Ident::new(&format!("argument_{index}"), Span::mixed_site());
        let extractor = quote_spanned!(ty.span()=> <#ty as ::amphi_sdk::FromRequest>);
        if index < last {
            steps.extend(quote_spanned! {ty.span()=>
                const _: () = ::core::assert!(
                    ::core::matches!(#extractor::BODY, ::amphi_sdk::extract::BodyUse::Unused),
                    "this extractor takes the request's body: it must be the last parameter of the view, and the only one that does"
                );
            });
        }
        let wants_body = quote_spanned!(ty.span()=> ::core::matches!(#extractor::BODY, ::amphi_sdk::extract::BodyUse::Whole));
        steps.extend(if is_async {
            // The future is behind a pointer, so that a view without a body leaves its code out.
            quote! {
                if #wants_body && let ::core::option::Option::Some(loading) =
                    ::amphi_sdk::__private::load_body_async(&#cx, &mut #request)
                {
                    loading.await?;
                }
            }
        } else {
            quote! {
                if #wants_body {
                    ::amphi_sdk::__private::load_body(&#cx, &mut #request)?;
                }
            }
        });
        steps.extend(quote_spanned! {ty.span()=>
            let #variable = #extractor::from_request(&#cx, &mut #request)?;
        });
        arguments.push(variable);
    }

    let place = match &signature.output {
        ReturnType::Type(_, ty) => ty.span(),
        ReturnType::Default => name.span(),
    };
    let wait = is_async.then(|| quote!(.await));
    let output = Ident::new("output", place);
    let respond = quote_spanned!(place=> ::amphi_sdk::__private::respond(#output));
    let call = quote! {
        #steps
        let #output = #name(#context #(#arguments),*)#wait;
        #respond
    };
    let unused = quote! {
        #[allow(unused_mut, unused_variables, reason = "a view may want neither context nor request")]
    };

    if is_async {
        quote! {
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
    }
}

fn option(value: Option<impl ToTokens>) -> TokenStream {
    match value {
        Some(value) => quote!(::core::option::Option::Some(#value)),
        None => quote!(::core::option::Option::None),
    }
}
