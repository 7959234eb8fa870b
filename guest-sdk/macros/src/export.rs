//! `export!`: makes tools the exports of the component.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{Error, Path, Token, parse_quote_spanned};

pub(crate) fn expand(tools: TokenStream) -> TokenStream {
    match Punctuated::<Path, Token![,]>::parse_terminated.parse2(tools) {
        Ok(paths) if paths.is_empty() => {
            let message = "name the tools of this component: `estop_tool::export!(first, second);`";
            Error::new(proc_macro2::Span::call_site(), message).into_compile_error()
        }
        Ok(paths) => exports(&paths.into_iter().map(from_here).collect::<Vec<_>>()),
        Err(error) => error.into_compile_error(),
    }
}

/// The path begins in the module where `export!` stands. Otherwise a tool that is called as its crate, or as
/// one that it depends on, would be ambiguous.
fn from_here(path: Path) -> Path {
    let Some(first) = path.segments.first().map(|segment| segment.ident.clone()) else { return path };
    if path.leading_colon.is_some() || ["crate", "self", "super"].iter().any(|anchor| first == anchor) {
        return path;
    }
    parse_quote_spanned!(first.span()=> self::#path)
}

fn exports(paths: &[Path]) -> TokenStream {
    let mut aliases = Vec::new();
    let mut entries = Vec::new();
    let mut unique = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        let Some(last) = path.segments.last() else {
            continue;
        };
        let span = last.ident.span();
        let alias = format_ident!("Tool{index}", span = span);
        entries.push(quote_spanned!(span=> ::estop_tool::__private::Entry::of::<#alias>()));
        unique.push(quote_spanned! {span=>
            const _: () = ::core::assert!(
                !::estop_tool::__private::is_name_repeated(
                    <Tools as ::estop_tool::__private::ToolSet>::TOOLS,
                    #index,
                ),
                "another tool of this component has this name",
            );
        });
        aliases.push(alias);
    }
    // `use` brings in a function's name as well, so a function that is no tool is found; the type then
    // comes from the glob, and the error says that it is no tool instead of that it is no type.
    quote! {
        const _: () = {
            #[allow(unused_imports)]
            use no_tools::*;
            #[allow(dead_code)]
            mod no_tools {
                #(pub struct #aliases;)*
            }
            #(#[allow(unused_imports)] use #paths as #aliases;)*

            struct Tools;
            impl ::estop_tool::__private::ToolSet for Tools {
                const TOOLS: &'static [::estop_tool::__private::Entry] = &[#(#entries),*];
            }
            #(#unique)*

            #[cfg(target_arch = "wasm32")]
            ::estop_tool::__private::bindings::export_guest!(
                Tools with_types_in ::estop_tool::__private::bindings
            );
        };
    }
}
