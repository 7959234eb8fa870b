//! What a call is granted.

use std::time::Duration;

use super::PRIORITY_DEFAULT;
use crate::transaction::StateLimits;

/// Bounds of one call, and how urgent it is. A call can ask for less or more of the first five; the rest is what the host and its grants say.
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
    /// Calls in the tree below the first one, over its whole time.
    pub children_max: usize,
    /// What it may keep.
    pub state: StateLimits,
}

/// The limits that can be changed, each with what it is called in `estop.toml`: so that none is forgotten anywhere.
macro_rules! changes {
    ($($limit:ident: $type:ty, $key:literal, $shown:expr;)*) => {
        /// Other limits for some calls: what is said replaces what holds for every call.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each is the limit of the same name of `CallLimits`")]
        pub struct LimitsChange {
            $(pub $limit: Option<$type>,)*
        }

        impl LimitsChange {
            pub(crate) fn apply(&self, to: &mut CallLimits) {
                $(if let Some(change) = self.$limit {
                    to.$limit = change;
                })*
            }

            /// What both say something about.
            pub(crate) fn clash(&self, other: &Self) -> Option<&'static str> {
                $(if self.$limit.is_some() && other.$limit.is_some() {
                    return Some($key);
                })*
                None
            }

            /// The names and values of what it says something about.
            pub(crate) fn in_words(&self) -> Option<String> {
                let mut all: Vec<String> = Vec::new();
                $(if let Some(change) = self.$limit {
                    all.push(format!("{} {}", $key, $shown(change)));
                })*
                (!all.is_empty()).then(|| all.join(", "))
            }
        }
    };
}

changes! {
    deadline: Duration, "deadline", humantime::format_duration;
    grace: Duration, "grace", humantime::format_duration;
    fuel: u64, "fuel", std::convert::identity;
    memory_bytes_max: usize, "memory", std::convert::identity;
    priority: u8, "priority", std::convert::identity;
    input_bytes_max: usize, "input_bytes_max", std::convert::identity;
    output_bytes_max: usize, "output_bytes_max", std::convert::identity;
    transfer_bytes_max: usize, "transfer_bytes_max", std::convert::identity;
    stderr_bytes_max: usize, "stderr_bytes_max", std::convert::identity;
    resources_max: usize, "resources_max", std::convert::identity;
    effects_max: usize, "effects_max", std::convert::identity;
    depth_max: usize, "depth_max", std::convert::identity;
    children_max: usize, "children_max", std::convert::identity;
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
            children_max: 1_000,
            state: StateLimits::default(),
        }
    }
}
