//! A tool that ends in good order when it is asked to.

use std::thread;
use std::time::Duration;

use estop_tool::{ToolError, checkpoint, kv, log, progress};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much work there is.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// Number of steps.
    steps: u64,
    /// How long each step takes, in milliseconds.
    #[serde(default)]
    step_ms: u64,
}

/// What was done.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Summary {
    /// Number of steps.
    steps: u64,
}

/// Work step by step, write a key in each, and end when asked to.
#[estop_tool::tool]
pub fn polite(input: Work) -> Result<Summary, ToolError> {
    let bucket = kv::open("runaway")?;
    for step in 1..=input.steps {
        if let Err(interrupted) = checkpoint() {
            log::info(format_args!("ending before step {step}: {}", interrupted.cause()));
            return Err(interrupted.into());
        }
        thread::sleep(Duration::from_millis(input.step_ms));
        bucket.set(&format!("step-{step}"), &step)?;
        progress(step, input.steps, format_args!("step {step}"));
    }
    Ok(Summary { steps: input.steps })
}

#[cfg(test)]
mod tests {
    use estop_tool::testing::Run;

    use super::*;

    #[test]
    fn does_all_steps() {
        let ended = Run::new().call(|| polite(Work { steps: 3, step_ms: 0 }));
        assert_eq!(ended.result, Ok(Summary { steps: 3 }));
        assert_eq!(ended.keys("runaway"), ["step-1", "step-2", "step-3"]);
        assert_eq!(ended.progress().len(), 3);
    }

    #[test]
    fn leaves_nothing_when_it_is_interrupted() {
        let run = Run::new().interrupt_at_checkpoint(3);
        let ended = run.call(|| polite(Work { steps: 10, step_ms: 0 }));
        assert!(ended.result.as_ref().unwrap_err().is_interrupted());
        assert_eq!(ended.progress().len(), 2);
        assert_eq!(ended.log()[0].message, "ending before step 3: operator");
        assert!(ended.keys("runaway").is_empty());
    }
}
