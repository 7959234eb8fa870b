//! What is stopped in a drill.
//!
//! Each case is the same small component with a few instructions put in. They are kept as text, so that anybody can see
//! what the drill proves, and so that it needs no toolchain.

/// A point in a case's component where instructions are put in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Start,
    Realloc,
    Call,
    Post,
}

/// How many victims there are, and how they are stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crowd {
    /// One at a time, once it does what the case is about.
    One,
    /// One at a time, at once, before its first instruction.
    BeforeStart,
    /// One after another out of a crowd of this size that goes on.
    OneOf(usize),
    /// A crowd of this size by one interrupt.
    All(usize),
}

/// One case.
#[derive(Debug)]
pub struct Case {
    /// Its name in the report.
    pub name: &'static str,
    /// What the 99th percentile should be at most (µs).
    pub target_us: f64,
    pub(super) crowd: Crowd,
    /// The victim waits in the host, instead of keeping a processor busy.
    pub(super) waits: bool,
    place: Place,
    code: &'static str,
}

/// What is stopped in a host that runs: one victim at a time, which needs no interface that others do not have.
pub(super) const LIVE: &[Case] = &[
    Case::on_cpu("spin", Place::Call, SPIN),
    Case::waiting("host sleep", SLEEP),
    Case { crowd: Crowd::BeforeStart, ..Case::on_cpu("stopped before start", Place::Call, SPIN) },
];

/// Where the victim's core module goes.
const GUEST: &str = ";;GUEST;;";

const ON_CPU_US: f64 = 200.0;
const SUSPENDED_US: f64 = 100.0;
const CROWD_US: f64 = 10_000.0;

const SPIN: &str = "(loop $again (br $again))";
const SLEEP: &str = "(call $sleep)";

pub(super) const ALL: &[Case] = &[
    Case::on_cpu("spin", Place::Call, SPIN),
    Case::on_cpu("spin with calls", Place::Call, "(loop $again (drop (call $describing)) (br $again))"),
    Case::on_cpu("recursion", Place::Start, RECURSION),
    Case::waiting("host sleep", SLEEP),
    Case::waiting("host function that waits", "(call $wait)"),
    Case::on_cpu("memory growth", Place::Call, GROWTH),
    Case::on_cpu("start function spinning", Place::Start, START),
    Case::on_cpu("realloc spinning", Place::Realloc, SPIN),
    Case::on_cpu("post-return spinning", Place::Post, SPIN),
    Case { crowd: Crowd::BeforeStart, ..Case::on_cpu("stopped before start", Place::Call, SPIN) },
    Case { crowd: Crowd::OneOf(200), ..Case::on_cpu("1 of 200 spinning", Place::Call, SPIN) },
    Case { crowd: Crowd::All(200), target_us: CROWD_US, ..Case::on_cpu("all of 200 spinning", Place::Call, SPIN) },
    Case { crowd: Crowd::All(1_000), ..Case::waiting("1,000 suspended", SLEEP) },
];

/// Goes down far, comes back and begins again: each function entry is a check. The start function is the case's way
/// into the module's fields; it does nothing else.
const RECURSION: &str = "
  (func $down (param $depth i32)
    (if (i32.eqz (local.get $depth)) (then (return)))
    (call $down (i32.sub (local.get $depth) (i32.const 1))))
  (func $victim
    (if (call $describing) (then (return)))
    (loop $again (call $down (i32.const 1000)) (br $again)))
  (start $victim)";

/// Grows to what the module declares as its maximum, touching every page, and then goes on asking.
const GROWTH: &str = "
  (loop $again
    (local.set $page (memory.grow (i32.const 1)))
    (if (i32.ne (local.get $page) (i32.const -1))
      (then (i32.store (i32.shl (local.get $page) (i32.const 16)) (i32.const 1))))
    (br $again))";

const START: &str = "
  (func $spin
    (if (call $describing) (then (return)))
    (loop $again (br $again)))
  (start $spin)";

impl Case {
    const fn on_cpu(name: &'static str, place: Place, code: &'static str) -> Self {
        Self { name, target_us: ON_CPU_US, crowd: Crowd::One, waits: false, place, code }
    }

    const fn waiting(name: &'static str, code: &'static str) -> Self {
        Self { name, target_us: SUSPENDED_US, crowd: Crowd::One, waits: true, place: Place::Call, code }
    }

    pub(super) fn component(&self) -> Result<Vec<u8>, String> {
        self.encoded(include_str!("wrapper.wat"))
    }

    /// The same for a host that does not grant the drill's interface.
    pub(super) fn live_component(&self) -> Result<Vec<u8>, String> {
        let wrapper = include_str!("wrapper.wat");
        let parts =
            wrapper.split_once(";;PROBE;;").and_then(|(before, rest)| Some((before, rest.split_once(GUEST)?.1)));
        let (before, after) = parts.ok_or("its text has lost a marker")?;
        self.encoded(&[before, include_str!("live.wat"), GUEST, after].concat())
    }

    fn encoded(&self, wrapper: &str) -> Result<Vec<u8>, String> {
        let marker = match self.place {
            Place::Start => ";;START;;",
            Place::Realloc => ";;REALLOC;;",
            Place::Call => ";;CALL;;",
            Place::Post => ";;POST;;",
        };
        let guest = include_str!("guest.wat").replace(marker, self.code);
        let text = wrapper.replace(GUEST, &guest);
        wat::parse_str(text).map_err(|error| error.to_string())
    }
}
