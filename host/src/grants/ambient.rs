//! What a guest finds around it: environment, clocks, randomness. Empty, coarse and the same for each call, if nothing is
//! granted.

use std::collections::BTreeMap;
use std::fmt;

use super::GrantError;

/// What is granted of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Ambient {
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) clock: bool,
    pub(crate) random: bool,
}

impl Ambient {
    pub(super) fn check(&self) -> Result<(), GrantError> {
        wrong_variable(&self.environment).map_or(Ok(()), |name| Err(GrantError::Variable(name.to_owned())))
    }

    /// A variable that both set.
    pub(super) fn clash(&self, other: &Self) -> Option<String> {
        self.environment.keys().find(|name| other.environment.contains_key(*name)).cloned()
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.environment.extend(other.environment.iter().map(|(name, value)| (name.clone(), value.clone())));
        self.clock |= other.clock;
        self.random |= other.random;
    }

    /// What both have.
    pub(super) fn at_most(&self, other: &Self) -> Self {
        let both = self.environment.iter().filter(|(name, value)| other.environment.get(*name) == Some(value));
        Self {
            environment: both.map(|(name, value)| (name.clone(), value.clone())).collect(),
            clock: self.clock && other.clock,
            random: self.random && other.random,
        }
    }

    /// The names of variables, and not their values: these may be secrets.
    pub(super) fn in_words(&self) -> impl Iterator<Item = String> + use<'_> {
        let names = self.environment.keys().map(|name| format!("the variable {name}"));
        let clock = self.clock.then(|| "the host's clocks".to_owned());
        names.chain(clock).chain(self.random.then(|| "real randomness".to_owned()))
    }
}

impl fmt::Debug for Ambient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.in_words()).finish()
    }
}

/// One that no environment can have.
pub(super) fn wrong_variable(environment: &BTreeMap<String, String>) -> Option<&str> {
    let is_wrong =
        |(name, value): &(&String, &String)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
    environment.iter().find(is_wrong).map(|(name, _)| name.as_str())
}
