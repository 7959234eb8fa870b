//! What a call is granted.

use std::time::Duration;

use super::PRIORITY_DEFAULT;
use crate::transaction::StateLimits;

/// Bounds of one call, and how urgent it is. A call can ask for less or more of the first five; the rest is the host's.
#[derive(Clone, Debug)]
pub struct CallLimits {
    /// From the start of the guest; waiting for room is not billed.
    pub deadline: Duration,
    /// What a cooperative tool gets to tidy up when the deadline is over.
    pub grace: Duration,
    /// Units of fuel, about one for each instruction.
    pub fuel: u64,
    /// All linear memories together (bytes). At most [`HostLimits::memory_bytes_max`](crate::HostLimits).
    pub memory_bytes_max: usize,
    /// How urgent it is if it does not say, from 0 to 255; higher is more. See
    /// [`CallBuilder::priority`](crate::CallBuilder::priority).
    pub priority: u8,
    /// The input as JSON text (bytes).
    pub input_bytes_max: usize,
    /// The output as JSON text, with its attachments (bytes).
    pub output_bytes_max: usize,
    /// What passes between guest and host in one crossing (bytes).
    pub transfer_bytes_max: usize,
    /// What is kept of standard error: the newest (bytes).
    pub stderr_bytes_max: usize,
    /// Handles and host resources open at one time.
    pub resources_max: usize,
    /// Effects outside the transaction, with those of the calls that it invokes.
    pub effects_max: usize,
    /// Levels of calls that may be below the first one, each invoked by the one above it. None can be invoked at zero.
    pub depth_max: usize,
    /// What it may keep.
    pub state: StateLimits,
}

/// Other limits for some calls: what is said replaces what holds for every call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the limit of the same name of `CallLimits`")]
pub struct LimitsChange {
    pub deadline: Option<Duration>,
    pub grace: Option<Duration>,
    pub fuel: Option<u64>,
    pub memory_bytes_max: Option<usize>,
    pub priority: Option<u8>,
    pub input_bytes_max: Option<usize>,
    pub output_bytes_max: Option<usize>,
    pub transfer_bytes_max: Option<usize>,
    pub stderr_bytes_max: Option<usize>,
    pub resources_max: Option<usize>,
    pub effects_max: Option<usize>,
    pub depth_max: Option<usize>,
}

impl LimitsChange {
    pub(crate) fn apply(&self, to: &mut CallLimits) {
        set(&mut to.deadline, self.deadline);
        set(&mut to.grace, self.grace);
        set(&mut to.fuel, self.fuel);
        set(&mut to.memory_bytes_max, self.memory_bytes_max);
        set(&mut to.priority, self.priority);
        set(&mut to.input_bytes_max, self.input_bytes_max);
        set(&mut to.output_bytes_max, self.output_bytes_max);
        set(&mut to.transfer_bytes_max, self.transfer_bytes_max);
        set(&mut to.stderr_bytes_max, self.stderr_bytes_max);
        set(&mut to.resources_max, self.resources_max);
        set(&mut to.effects_max, self.effects_max);
        set(&mut to.depth_max, self.depth_max);
    }

    /// The names and values of what it says something about.
    #[cfg(feature = "cli")]
    pub(crate) fn in_words(&self) -> Option<String> {
        let time = |time: Duration| humantime::format_duration(time).to_string();
        let number = |name: &str, value: Option<usize>| value.map(|value| format!("{name} {value}"));
        let all = [
            self.deadline.map(|deadline| format!("deadline {}", time(deadline))),
            self.grace.map(|grace| format!("grace {}", time(grace))),
            self.fuel.map(|fuel| format!("fuel {fuel}")),
            number("memory", self.memory_bytes_max),
            self.priority.map(|priority| format!("priority {priority}")),
            number("input_bytes_max", self.input_bytes_max),
            number("output_bytes_max", self.output_bytes_max),
            number("transfer_bytes_max", self.transfer_bytes_max),
            number("stderr_bytes_max", self.stderr_bytes_max),
            number("resources_max", self.resources_max),
            number("effects_max", self.effects_max),
            number("depth_max", self.depth_max),
        ];
        let said: Vec<String> = all.into_iter().flatten().collect();
        (!said.is_empty()).then(|| said.join(", "))
    }

    /// What both say something about.
    pub(crate) fn clash(&self, other: &Self) -> Option<&'static str> {
        [
            ("deadline", self.deadline.is_some() && other.deadline.is_some()),
            ("grace", self.grace.is_some() && other.grace.is_some()),
            ("fuel", self.fuel.is_some() && other.fuel.is_some()),
            ("memory", self.memory_bytes_max.is_some() && other.memory_bytes_max.is_some()),
            ("priority", self.priority.is_some() && other.priority.is_some()),
            ("input_bytes_max", self.input_bytes_max.is_some() && other.input_bytes_max.is_some()),
            ("output_bytes_max", self.output_bytes_max.is_some() && other.output_bytes_max.is_some()),
            ("transfer_bytes_max", self.transfer_bytes_max.is_some() && other.transfer_bytes_max.is_some()),
            ("stderr_bytes_max", self.stderr_bytes_max.is_some() && other.stderr_bytes_max.is_some()),
            ("resources_max", self.resources_max.is_some() && other.resources_max.is_some()),
            ("effects_max", self.effects_max.is_some() && other.effects_max.is_some()),
            ("depth_max", self.depth_max.is_some() && other.depth_max.is_some()),
        ]
        .into_iter()
        .find_map(|(key, is_twice)| is_twice.then_some(key))
    }
}

fn set<T>(to: &mut T, change: Option<T>) {
    if let Some(change) = change {
        *to = change;
    }
}

impl Default for CallLimits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            grace: Duration::ZERO,
            fuel: 1_000_000_000_000,
            memory_bytes_max: 64 << 20,
            priority: PRIORITY_DEFAULT,
            input_bytes_max: 1 << 20,
            output_bytes_max: 2 << 20,
            transfer_bytes_max: 4 << 20,
            stderr_bytes_max: 8 << 10,
            resources_max: 1_000,
            effects_max: 1_000,
            depth_max: 8,
            state: StateLimits::default(),
        }
    }
}
