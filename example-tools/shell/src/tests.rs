use estop_tool::process::{Exit, Output};
use estop_tool::testing::Run as Call;
use serde_json::json;

use super::*;

fn call(call: Call, input: serde_json::Value) -> Result<Ran, ToolError> {
    call.call(|| run(serde_json::from_value(input).unwrap())).result
}

#[test]
fn a_program_is_run_with_what_it_is_given() {
    let echo = Call::new().program("echo", |arguments, stdin| {
        let said = format!("{} {}", arguments.join(","), String::from_utf8_lossy(stdin));
        Output::new(Exit::Code(3), said, "err")
    });
    let ran = call(echo, json!({ "program": "echo", "arguments": ["a", "b"], "stdin": "in" })).unwrap();
    let expected = Ran { code: Some(3), signal: None, stdout: "a,b in".into(), stderr: "err".into(), truncated: false };
    assert_eq!(ran, expected);
}

#[test]
fn of_long_output_the_beginning_and_the_end_are_kept() {
    let long = Call::new().program("long", |_, _| Output::new(Exit::Signal(9), "a".repeat(50) + &"z".repeat(50), ""));
    let ran = call(long, json!({ "program": "long", "output_bytes": 20 })).unwrap();
    assert_eq!(ran.stdout, "aaaaaaaaaa\n… 80 bytes left out …\nzzzzzzzzzz");
    assert!(ran.truncated && ran.signal == Some(9) && ran.code.is_none());
}

#[test]
fn what_is_not_granted_is_an_error() {
    let error = call(Call::new(), json!({ "program": "rm" })).unwrap_err();
    assert_eq!(error.code(), "denied");
}

#[test]
fn a_stop_with_a_grace_ends_it_between_two_outputs() {
    let long = Call::new().interrupt_at_checkpoint(1).program("long", |_, _| Output::new(Exit::Code(0), "x", "y"));
    assert!(call(long, json!({ "program": "long" })).unwrap_err().is_interrupted());
}
