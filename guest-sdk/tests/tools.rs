//! What a tool looks like to its callers, and how JSON reaches it and leaves it.

use std::collections::BTreeMap;

use estop_tool::__private::{Entry, call_by_name};
use estop_tool::testing::{LogLine, Progress, Run, describe};
use estop_tool::{Hints, Output, Tool, ToolError, log, progress, tool};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Transfer {
    from: Account,
    amounts: Vec<f64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Account {
    number: u64,
}

#[derive(Debug, PartialEq, Serialize, JsonSchema)]
struct Receipt {
    from: u64,
    amounts: Vec<f64>,
}

/// Move amounts
/// to another account.
///
///  - Each at once.
#[tool(destructive, idempotent, name = "transfer-money", version = "2.0.0-beta")]
fn transfer(input: Transfer) -> Result<Receipt, ToolError> {
    Ok(Receipt { from: input.from.number, amounts: input.amounts })
}

/// Say nothing.
#[tool]
fn nothing() -> Result<(), ToolError> {
    Ok(())
}

/// A raw name.
#[tool]
fn r#type(r#struct: Account) -> Result<Output<u64>, ToolError> {
    let text = r#struct.number.to_string();
    Ok(Output::new(r#struct.number).attach("number.txt", "text/plain", text))
}

/// A map whose keys are no text.
#[tool]
fn no_json() -> Result<BTreeMap<Vec<u8>, u8>, ToolError> {
    Ok(BTreeMap::from([(vec![1], 1)]))
}

mod inner {
    use estop_tool::ToolError;

    /// In a module.
    #[estop_tool::tool]
    pub(crate) fn inner() -> Result<u8, ToolError> {
        super::log::info("hello");
        super::log::log(super::log::Level::Warn, "inner", format_args!("{}", 5));
        super::progress(1, None, "half");
        super::progress(2, 2, "all");
        Ok(1)
    }
}

estop_tool::export!(transfer, nothing, r#type, no_json, inner::inner);

fn message_of<T: Tool>(input: &str) -> String {
    let error = Run::new().call_json::<T>(input).result.unwrap_err();
    assert_eq!(error.code(), "invalid-input");
    error.message().to_owned()
}

#[test]
fn callers_learn_what_was_declared() {
    let description = describe::<transfer>();
    assert_eq!(description.name, "transfer-money");
    assert_eq!(description.version, "2.0.0-beta");
    assert_eq!(description.description, "Move amounts\nto another account.\n\n - Each at once.");
    let hints = Hints { destructive: true, idempotent: true, ..Hints::default() };
    assert_eq!(description.hints, hints);
    assert_eq!(describe::<nothing>().version, env!("CARGO_PKG_VERSION"));
    assert_eq!(describe::<r#type>().name, "type");
}

#[test]
fn schemas_are_those_of_the_types() {
    let description = describe::<transfer>();
    let input: Value = serde_json::from_str(&description.input_schema).unwrap();
    assert_eq!(input["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(input["type"], "object");
    assert_eq!(input["required"], json!(["from", "amounts"]));
    assert_eq!(input["additionalProperties"], false);
    let output: Value = serde_json::from_str(&description.output_schema).unwrap();
    assert_eq!(output["title"], "Receipt");
    let nothing: Value = serde_json::from_str(&describe::<nothing>().input_schema).unwrap();
    assert_eq!(nothing["type"], "object");
    assert_eq!(nothing["additionalProperties"], false);
    let attached: Value = serde_json::from_str(&describe::<r#type>().output_schema).unwrap();
    assert_eq!(attached["type"], "integer");
}

#[test]
fn numbers_arrive_as_they_were_written() {
    let input = r#"{"from":{"number":18446744073709551615},"amounts":[122.416294033786585,5e-324]}"#;
    let answer = Run::new().call_json::<transfer>(input).result.unwrap();
    assert_eq!(answer.json, r#"{"from":18446744073709551615,"amounts":[122.41629403378658,5e-324]}"#);
}

#[test]
fn invalid_input_names_the_place() {
    for (input, place) in [
        (r#"{"from":{"number":-1},"amounts":[]}"#, "`from.number`: invalid value"),
        (r#"{"from":{"number":1},"amounts":[1,"x"]}"#, "`amounts[1]`: invalid type"),
        (r#"{"from":{"number":1},"amounts":[],"to":1}"#, "`to`: unknown field"),
        (r#"{"from":{}}"#, "`from`: missing field `number`"),
        ("", "EOF while parsing"),
        (r#"{"from":{"number":1},"amounts":[]} x"#, "trailing characters at line 1 column 36"),
    ] {
        let message = message_of::<transfer>(input);
        assert!(message.starts_with(place), "{message}");
    }
    assert_eq!(Run::new().call_json::<nothing>(" {} ").result.unwrap().json, "null");
    assert!(message_of::<nothing>(r#"{"x":1}"#).starts_with("`x`: unknown field"));
    assert!(message_of::<nothing>("null").contains("invalid type: null"));
}

#[test]
fn attachments_go_beside_the_json() {
    let answer = Run::new().call_json::<r#type>(r#"{"number":7}"#).result.unwrap();
    assert_eq!(answer.json, "7");
    assert_eq!(answer.attachments[0].name, "number.txt");
    assert_eq!(answer.attachments[0].media_type, "text/plain");
    assert_eq!(answer.attachments[0].data, b"7");
    assert_eq!(*r#type(Account { number: 7 }).unwrap().value(), 7);
}

#[test]
fn an_answer_that_is_no_json_is_a_failure() {
    let error = Run::new().call_json::<no_json>("{}").result.unwrap_err();
    assert_eq!(error.code(), "bad-output");
}

#[test]
fn a_component_finds_its_tools_by_name() {
    let tools = [Entry::of::<transfer>(), Entry::of::<nothing>()];
    assert_eq!(call_by_name(&tools, "nothing", "{}").unwrap().json, "null");
    let error = call_by_name(&tools, "transfer", "{}").unwrap_err();
    assert_eq!(error.message(), "no tool `transfer` here, only: transfer-money, nothing");
}

#[test]
fn what_is_logged_and_reported_is_recorded() {
    let ended = Run::new().call(inner::inner);
    assert_eq!(ended.result, Ok(1));
    let line = |level, context: &str, message: &str| LogLine {
        level,
        context: context.to_owned(),
        message: message.to_owned(),
    };
    let expected = [line(log::Level::Info, "", "hello"), line(log::Level::Warn, "inner", "5")];
    assert_eq!(ended.log(), expected);
    let report = |done, total, message: &str| Progress { done, total, message: message.to_owned() };
    assert_eq!(ended.progress(), [report(1, None, "half"), report(2, Some(2), "all")]);
}
