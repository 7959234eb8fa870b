//! Says where a filter is wrong, and what is wrong.

use estop_tool::ToolError;
use jaq_core::compile::{self, Undefined};
use jaq_core::load::lex::Expect;
use jaq_core::load::{self, Error};

/// How much of the filter a message repeats, in characters.
const MAX_FOUND_CHARS: usize = 20;

pub(crate) fn of_loading(filter: &str, errors: load::Errors<&str, ()>) -> ToolError {
    let mistakes = errors.into_iter().flat_map(|(_, error)| match error {
        Error::Io(errors) => messages(filter, errors, |_, why| why),
        Error::Lex(errors) => messages(filter, swapped(errors), |found, expected| {
            let expected = match expected {
                Expect::Delim("(") => "closing parenthesis",
                Expect::Delim("[") => "closing bracket",
                Expect::Delim("{") => "closing brace",
                Expect::Delim(_) => "closing quote",
                other => other.as_str(),
            };
            unexpected(expected, found)
        }),
        Error::Parse(errors) => {
            messages(filter, swapped(errors), |found, expected| unexpected(expected.as_str(), found))
        }
    });
    invalid(mistakes)
}

pub(crate) fn of_compiling(filter: &str, errors: compile::Errors<&str, ()>) -> ToolError {
    let mistakes = errors.into_iter().flat_map(|(_, errors)| {
        messages(filter, errors, |name, undefined| match undefined {
            Undefined::Filter(arity) => format!("no filter `{name}` with {arity} arguments"),
            other => format!("no {} `{name}`", other.as_str()),
        })
    });
    invalid(mistakes)
}

fn invalid(mistakes: impl Iterator<Item = String>) -> ToolError {
    ToolError::invalid_input(mistakes.collect::<Vec<_>>().join("; "))
}

/// One message for each error, with its place in the filter.
fn messages<'s, E>(filter: &str, errors: Vec<(&'s str, E)>, what: impl Fn(&'s str, E) -> String) -> Vec<String> {
    let place = |part: &str| {
        let before = filter.get(..load::span(filter, part).start).unwrap_or(filter);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|char| *char != '\n').count() + 1;
        format!("`filter`, line {line}, column {column}")
    };
    errors.into_iter().map(|(part, error)| format!("{}: {}", place(part), what(part, error))).collect()
}

fn swapped<E>(errors: Vec<(E, &str)>) -> Vec<(&str, E)> {
    errors.into_iter().map(|(expected, found)| (found, expected)).collect()
}

fn unexpected(expected: &str, found: &str) -> String {
    let found: String = found.chars().take(MAX_FOUND_CHARS).collect();
    if found.is_empty() {
        format!("expected {expected}, found the end")
    } else {
        format!("expected {expected}, found `{found}`")
    }
}
