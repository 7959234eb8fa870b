//! What an agent may use across its calls.
//!
//! Invariant: within any minute no more calls of an agent begin in one host than its budget allows, and no more fuel is used
//! than that and what its running calls use until they are looked at: each one [`FUEL_INTERVAL`](crate::FUEL_INTERVAL).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::{Clock, nanos};

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
    /// Requests to hosts that its calls begin within a minute. Further ones are denied.
    pub requests_per_minute: Option<u64>,
    /// Bytes of bodies that its calls send and read within a minute. Whoever sends or reads more is cut off.
    pub request_bytes_per_minute: Option<u64>,
}

/// Everybody's.
pub(crate) struct Budgets {
    clock: Arc<dyn Clock>,
    named: HashMap<String, Arc<Account>>,
    /// Of each other agent, and the one account of all that find no room: names that are made up are no way around it.
    each: Option<(Budget, Arc<Account>)>,
    accounts: Mutex<HashMap<Arc<str>, Arc<Account>>>,
}

impl Budgets {
    pub(crate) fn new(rules: Vec<(Option<String>, Budget)>, clock: Arc<dyn Clock>) -> Self {
        let mut budgets = Self { clock, named: HashMap::new(), each: None, accounts: Mutex::default() };
        for (agent, budget) in rules {
            match agent {
                Some(agent) => {
                    let account = Arc::new(Account::new(budget, &budgets.clock));
                    budgets.named.insert(agent, account);
                }
                None => {
                    let crowd = Arc::new(Account::new(budget.clone(), &budgets.clock));
                    budgets.each = Some((budget, crowd));
                }
            }
        }
        budgets
    }

    /// An agent's account, if it has a budget.
    pub(crate) fn of(&self, agent: &Arc<str>) -> Option<Arc<Account>> {
        if let Some(account) = self.named.get(&**agent) {
            return Some(Arc::clone(account));
        }
        let (budget, crowd) = self.each.as_ref()?;
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(agent) {
            return Some(Arc::clone(account));
        }
        if accounts.len() >= AGENTS_MAX {
            accounts.retain(|_, account| Arc::strong_count(account) > 1 || !account.is_idle());
        }
        if accounts.len() >= AGENTS_MAX {
            return Some(Arc::clone(crowd));
        }
        let account = Arc::new(Account::new(budget.clone(), &self.clock));
        accounts.insert(Arc::clone(agent), Arc::clone(&account));
        Some(account)
    }
}

/// What one agent has used in the last minute.
pub(crate) struct Account {
    budget: Budget,
    clock: Arc<dyn Clock>,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    calls: Window,
    fuel: Window,
    requests: Window,
    request_bytes: Window,
}

impl Account {
    fn new(budget: Budget, clock: &Arc<dyn Clock>) -> Self {
        Self { budget, clock: Arc::clone(clock), used: Mutex::default() }
    }

    /// One more call, or why there is none.
    pub(crate) fn admit(&self) -> Result<(), String> {
        let (now_ns, mut used) = (self.now_ns(), self.lock());
        if let Some(most) = self.budget.fuel_per_minute
            && used.fuel.sum(now_ns) >= most
        {
            return Err(format!("the agent has used its fuel for this minute ({most}); try again later"));
        }
        let most = self.budget.calls_per_minute;
        if !used.calls.take(1, most, now_ns) {
            let most = most.unwrap_or_default();
            return Err(format!(
                "the agent has made {most} calls within a minute, which is all it may; try again later"
            ));
        }
        Ok(())
    }

    /// Whether there is more than that.
    pub(crate) fn use_fuel(&self, fuel: u64) -> bool {
        let Some(most) = self.budget.fuel_per_minute else { return true };
        let (now_ns, mut used) = (self.now_ns(), self.lock());
        used.fuel.add(fuel, now_ns);
        used.fuel.sum(now_ns) < most
    }

    /// Whether there may be one more.
    pub(crate) fn use_request(&self) -> bool {
        let (now_ns, most) = (self.now_ns(), self.budget.requests_per_minute);
        self.lock().requests.take(1, most, now_ns)
    }

    /// Whether there may be so many more.
    pub(crate) fn use_request_bytes(&self, bytes: u64) -> bool {
        let (now_ns, most) = (self.now_ns(), self.budget.request_bytes_per_minute);
        self.lock().request_bytes.take(bytes, most, now_ns)
    }

    fn is_idle(&self) -> bool {
        let (now_ns, mut used) = (self.now_ns(), self.lock());
        let Used { calls, fuel, requests, request_bytes } = &mut *used;
        [calls, fuel, requests, request_bytes].into_iter().all(|window| window.sum(now_ns) == 0)
    }

    fn now_ns(&self) -> u64 {
        nanos(self.clock.monotonic())
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

    /// Adds it, unless that would be more than there may be.
    fn take(&mut self, amount: u64, most: Option<u64>, now_ns: u64) -> bool {
        let Some(most) = most else { return true };
        let is_there = self.sum(now_ns).saturating_add(amount) <= most;
        if is_there {
            self.add(amount, now_ns);
        }
        is_there
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
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, SystemTime};

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

    /// Stands where it is put.
    #[derive(Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn monotonic(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::Relaxed))
        }

        fn wall(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }
    }

    fn budgets(rules: Vec<(Option<String>, Budget)>) -> (Budgets, Arc<Hand>) {
        let hand = Arc::new(Hand::default());
        (Budgets::new(rules, Arc::clone(&hand) as Arc<dyn Clock>), hand)
    }

    #[test]
    fn a_budget_is_of_its_agent_alone() {
        let own = Budget { calls_per_minute: Some(2), ..Budget::default() };
        let each = Budget { fuel_per_minute: Some(100), ..Budget::default() };
        let (budgets, hand) = budgets(vec![(Some("a".into()), own), (None, each)]);
        let account = |agent: &str| budgets.of(&agent.into()).unwrap();
        account("a").admit().unwrap();
        hand.0.store(59, Ordering::Relaxed);
        account("a").admit().unwrap();
        assert!(account("a").admit().unwrap_err().contains("2 calls"));
        assert!(account("a").use_fuel(1_000), "it has no bound of that");
        assert!(account("b").use_fuel(99) && !account("b").use_fuel(1));
        assert!(account("b").admit().unwrap_err().contains("fuel"));
        account("c").admit().unwrap();
        hand.0.store(60, Ordering::Relaxed);
        account("a").admit().unwrap();
        hand.0.store(120, Ordering::Relaxed);
        account("b").admit().unwrap();
        assert!(self::budgets(Vec::new()).0.of(&"a".into()).is_none());
    }

    #[test]
    fn requests_and_their_bytes_are_counted() {
        let each = Budget { requests_per_minute: Some(2), request_bytes_per_minute: Some(100), ..Budget::default() };
        let (budgets, hand) = budgets(vec![(None, each)]);
        let account = budgets.of(&"a".into()).unwrap();
        assert!(account.use_request() && account.use_request() && !account.use_request());
        // What would be too much is not counted.
        assert!(account.use_request_bytes(60) && !account.use_request_bytes(41) && account.use_request_bytes(40));
        hand.0.store(60, Ordering::Relaxed);
        assert!(account.use_request() && account.use_request_bytes(100));
    }

    #[test]
    fn names_that_are_made_up_cost_no_memory_without_bound() {
        let each = Budget { calls_per_minute: Some(1), ..Budget::default() };
        let (budgets, hand) = budgets(vec![(None, each)]);
        let admit = |agent: &str| budgets.of(&agent.into()).unwrap().admit();
        (0..AGENTS_MAX).for_each(|number| admit(&number.to_string()).unwrap());
        // Those that come now share what one of them may have.
        admit("more").unwrap();
        admit("and more").unwrap_err();
        admit("0").unwrap_err();
        assert_eq!(budgets.accounts.lock().unwrap().len(), AGENTS_MAX);
        hand.0.store(100, Ordering::Relaxed);
        budgets.of(&"late".into()).unwrap().admit().unwrap();
        assert_eq!(budgets.accounts.lock().unwrap().len(), 1);
    }
}
