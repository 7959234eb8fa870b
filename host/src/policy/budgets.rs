//! `[[budgets]]`: what an agent may use across its calls.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::{Fuel, PolicyError};
use crate::budget::Budget;

/// One agent's, or each one's that is not named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BudgetTable {
    agent: Option<Spanned<String>>,
    calls_per_minute: Option<Spanned<u64>>,
    fuel_per_minute: Option<Spanned<Fuel>>,
}

pub(super) fn check(
    tables: Vec<BudgetTable>,
    wrong: &dyn Fn(Range<usize>, String) -> PolicyError,
) -> Result<Vec<(Option<String>, Budget)>, PolicyError> {
    let mut budgets: Vec<(Option<String>, Budget)> = Vec::new();
    for table in tables {
        let place = table.agent.as_ref().map_or(0..0, Spanned::span);
        let agent = table.agent.map(Spanned::into_inner);
        if budgets.iter().any(|(other, _)| *other == agent) {
            let who = agent.map_or("of each agent".into(), |agent| format!("of `{agent}`"));
            return Err(wrong(place, format!("another budget {who} is there already: say it once")));
        }
        if agent.as_deref() == Some("") {
            return Err(wrong(place, "the name of an agent is not empty".into()));
        }
        let nothing = |place| wrong(place, "more than nothing: a halt keeps an agent from all calls".into());
        if let Some(calls) = table.calls_per_minute.as_ref().filter(|calls| *calls.get_ref() == 0) {
            return Err(nothing(calls.span()));
        }
        if let Some(fuel) = table.fuel_per_minute.as_ref().filter(|fuel| fuel.get_ref().0 == 0) {
            return Err(nothing(fuel.span()));
        }
        let budget = Budget {
            calls_per_minute: table.calls_per_minute.map(Spanned::into_inner),
            fuel_per_minute: table.fuel_per_minute.map(|fuel| fuel.into_inner().0),
        };
        budgets.push((agent, budget));
    }
    Ok(budgets)
}
