//! What is counted and told, each checked against what the test made happen.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use estop_tests::CAUSES;
use prometheus_parse::{HistogramCount, Scrape};
use serde_json::{Value, json};
use tracing::span;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::command::PATIENCE;
use crate::driven::{Driven, PLACES};
use crate::hosts::Machine;

/// What was scraped: by name and labels.
struct Scraped {
    values: HashMap<(String, BTreeMap<String, String>), f64>,
    histograms: HashMap<String, Vec<HistogramCount>>,
}

impl Scraped {
    #[track_caller]
    fn from(driven: &Driven) -> Self {
        let answer = driven.asks("GET /v1/metrics");
        answer.is_ok();
        assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
        let scrape = Scrape::parse(answer.body.lines().map(|line| Ok(line.to_owned()))).unwrap();
        let mut scraped = Self { values: HashMap::new(), histograms: HashMap::new() };
        let mut samples = 0;
        for sample in scrape.samples {
            assert!(sample.metric.starts_with("estop_"), "{}", sample.metric);
            let labels = sample.labels.iter().map(|(label, said)| (label.clone(), said.clone())).collect();
            samples += 1;
            match sample.value {
                prometheus_parse::Value::Histogram(buckets) => {
                    samples += buckets.len() - 1;
                    scraped.histograms.insert(sample.metric, buckets);
                }
                prometheus_parse::Value::Counter(value)
                | prometheus_parse::Value::Gauge(value)
                | prometheus_parse::Value::Untyped(value) => {
                    let twice = scraped.values.insert((sample.metric, labels), value);
                    assert!(twice.is_none());
                }
                prometheus_parse::Value::Summary(_) => panic!("{}", sample.metric),
            }
        }
        // The parser passes over what it does not understand.
        assert_eq!(answer.body.lines().filter(|line| !line.starts_with('#')).count(), samples, "{}", answer.body);
        scraped
    }

    #[track_caller]
    fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: BTreeMap<_, _> = labels.iter().map(|(l, said)| ((*l).to_owned(), (*said).to_owned())).collect();
        let key = (name.to_owned(), labels);
        self.values.get(&key).copied().unwrap_or_else(|| panic!("{key:?} is not in {:?}", self.values.keys()))
    }
}

/// Scrapes until it is as expected.
#[track_caller]
fn until(driven: &Driven, what: &str, holds: impl Fn(&Scraped) -> bool) -> Scraped {
    let began = Instant::now();
    loop {
        let scraped = Scraped::from(driven);
        if holds(&scraped) {
            return scraped;
        }
        assert!(began.elapsed() < PATIENCE, "it never came to this: {what}: {:?}", scraped.values);
    }
}

/// Every family says what was made to happen, and what the log says.
#[test]
fn everything_is_counted() {
    let machine = Machine::new();
    let mut driven = Driven::on_the_home(&machine);
    let before = Scraped::from(&driven);
    assert_eq!(before.get("estop_calls_ended_total", &[("status", "stopped"), ("cause", "drill")]), 0.0);
    driven.does("one-of-each");
    driven.does("spin 7");
    machine.estop(&["halt", "--agent", "nobody"]).has(0, &[]);

    // Heartbeats: whoever rests is woken to show that it would be.
    let threads = ["ticker", "preempter", "log", "halts", "control"];
    let age = |scraped: &Scraped, thread| scraped.get("estop_heartbeat_age_seconds", &[("thread", thread)]);
    let uptime = || {
        let since = before.get("estop_start_time_seconds", &[]);
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64() - since
    };
    until(&driven, "all threads give signs of life", |scraped| {
        uptime() > 4.0 && threads.iter().all(|thread| age(scraped, thread) < 2.0)
    });
    let scraped = until(&driven, "everything is in the log, and everybody is in their place", |scraped| {
        scraped.get("estop_log_waiting_entries", &[]) == 0.0
            && scraped.get("estop_calls_live", &[("state", "running")]) == f64::from(PLACES)
    });
    assert_eq!(scraped.get("estop_log_waiting_seconds", &[]), 0.0);
    assert_eq!(scraped.get("estop_calls_live", &[("state", "queued")]), 7.0 - f64::from(PLACES));
    assert_eq!(scraped.get("estop_sandbox_places", &[]), f64::from(PLACES));
    assert_eq!(scraped.get("estop_halts_in_force", &[]), 1.0);
    assert_eq!(scraped.get("estop_refuses_calls", &[]), 0.0);
    assert_eq!(scraped.get("estop_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);

    let log = machine.estop(&["log", "show", "--json"]).has(0, &[]).jsons();
    let of = |kind: &'static str| log.iter().filter(move |entry| entry["kind"] == kind);
    let count = |entries: &mut dyn Iterator<Item = &Value>| entries.count() as f64;
    let sum = |kind, from: &[&str], field: &str| -> f64 {
        let at = |entry: &Value| from.iter().fold(entry.clone(), |value, key| value[key].clone());
        of(kind).map(|entry| at(entry)[field].as_f64().unwrap()).sum()
    };
    let ended = |status, cause| scraped.get("estop_calls_ended_total", &[("status", status), ("cause", cause)]);
    for status in ["completed", "failed", "invalid-input", "conflict", "trapped"] {
        let logged = count(&mut of("end").filter(|end| end["status"] == status));
        assert!(logged >= 1.0, "{status}");
        assert_eq!(ended(status, ""), logged, "{status}");
    }
    assert_eq!((ended("refused", ""), count(&mut of("refusal"))), (1.0, 1.0));
    for (at, cause) in CAUSES.into_iter().enumerate() {
        let cause = cause.as_str();
        // Once more by itself.
        let times = (at + 1 + usize::from(cause == "fuel")) as f64;
        assert_eq!(ended("stopped", cause), times, "{cause}");
        assert_eq!(count(&mut of("end").filter(|end| end["cause"] == cause)), times);
        let interrupts = count(&mut of("interrupt").filter(|entry| entry["cause"] == cause));
        assert_eq!(scraped.get("estop_interrupts_total", &[("cause", cause)]), interrupts, "{cause}");
    }
    assert_eq!(scraped.get("estop_fuel_used_total", &[]), sum("end", &[], "fuel"));
    let commits = |result| scraped.get("estop_commits_total", &[("result", result)]);
    assert_eq!((commits("durable"), commits("conflict"), commits("refused")), (count(&mut of("commit")), 1.0, 0.0));
    assert_eq!(scraped.get("estop_committed_writes_total", &[]), sum("commit", &[], "writes"));
    assert_eq!(scraped.get("estop_committed_bytes_total", &[]), sum("commit", &[], "bytes"));
    assert_eq!(scraped.get("estop_discarded_writes_total", &[]), sum("end", &["discarded"], "writes"));
    assert_eq!(scraped.get("estop_discarded_bytes_total", &[]), sum("end", &["discarded"], "bytes"));
    assert!(sum("end", &["discarded"], "writes") >= 2.0 * 66.0);

    for moment in ["halted", "released"] {
        let field = format!("{moment}_us");
        let logged: Vec<f64> = of("end").filter_map(|end| end[&*field].as_f64()).map(|us| us / 1e6).collect();
        let name = format!("estop_{moment}_seconds");
        let buckets = &scraped.histograms[&name];
        assert_eq!((buckets[0].less_than, buckets[21].less_than), (1e-6, 10.0));
        for HistogramCount { less_than, count } in buckets {
            // As much as two ways of writing a fraction may differ.
            let within = logged.iter().filter(|seconds| **seconds <= less_than * (1.0 + 1e-9)).count();
            assert_eq!(*count, within as f64, "{name} {less_than}");
        }
        assert_eq!(scraped.get(&format!("{name}_count"), &[]), logged.len() as f64);
        let sum: f64 = logged.iter().sum();
        assert!((scraped.get(&format!("{name}_sum"), &[]) - sum).abs() < 1e-6 * logged.len() as f64, "{sum}");
    }
    assert_eq!(scraped.get("estop_halted_seconds_count", &[]), 67.0);
    driven.does("stop");
}

/// A log that cannot be written delays no stop, and stops are counted all the same; how far it is behind is told.
#[test]
fn stops_are_counted_while_the_log_is_stuck() {
    let machine = Machine::new();
    let mut driven = Driven::on_a_held_store(&machine);
    let ids = driven.does("spin 2");
    driven.does("hold");
    for id in ids.as_array().unwrap() {
        machine.estop(&["stop", id.as_str().unwrap()]).has(0, &[]);
    }
    let stuck = until(&driven, "it is stuck", |scraped| {
        scraped.get("estop_log_waiting_seconds", &[]) > 1.0
            && scraped.get("estop_heartbeat_age_seconds", &[("thread", "log")]) > 1.0
    });
    assert_eq!(stuck.get("estop_interrupts_total", &[("cause", "operator")]), 2.0);
    assert_eq!(stuck.get("estop_calls_ended_total", &[("status", "stopped"), ("cause", "operator")]), 2.0);
    assert_eq!(stuck.get("estop_halted_seconds_count", &[]), 2.0);
    // Two interrupts and two ends.
    assert!(stuck.get("estop_log_waiting_entries", &[]) >= 4.0);
    assert_eq!(stuck.get("estop_calls_live", &[("state", "committing")]), 1.0);
    assert_eq!(stuck.get("estop_refuses_calls", &[]), 1.0);
    assert_eq!(stuck.get("estop_commits_total", &[("result", "durable")]), 0.0);
    driven.does("go-on");
    until(&driven, "it has caught up", |scraped| {
        scraped.get("estop_log_waiting_entries", &[]) == 0.0
            && scraped.get("estop_refuses_calls", &[]) == 0.0
            && scraped.get("estop_commits_total", &[("result", "durable")]) == 1.0
            && scraped.get("estop_heartbeat_age_seconds", &[("thread", "log")]) < 1.0
    });
}

/// Somebody who watches.
pub(crate) struct Watcher {
    stream: BufReader<UnixStream>,
}

impl Watcher {
    /// Watches from here on.
    #[track_caller]
    pub(crate) fn begin(socket: &Path) -> Self {
        let mut watcher = Self::deaf(socket);
        assert_eq!(watcher.next().unwrap()["kind"], "watching");
        watcher
    }

    /// Asks to watch, and does not read.
    #[track_caller]
    pub(crate) fn deaf(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: estop\r\n\r\n").unwrap();
        Self { stream: BufReader::new(stream) }
    }

    /// The next event, or null if there is nothing new; none at the end.
    pub(crate) fn next(&mut self) -> Option<Value> {
        let mut kind = None;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).is_ok_and(|bytes| bytes == 0) {
                return None;
            }
            if line.starts_with(": nothing new") {
                return Some(Value::Null);
            }
            if let Some(said) = line.strip_prefix("event: ") {
                kind = Some(said.trim_end().to_owned());
            }
            if let Some(data) = line.strip_prefix("data: ") {
                let event: Value = serde_json::from_str(data).unwrap();
                assert_eq!(event["kind"].as_str(), kind.as_deref());
                return Some(event);
            }
        }
    }

    /// Until one is of this kind.
    #[track_caller]
    pub(crate) fn until(&mut self, kind: &str) -> Value {
        loop {
            match self.next() {
                Some(event) if event["kind"] == kind => return event,
                Some(_) => {}
                None => panic!("the host let go of the watcher before there was a {kind}"),
            }
        }
    }
}

/// Whoever watches is told of starts, stops, ends, halts and lifts, as they are in the log; and of the host's end.
#[test]
fn watchers_are_told_what_the_log_records() {
    let machine = Machine::new();
    let mut driven = Driven::on_the_home(&machine);
    let mut watcher = Watcher::begin(&driven.socket("operator.sock"));
    let ids = driven.does("spin 1");
    let mut told = vec![watcher.until("start")];
    assert_eq!((&told[0]["call"], &told[0]["agent"], &told[0]["tool"]), (&ids[0], &json!("spinner"), &json!("spin")));
    machine.estop(&["stop", ids[0].as_str().unwrap(), "--reason", "enough"]).has(0, &[]);
    told.push(watcher.until("interrupt"));
    assert_eq!((&told[1]["reason"], &told[1]["calls"][0][0]), (&json!("enough"), &ids[0]));
    told.push(watcher.until("end"));
    assert_eq!((&told[2]["call"], &told[2]["cause"]), (&ids[0], &json!("operator")));
    let halted = machine.estop(&["halt", "--tool", "nothing", "--json"]).has(0, &[]).json();
    told.push(watcher.until("halt"));
    let halt = halted["halt"]["halt"].as_str().unwrap();
    // The command has entered it, not this host; and it comes to the host by two ways, and is told once.
    let event = told.pop().unwrap();
    assert_eq!((&event["halt"], &event["scope"]), (&json!(halt), &json!({ "tool": "nothing" })));
    machine.estop(&["lift", halt, "--reason", "mended"]).has(0, &[]);
    loop {
        let event = watcher.next().unwrap();
        assert_ne!(event["kind"], "halt");
        if event["kind"] == "lift" {
            told.push(event);
            break;
        }
    }
    assert_eq!(told[3]["reason"], "mended");

    // As in the log, but for what ties it to the others.
    for mut entry in machine.estop(&["log", "show", "--json"]).has(0, &[]).jsons() {
        entry.as_object_mut().unwrap().retain(|key, _| key != "seq" && key != "prev");
        told.retain(|event| *event != entry);
    }
    assert_eq!(told, [] as [Value; 0]);

    // It goes on for longer than any other connection, and ends with the host.
    let quiet_since = Instant::now();
    while quiet_since.elapsed() < Duration::from_secs(16) {
        assert_eq!(watcher.next(), Some(Value::Null));
    }
    let stdin = driven.running.child.stdin.take();
    drop(stdin);
    while let Some(event) = watcher.next() {
        assert_ne!(event["kind"], "lagged");
    }
    assert!(driven.running.ended().stdout.contains("closed"));
}

/// A watcher that does not read loses events, and is told how many; neither the log nor anybody who asks waits for it.
#[test]
fn a_watcher_that_does_not_read_is_told_what_it_has_lost() {
    let machine = Machine::new();
    let mut driven = Driven::on_a_held_store(&machine);
    let mut slow = Watcher::begin(&driven.socket("operator.sock"));
    driven.does("quick 4");
    slow.until_quiet();
    let before = driven.does("entries").as_u64().unwrap();
    driven.does("quick 2000");
    until(&driven, "the log has kept up", |scraped| scraped.get("estop_log_waiting_entries", &[]) == 0.0);
    let flood = slow.until_quiet();
    driven.does("spin 1");
    driven.does("stop");
    let last = slow.until_quiet();
    let entries = driven.does("entries").as_u64().unwrap() - before;
    println!("of {entries} entries {} were told and {} were lost", flood.0, flood.1);
    assert!(flood.1 > 0, "it was no slow reader");
    assert_eq!(flood.0 + flood.1 + last.0, entries);
    assert_eq!(last.1, 0);
}

impl Watcher {
    /// Until there is nothing new: entries that were told, and that were lost.
    #[track_caller]
    fn until_quiet(&mut self) -> (u64, u64) {
        let (mut told, mut lost) = (0, 0);
        loop {
            match self.next() {
                Some(Value::Null) => return (told, lost),
                Some(event) if event["kind"] == "lagged" => lost += event["lost"].as_u64().unwrap(),
                Some(_) => told += 1,
                None => panic!("the host let go of the watcher"),
            }
        }
    }
}

/// What was told of one span.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    fields: BTreeMap<String, String>,
    events: Vec<(String, BTreeMap<String, String>)>,
    is_closed: bool,
}

/// A layer that keeps the spans of calls.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<HashMap<u64, Told>>>);

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let twice = self.0.insert(field.name().to_owned(), format!("{value:?}").trim_matches('"').to_owned());
        assert!(twice.is_none(), "{field} is told twice");
    }
}

impl<S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>> Layer<S> for Kept {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, _: Context<'_, S>) {
        if attributes.metadata().target() == "estop::call" {
            let mut told = Told::default();
            attributes.record(&mut Fields(&mut told.fields));
            self.0.lock().unwrap().insert(id.into_u64(), told);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, _: Context<'_, S>) {
        if let Some(told) = self.0.lock().unwrap().get_mut(&id.into_u64()) {
            values.record(&mut Fields(&mut told.fields));
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let Some(span) = context.event_span(event) else { return };
        if let Some(told) = self.0.lock().unwrap().get_mut(&span.id().into_u64()) {
            let mut fields = BTreeMap::new();
            event.record(&mut Fields(&mut fields));
            told.events.push((event.metadata().target().to_owned(), fields));
        }
    }

    fn on_close(&self, id: span::Id, _: Context<'_, S>) {
        if let Some(told) = self.0.lock().unwrap().get_mut(&id.into_u64()) {
            told.is_closed = true;
        }
    }
}

impl Kept {
    /// The span of a call, once it is closed.
    async fn of(&self, call: estop::CallId) -> Told {
        let call = call.to_string();
        let mut told = None;
        estop_tests::stage::until(|| {
            let spans = self.0.lock().unwrap();
            told = spans.values().find(|told| told.is_closed && told.fields["call"] == call).cloned();
            told.is_some()
        })
        .await;
        told.unwrap()
    }
}

/// One span for each call, with its end; what the guest says and who stopped it is in it.
#[tokio::test]
async fn each_call_has_a_span() {
    let kept = Kept::default();
    // In this process only children of the other tests have hosts.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(kept.clone())).unwrap();
    let host = estop_tests::small().build().unwrap();
    let (misc, runaway) = (estop_tests::load(&host, "misc").await, estop_tests::load(&host, "runaway").await);

    let outcome = estop_tests::call(&host, &misc, "log", json!({ "steps": 1 })).await;
    let told = kept.of(outcome.call).await;
    let fields = |told: &Told, names: &[&str]| -> Vec<String> {
        names.iter().map(|name| told.fields.get(*name).cloned().unwrap_or_default()).collect()
    };
    let digest = outcome.component.unwrap().to_string();
    assert_eq!(
        fields(&told, &["agent", "tool", "component", "status", "cause", "fuel"]),
        ["default", "log", &*digest, outcome.end.status(), "", &*outcome.fuel.to_string()]
    );
    assert_eq!(told.fields["elapsed_us"], outcome.elapsed.as_micros().to_string());
    assert!(told.events.iter().any(|(target, _)| target == "estop::tool"), "{told:?}");

    let call = host.agent("a").call(&runaway, "spin", json!({})).start();
    call.interrupt(estop::Cause::Operator, "alice\n");
    let outcome = call.outcome().await;
    let told = kept.of(outcome.call).await;
    assert_eq!(fields(&told, &["agent", "tool", "status", "cause"]), ["a", "spin", "stopped", "operator"]);
    let [(target, event)] = &told.events[..] else { panic!("{told:?}") };
    assert_eq!((&**target, &*event["cause"], &*event["actor"]), ("estop::call", "operator", r"alice\n"));
    let log = estop_tests::log(&host).await;
    assert_eq!(event["interrupt"], estop_tests::end_entry(&log, &outcome)["interrupt"].as_str().unwrap());
}
