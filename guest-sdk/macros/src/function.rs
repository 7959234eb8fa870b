//! `#[tool]`: checks the function and adds a type of the same name that implements `Tool`.
//!
//! The type has braces, so it lives in the type namespace only and the function keeps its name.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Attribute, Error, Expr, ExprLit, FnArg, ItemFn, Lit, Meta, Result, ReturnType, Safety, Signature, Type};

use crate::options::{Options, checked_name};

/// The longest description, in bytes: a model reads those of all tools at once.
const MAX_DESCRIPTION_BYTES: usize = 4096;

/// Collects mistakes, so that the author sees all of them at once.
#[derive(Default)]
struct Mistakes(Option<Error>);

impl Mistakes {
    fn add(&mut self, error: Error) {
        match &mut self.0 {
            Some(all) => all.combine(error),
            None => self.0 = Some(error),
        }
    }

    fn at(&mut self, place: impl ToTokens, message: impl std::fmt::Display) {
        self.add(Error::new_spanned(place, message));
    }

    /// The value, or its default after taking note of the mistake.
    fn unwrap<T: Default>(&mut self, result: Result<T>) -> T {
        result.unwrap_or_else(|error| {
            self.add(error);
            T::default()
        })
    }
}

pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    let function: ItemFn = match syn::parse2(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            let is_function = item.clone().into_iter().any(|token| token.to_string() == "fn");
            let error = if is_function { error } else { Error::new_spanned(&item, "`#[tool]` stands on a function") };
            let error = error.into_compile_error();
            return quote!(#item #error);
        }
    };
    let mut mistakes = Mistakes::default();
    let options: Options = mistakes.unwrap(syn::parse2(options));
    check_signature(&function.sig, &mut mistakes);
    let description = mistakes.unwrap(description(&function));
    let ident = &function.sig.ident;
    let name = match options.name.clone() {
        Some(name) => name,
        None => mistakes.unwrap(checked_name(ident.unraw().to_string(), ident.span())),
    };
    let tool = match mistakes.0 {
        None => implementation(&function, &name, &description, &options),
        Some(error) => {
            let error = error.into_compile_error();
            let stand_in = match function.sig.receiver() {
                None => stand_in(&function),
                // No type can stand where methods stand.
                Some(_) => TokenStream::new(),
            };
            quote!(#error #stand_in)
        }
    };
    quote!(#item #tool)
}

fn check_signature(signature: &Signature, mistakes: &mut Mistakes) {
    if let Some(token) = &signature.asyncness {
        mistakes.at(token, "a tool is no `async fn`: the host suspends it where it waits");
    }
    if let Safety::Unsafe(token) = &signature.safety {
        mistakes.at(token, "a tool is no `unsafe fn`");
    }
    if let Some(abi) = &signature.abi {
        mistakes.at(abi, "a tool is an ordinary Rust function");
    }
    if !signature.generics.params.is_empty() {
        let params = &signature.generics.params;
        mistakes.at(params, "a tool is not generic: its schemas are those of certain types");
    }
    for (index, argument) in signature.inputs.iter().enumerate() {
        match argument {
            FnArg::Receiver(receiver) => {
                mistakes.at(receiver, "a tool is a function, not a method");
            }
            FnArg::Typed(_) if index > 0 => {
                let message = "a tool has one argument: put all that it needs into one struct";
                mistakes.at(argument, message);
            }
            FnArg::Typed(argument) => match &*argument.ty {
                Type::Reference(reference) => {
                    mistakes.at(reference, "a tool owns its input: take it by value");
                }
                Type::ImplTrait(anything) => {
                    mistakes.at(anything, "the input of a tool is a certain type");
                }
                _ => {}
            },
        }
    }
    match &signature.output {
        ReturnType::Default => {
            mistakes.at(&signature.ident, "a tool returns `Result<_, ToolError>`");
        }
        ReturnType::Type(_, returned) => {
            if let Type::ImplTrait(anything) = &**returned {
                mistakes.at(anything, "a tool returns `Result<_, ToolError>`");
            }
        }
    }
}

/// The doc comment, without the space that stands after `///`.
fn description(function: &ItemFn) -> Result<String> {
    let mut lines = Vec::new();
    let mut first = None;
    for attribute in &function.attrs {
        let Some(text) = doc(attribute)? else {
            continue;
        };
        first.get_or_insert(attribute);
        lines.extend(text.split('\n').map(|line| line.strip_prefix(' ').unwrap_or(line).to_owned()));
    }
    let description = lines.join("\n").trim().to_owned();
    let Some(first) = first.filter(|_| !description.is_empty()) else {
        let message = "a tool needs a doc comment: it is what the model reads to choose the tool";
        return Err(Error::new_spanned(&function.sig.ident, message));
    };
    let length = description.len();
    if length > MAX_DESCRIPTION_BYTES {
        let message = format!(
            "the description has {length} bytes, more than the {MAX_DESCRIPTION_BYTES} that a model \
             should have to read"
        );
        return Err(Error::new_spanned(first, message));
    }
    Ok(description)
}

/// The text of a `#[doc = "…"]`.
fn doc(attribute: &Attribute) -> Result<Option<String>> {
    let Meta::NameValue(pair) = &attribute.meta else {
        return Ok(None);
    };
    if !pair.path.is_ident("doc") {
        return Ok(None);
    }
    match &pair.value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Ok(Some(text.value())),
        other => Err(Error::new_spanned(other, "a tool's description is written out here")),
    }
}

fn implementation(function: &ItemFn, name: &str, description: &str, options: &Options) -> TokenStream {
    let ItemFn { vis, sig, .. } = function;
    let ident = &sig.ident;
    let version = match &options.version {
        Some(version) => quote!(#version),
        None => quote!(::core::env!("CARGO_PKG_VERSION")),
    };
    let [read_only, destructive, idempotent, open_world] =
        ["read_only", "destructive", "idempotent", "open_world"].map(|hint| options.has(hint));
    let (input, call) = match sig.inputs.first() {
        Some(FnArg::Typed(argument)) => (argument.ty.to_token_stream(), quote_spanned!(ident.span()=> #ident(input))),
        _ => (quote!(::estop_tool::NoInput), quote_spanned!(ident.span()=> { let _ = input; #ident() })),
    };
    let ReturnType::Type(_, returned) = &sig.output else {
        return TokenStream::new();
    };
    // Errors about the two types then point at them.
    let input_type = quote_spanned!(input.span()=> type Input = #input;);
    let returned_type = quote_spanned!(returned.span()=> type Returned = #returned;);
    quote! {
        #[doc(hidden)]
        #[allow(dead_code, non_camel_case_types)]
        #vis struct #ident {}

        #[automatically_derived]
        impl ::estop_tool::Tool for #ident {
            const NAME: &'static str = #name;
            const VERSION: &'static str = #version;
            const DESCRIPTION: &'static str = #description;
            const HINTS: ::estop_tool::Hints = ::estop_tool::Hints {
                read_only: #read_only,
                destructive: #destructive,
                idempotent: #idempotent,
                open_world: #open_world,
            };
            #input_type
            #returned_type
            fn run(input: Self::Input) -> Self::Returned {
                #call
            }
        }
    }
}

/// After a mistake: a tool that does nothing, so that `export!` does not complain as well.
fn stand_in(function: &ItemFn) -> TokenStream {
    let ItemFn { vis, sig, .. } = function;
    let ident = &sig.ident;
    let name = ident.to_string();
    quote! {
        #[doc(hidden)]
        #[allow(dead_code, non_camel_case_types)]
        #vis struct #ident {}

        impl ::estop_tool::Tool for #ident {
            const NAME: &'static str = #name;
            const VERSION: &'static str = "";
            const DESCRIPTION: &'static str = "";
            const HINTS: ::estop_tool::Hints = ::estop_tool::Hints {
                read_only: false,
                destructive: false,
                idempotent: false,
                open_world: false,
            };
            type Input = ::estop_tool::NoInput;
            type Returned = ::core::result::Result<(), ::estop_tool::ToolError>;
            fn run(_: Self::Input) -> Self::Returned {
                ::core::result::Result::Ok(())
            }
        }
    }
}
