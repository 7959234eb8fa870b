//! `[[budgets]]`: what an agent may use across its calls.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::{Bytes, Fuel, PolicyError};
use crate::budget::Budget;

/// One agent's, or each one's that is not named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BudgetTable {
    agent: Option<Spanned<String>>,
    calls_per_minute: Option<Spanned<u64>>,
    fuel_per_minute: Option<Spanned<Fuel>>,
    requests_per_minute: Option<u64>,
    request_bytes_per_minute: Option<Bytes>,
}

pub(super) fn check(
    tables: Vec<Spanned<BudgetTable>>,
    wrong: &dyn Fn(Range<usize>, String) -> PolicyError,
) -> Result<Vec<(Option<String>, Budget)>, PolicyError> {
    let mut budgets: Vec<(Option<String>, Budget)> = Vec::new();
    for table in tables {
        let whole = table.span();
        let table = table.into_inner();
        let place = table.agent.as_ref().map_or(whole.clone(), Spanned::span);
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
            requests_per_minute: table.requests_per_minute,
            request_bytes_per_minute: table.request_bytes_per_minute.map(|Bytes(bytes)| bytes as u64),
        };
        if budget == Budget::default() {
            return Err(wrong(
                whole,
                "it bounds nothing: add `calls_per_minute`, `fuel_per_minute`, `requests_per_minute` or \
                                     `request_bytes_per_minute`"
                    .into(),
            ));
        }
        budgets.push((agent, budget));
    }
    Ok(budgets)
}
