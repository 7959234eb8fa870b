//! What an agent may use across its calls.
//!
//! Invariant: within any minute no more calls of an agent begin in one host than its budget allows, and no more fuel is used
//! than that and what its running calls use until they are looked at: each one [`FUEL_INTERVAL`](crate::FUEL_INTERVAL).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Time is divided into as many parts, and a minute is as many of them.
const PARTS: u64 = 60;
const PART_NS: u64 = 1_000_000_000;
/// Agents whose use is remembered. Those that have used nothing for a minute are forgotten first.
const AGENTS_MAX: usize = 10_000;

/// A bound on what one agent uses in one host. What is left out has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Calls that begin within a minute. Further ones are refused.
    pub calls_per_minute: Option<u64>,
    /// Units of fuel that its calls use within a minute. Once it is used up, calls that run are stopped (cause `fuel`), and
    /// further ones are refused.
    pub fuel_per_minute: Option<u64>,
}

/// Everybody's.
#[derive(Default)]
pub(crate) struct Budgets {
    named: HashMap<String, Budget>,
    each: Option<Budget>,
    accounts: Mutex<HashMap<Arc<str>, Arc<Account>>>,
}

impl Budgets {
    pub(crate) fn new(rules: Vec<(Option<String>, Budget)>) -> Self {
        let mut budgets = Self::default();
        for (agent, budget) in rules {
            match agent {
                Some(agent) => drop(budgets.named.insert(agent, budget)),
                None => budgets.each = Some(budget),
            }
        }
        budgets
    }

    /// An agent's account, if it has a budget.
    pub(crate) fn of(&self, agent: &Arc<str>, now_ns: u64) -> Option<Arc<Account>> {
        let budget = self.named.get(&**agent).or(self.each.as_ref())?;
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(agent) {
            return Some(Arc::clone(account));
        }
        if accounts.len() >= AGENTS_MAX {
            accounts.retain(|_, account| Arc::strong_count(account) > 1 || !account.is_idle(now_ns));
        }
        let account = Arc::new(Account { budget: budget.clone(), used: Mutex::default() });
        // With no room it is not remembered, and counts for this call alone: names cost whoever makes them up nothing.
        if accounts.len() < AGENTS_MAX {
            accounts.insert(Arc::clone(agent), Arc::clone(&account));
        }
        Some(account)
    }
}

/// What one agent has used in the last minute.
#[derive(Debug)]
pub(crate) struct Account {
    budget: Budget,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    calls: Window,
    fuel: Window,
}

impl Account {
    /// One more call, or why there is none.
    pub(crate) fn admit(&self, now_ns: u64) -> Result<(), String> {
        let mut used = self.lock();
        if let Some(most) = self.budget.fuel_per_minute
            && used.fuel.sum(now_ns) >= most
        {
            return Err(format!("the agent has used its fuel for this minute ({most}); try again later"));
        }
        if let Some(most) = self.budget.calls_per_minute {
            if used.calls.sum(now_ns) >= most {
                return Err(format!(
                    "the agent has made {most} calls within a minute, which is all it may; try again later"
                ));
            }
            used.calls.add(1, now_ns);
        }
        Ok(())
    }

    /// Whether there is more than that.
    pub(crate) fn use_fuel(&self, fuel: u64, now_ns: u64) -> bool {
        let Some(most) = self.budget.fuel_per_minute else { return true };
        let mut used = self.lock();
        used.fuel.add(fuel, now_ns);
        used.fuel.sum(now_ns) < most
    }

    fn is_idle(&self, now_ns: u64) -> bool {
        let mut used = self.lock();
        used.calls.sum(now_ns) == 0 && used.fuel.sum(now_ns) == 0
    }

    /// By guest workers and whoever admits calls, for moments; no interrupt takes it.
    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much within the last minute, to a second.
#[derive(Debug)]
struct Window {
    parts: [u64; PARTS as usize],
    sum: u64,
    /// The newest part.
    newest: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self { parts: [0; PARTS as usize], sum: 0, newest: 0 }
    }
}

impl Window {
    fn add(&mut self, amount: u64, now_ns: u64) {
        self.turn(now_ns);
        let part = &mut self.parts[(self.newest % PARTS) as usize];
        let before = *part;
        *part = part.saturating_add(amount);
        self.sum = self.sum.saturating_add(*part - before);
    }

    fn sum(&mut self, now_ns: u64) -> u64 {
        self.turn(now_ns);
        self.sum
    }

    /// Forgets what is older than a minute.
    fn turn(&mut self, now_ns: u64) {
        let now = now_ns / PART_NS;
        for _ in 0..now.saturating_sub(self.newest).min(PARTS) {
            self.newest += 1;
            let oldest = std::mem::take(&mut self.parts[(self.newest % PARTS) as usize]);
            self.sum = self.sum.saturating_sub(oldest);
        }
        self.newest = self.newest.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = PART_NS;

    #[test]
    fn what_is_older_than_a_minute_does_not_count() {
        let mut window = Window::default();
        for second in 0..200 {
            window.add(second, second * SECOND_NS);
            let expected: u64 = (second.saturating_sub(59)..=second).sum();
            assert_eq!(window.sum(second * SECOND_NS), expected, "{second}");
        }
        assert_eq!(window.sum(1_000 * SECOND_NS), 0);
        window.add(u64::MAX, 1_001 * SECOND_NS);
        window.add(5, 1_002 * SECOND_NS);
        assert_eq!(window.sum(1_002 * SECOND_NS), u64::MAX);
    }

    #[test]
    fn a_budget_is_of_its_agent_alone() {
        let budget = |calls, fuel| Budget { calls_per_minute: calls, fuel_per_minute: fuel };
        let budgets = Budgets::new(vec![(Some("a".into()), budget(Some(2), None)), (None, budget(None, Some(100)))]);
        let account = |agent: &str| budgets.of(&agent.into(), 0).unwrap();
        for now in [0, 59 * SECOND_NS] {
            let admitted = account("a").admit(now);
            assert!(admitted.is_ok(), "{admitted:?}");
        }
        assert!(account("a").admit(59 * SECOND_NS).unwrap_err().contains("2 calls"));
        assert!(account("a").admit(60 * SECOND_NS).is_ok());
        assert!(account("a").use_fuel(1_000, 0), "it has no bound of that");
        assert!(account("b").use_fuel(99, 0) && !account("b").use_fuel(1, 0));
        assert!(account("b").admit(0).unwrap_err().contains("fuel"));
        assert!(account("c").admit(0).is_ok() && account("b").admit(60 * SECOND_NS).is_ok());
        assert!(Budgets::default().of(&"a".into(), 0).is_none());
    }

    #[test]
    fn names_that_are_made_up_cost_no_memory_without_bound() {
        let budgets = Budgets::new(vec![(None, Budget { calls_per_minute: Some(1), ..Budget::default() })]);
        for number in 0..AGENTS_MAX + 10 {
            budgets.of(&format!("{number}").into(), 0).unwrap().admit(0).unwrap();
        }
        assert_eq!(budgets.accounts.lock().unwrap().len(), AGENTS_MAX);
        budgets.of(&"late".into(), 100 * SECOND_NS).unwrap().admit(100 * SECOND_NS).unwrap();
        assert_eq!(budgets.accounts.lock().unwrap().len(), 1);
    }
}
