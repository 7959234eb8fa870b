//! Runs a jq filter, by [jaq](https://github.com/01mf02/jaq) as it is published.
//!
//! A filter is a program, and a program need not end: `last(repeat(1))`, `def f: f; f`. Nothing here
//! looks whether the call was interrupted. It is code that knows nothing of estop, and is stopped all
//! the same.

mod mistakes;

use estop_tool::ToolError;
use jaq_core::load::{Arena, File, Loader};
use jaq_core::{Ctx, Exn, Vars, data};
use jaq_json::{Val, read};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Number of results after which a filter is given up.
const MAX_RESULTS: usize = 10_000;
/// Number of results that a failure still tells.
const MAX_RESULTS_TOLD: usize = 100;

type Filter = jaq_core::Filter<data::JustLut<Val>>;

/// A filter and what to run it on.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// A jq filter, for example `.users[] | select(.age > 30) | .name`.
    filter: String,
    /// Any JSON; null if it is left out.
    input: Option<Box<RawValue>>,
}

/// What a filter had produced when it failed.
#[derive(Serialize)]
struct SoFar<'a> {
    results: &'a [Box<RawValue>],
    count: usize,
}

/// Run a jq filter over JSON. Answers the array of its results.
///
/// The language is that of jq 1.8 as jaq has it, without modules and further inputs.
#[estop_tool::tool(read_only, idempotent)]
pub fn jq(query: Query) -> Result<Vec<Box<RawValue>>, ToolError> {
    let filter = compile(&query.filter)?;
    let input = query.input.as_ref().map_or("null", |input| input.get());
    let input =
        read::parse_single(input.as_bytes()).map_err(|why| ToolError::invalid_input(format!("`input`: {why}")))?;

    let context = Ctx::<data::JustLut<Val>>::new(&filter.lut, Vars::new([]));
    let mut results = Vec::new();
    for result in filter.id.run((context, input)) {
        match result.map_err(End::of).and_then(|value| json(&value)) {
            Ok(_) if results.len() == MAX_RESULTS => {
                let message = format!("more than {MAX_RESULTS} results");
                return Err(failed("too-many-results", message, &results));
            }
            Ok(json) => results.push(json),
            Err(End::Halted) => break,
            Err(End::Failed(why)) => return Err(failed("filter-error", why, &results)),
        }
    }
    Ok(results)
}

/// Why a filter yields nothing more.
enum End {
    /// It said `halt`.
    Halted,
    Failed(String),
}

impl End {
    fn of(exception: Exn<'_, Val>) -> Self {
        match exception.get_err() {
            Ok(error) => Self::Failed(match error.into_val() {
                Val::TStr(text) => String::from_utf8_lossy(&text).into_owned(),
                other => other.to_string(),
            }),
            Err(exception) => match exception.get_halt() {
                Ok(0) => Self::Halted,
                Ok(status) => Self::Failed(format!("the filter halted with status {status}")),
                Err(other) => Self::Failed(format!("{other:?}")),
            },
        }
    }
}

fn compile(filter: &str) -> Result<Filter, ToolError> {
    let definitions = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
    let functions = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
    let arena = Arena::default();
    let modules = Loader::new(definitions)
        .load(&arena, File { code: filter, path: () })
        .map_err(|errors| mistakes::of_loading(filter, errors))?;
    jaq_core::Compiler::default()
        .with_funs(functions)
        .compile(modules)
        .map_err(|errors| mistakes::of_compiling(filter, errors))
}

/// The value as JSON. jaq has values that JSON does not: NaN, infinities, byte strings.
fn json(value: &Val) -> Result<Box<RawValue>, End> {
    let text = value.to_string();
    serde_json::from_str(&text).map_err(|why| End::Failed(format!("a result is no JSON: {why}")))
}

fn failed(code: &str, message: String, results: &[Box<RawValue>]) -> ToolError {
    let told = &results[..results.len().min(MAX_RESULTS_TOLD)];
    ToolError::failed(code, message).data(SoFar { results: told, count: results.len() })
}

estop_tool::export!(jq);

#[cfg(test)]
mod tests {
    use estop_tool::testing::Run;

    use super::*;

    fn run(filter: &str, input: &str) -> Result<String, ToolError> {
        let filter = serde_json::to_string(filter).unwrap();
        let query = format!(r#"{{"filter":{filter},"input":{input}}}"#);
        Run::new().call_json::<jq>(&query).result.map(|answer| answer.json)
    }

    #[test]
    fn answers_all_results() {
        let users = r#"[{"name":"Ada","age":36},{"name":"Bob","age":20}]"#;
        assert_eq!(run(".[] | select(.age > 30) | .name", users).unwrap(), r#"["Ada"]"#);
        assert_eq!(run("limit(3; repeat(1))", "null").unwrap(), "[1,1,1]");
        assert_eq!(run("empty", "1").unwrap(), "[]");
        assert_eq!(run("1, halt, 2", "1").unwrap(), "[1]");
    }

    #[test]
    fn numbers_and_text_survive() {
        let input = r#"[123456789012345678901234567890,0.10000000000000000001,1e400,"größe 🛑 \u0000"]"#;
        assert_eq!(run(".[]", input).unwrap(), input);
        assert_eq!(run(".[0] + 1", input).unwrap(), "[123456789012345678901234567891]");
    }

    #[test]
    fn the_input_may_be_left_out() {
        let ended = Run::new().call_json::<jq>(r#"{"filter":". == null"}"#);
        assert_eq!(ended.result.unwrap().json, "[true]");
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_invalid_input() {
        for (filter, message) in [
            ("", "`filter`, line 1, column 1: expected term, found the end"),
            (".a | | .b", "`filter`, line 1, column 6: expected term, found `|`"),
            (".a\n| [1", "`filter`, line 2, column 5: expected closing bracket, found the end"),
            (".a | größe(1)", "`filter`, line 1, column 8: expected token, found `öße(1)`"),
            ("map(nothing)", "`filter`, line 1, column 5: no filter `nothing` with 0 arguments"),
            ("$x", "`filter`, line 1, column 1: no variable `$x`"),
            ("import \"a\" as a; .", "`filter`, line 1, column 9: module loading not supported"),
        ] {
            let error = run(filter, "null").unwrap_err();
            assert_eq!((error.code(), error.message()), ("invalid-input", message));
        }
    }

    #[test]
    fn a_filter_that_fails_tells_what_it_had() {
        let error = run("1, 2, error(\"no\"), 3", "null").unwrap_err();
        assert_eq!((error.code(), error.message()), ("filter-error", "no"));
        assert_eq!(error.json_data(), Some(r#"{"results":[1,2],"count":2}"#));
        assert_eq!(run("halt_error", "\"x\"").unwrap_err().code(), "filter-error");
        assert_eq!(run("nan", "null").unwrap_err().code(), "filter-error");
    }

    #[test]
    fn results_are_bounded() {
        let error = run("repeat(1)", "null").unwrap_err();
        assert_eq!(error.code(), "too-many-results");
    }
}
