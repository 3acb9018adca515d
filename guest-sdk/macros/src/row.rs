//! `#[derive(FromRow)]`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Field, Fields, LitStr};

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    syn::parse2(item)
        .and_then(derive)
        .unwrap_or_else(syn::Error::into_compile_error)
}

fn derive(input: DeriveInput) -> syn::Result<TokenStream> {
    let Data::Struct(data) = &input.data else {
        return Err(syn::Error::new(
            input.ident.span(),
            "`FromRow` can be derived for a struct with named fields",
        ));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(syn::Error::new(
            input.ident.span(),
            "`FromRow` reads columns by name, so the struct needs named fields; read by position into a tuple",
        ));
    };
    let owner = input.ident.to_string();
    let fields = fields
        .named
        .iter()
        .map(|field| read(field, &owner))
        .collect::<syn::Result<Vec<_>>>()?;
    let name = &input.ident;
    let (generics, arguments, conditions) = input.generics.split_for_impl();
    Ok(quote! {
        impl #generics ::amphi_sdk::FromRow for #name #arguments #conditions {
            fn from_row(row: &mut ::amphi_sdk::Row<'_>) -> ::amphi_sdk::Result<Self> {
                ::core::result::Result::Ok(Self { #(#fields),* })
            }
        }
    })
}

fn read(field: &Field, owner: &str) -> syn::Result<TokenStream> {
    let name = field
        .ident
        .as_ref()
        .expect("the fields were matched as named");
    let plain_name = name.to_string().trim_start_matches("r#").to_owned();
    let mut column = plain_name.clone();
    for attribute in field
        .attrs
        .iter()
        .filter(|attribute| attribute.path().is_ident("row"))
    {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("column") {
                return Err(meta.error("write `#[row(column = \"name\")]`"));
            }
            column = meta.value()?.parse::<LitStr>()?.value();
            Ok(())
        })?;
    }
    let place = format!("field `{plain_name}` of `{owner}`");
    let ty = &field.ty;
    Ok(quote_spanned!(ty.span()=> #name: row.take_for::<#ty>(#column, #place)?))
}
