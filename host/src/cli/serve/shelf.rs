//! What is served, and what the files say that should be.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::look::Stamp;
use crate::cli::{printable, say};
use crate::control::{Errand, Errands, Served};
use crate::interrupt::{HOST_ACTOR, TEXT_BYTES_MAX, cut};
use crate::log::{EntryKind, Record};
use crate::policy::{Policy, ToolPolicy};
use crate::{Cause, Component, Digest, HaltId, Host, Interrupt, Scope, Source};

/// What is told of a component that is loaded for the first time.
const LOADING: &str = "it is being loaded; try again";

/// The components of one host, as its configuration has them.
pub(super) struct Shelf {
    host: Host,
    served: Served,
    errands: Option<Errands>,
    config: PathBuf,
    stamp: Stamp,
    policy: Policy,
    tools: BTreeMap<String, Kept>,
    /// In force at the last look: what they have kept out may be let in by another one.
    halts: Vec<HaltId>,
    /// Why the configuration on the disk is not the one that is kept to.
    trouble: Option<String>,
}

/// One component.
struct Kept {
    tool: ToolPolicy,
    /// Of the file when it was last loaded, or not.
    stamp: Option<Stamp>,
    component: Option<Component>,
    /// Versions whose calls may still run.
    earlier: Vec<Digest>,
    error: Option<String>,
    /// It was taken away, and is not loaded until it is put back.
    is_away: bool,
}

impl Shelf {
    /// Nothing is loaded yet.
    pub(super) fn new(host: Host, served: Served, config: PathBuf, stamp: Stamp, policy: Policy) -> Self {
        let halts = halts(&host);
        let (tools, trouble, errands) = (BTreeMap::new(), None, served.keep());
        let mut shelf = Self { host, served, errands, config, stamp, policy, tools, halts, trouble };
        shelf.take_over();
        shelf
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// In one line, for people.
    pub(super) fn says(&self) -> String {
        let loaded = self.tools.values().filter_map(|kept| kept.component.as_ref());
        let tools: usize = loaded.clone().map(|component| component.tools().len()).sum();
        let broken: Vec<_> = self.tools.iter().filter(|(_, kept)| kept.error.is_some()).collect();
        let mut text = format!("{tools} tools of {} components", loaded.count());
        if !broken.is_empty() {
            let names: Vec<_> = broken.iter().map(|(name, _)| printable(name)).collect();
            text += &format!("; NOT as on the disk: {}", names.join(", "));
        }
        if self.trouble.is_some() {
            text += "; the configuration on the disk is not in force";
        }
        text
    }

    /// Looks at the files; at all of them as if they had changed, if `all` is set. Whether anything is different.
    pub(super) async fn look(&mut self, all: bool) -> bool {
        let stamp = Stamp::of(&self.config);
        let mut changed = false;
        if all || !stamp.is_same(&self.stamp) {
            self.stamp = stamp;
            changed = self.read();
        }
        if all {
            self.tools.values_mut().for_each(|kept| (kept.stamp, kept.is_away) = (None, false));
        }
        let halts = halts(&self.host);
        if halts != self.halts {
            self.halts = halts;
            self.try_again();
        }
        self.load().await || changed
    }

    /// Reads the configuration. Whether that made a difference.
    fn read(&mut self) -> bool {
        let before = (self.policy.clone(), self.trouble.clone());
        match Policy::read(&self.config) {
            Ok(policy) => {
                let tools = policy.tools.clone();
                self.trouble = (policy.host != self.policy.host).then(|| {
                    format!(
                        "{}: [host], [limits] or [[grants]] have changed; that takes effect when `estop serve` is started again, \
                         and the old ones hold until then",
                        self.config.display()
                    )
                });
                self.policy.tools = tools;
                self.take_over();
            }
            Err(error) => self.trouble = Some(format!("{error}; the configuration from before stays in force")),
        }
        self.served.trouble(self.trouble.clone());
        if self.trouble != before.1
            && let Some(trouble) = &self.trouble
        {
            say(&format!("estop: NOT RELOADED: {}", printable(trouble)));
        }
        self.policy.tools != before.0.tools || self.trouble != before.1
    }

    /// Drops what is not in the configuration any more, and makes a place for what is new in it.
    fn take_over(&mut self) {
        let gone: Vec<_> = self.tools.keys().filter(|name| !self.policy.tools.contains_key(*name)).cloned().collect();
        for name in gone {
            if let Some(kept) = self.tools.remove(&name) {
                self.unload(&name, kept, HOST_ACTOR, "");
                // There may be room now.
                self.try_again();
            }
        }
        for (name, tool) in &self.policy.tools {
            match self.tools.get_mut(name) {
                Some(kept) if kept.tool == *tool => {}
                Some(kept) => (kept.tool, kept.stamp) = (tool.clone(), None),
                None => {
                    self.served.fail(name, LOADING);
                    let (tool, error) = (tool.clone(), None);
                    let kept = Kept { tool, stamp: None, component: None, earlier: Vec::new(), error, is_away: false };
                    self.tools.insert(name.clone(), kept);
                }
            }
        }
    }

    /// What could not be loaded may be loaded now, although its file is the same.
    fn try_again(&mut self) {
        self.tools.values_mut().filter(|kept| kept.error.is_some()).for_each(|kept| kept.stamp = None);
    }

    /// Its running calls are stopped, unless what they run is still served under another name.
    fn unload(&mut self, name: &str, kept: Kept, actor: &str, reason: &str) -> usize {
        // First, so that no call begins after the walk.
        self.served.remove(name);
        let mut digests = kept.earlier;
        if let Some(component) = kept.component {
            self.host.unload(&component);
            digests.push(component.digest());
        }
        digests.sort();
        digests.dedup();
        let mut stopped = 0;
        for digest in digests {
            let is_used = |kept: &Kept| {
                kept.earlier.contains(&digest) || kept.component.as_ref().is_some_and(|other| other.digest() == digest)
            };
            if !self.tools.values().any(is_used) && self.host.runs(digest) {
                stopped += self.host.interrupt(Scope::Component(digest), unloaded(name, actor, reason)).len();
            }
        }
        say(&format!("estop: `{}` was unloaded; {stopped} calls were stopped", printable(name)));
        stopped
    }

    /// Something that an admin asks for.
    pub(super) async fn errand(&mut self) -> Errand {
        if let Some(errands) = &mut self.errands
            && let Some(errand) = errands.recv().await
        {
            return errand;
        }
        // Nobody can ask here.
        std::future::pending().await
    }

    /// Does what an admin has asked for.
    pub(super) async fn run(&mut self, errand: Errand) {
        // Whoever asked may have gone away: it is done, and entered, all the same.
        match errand {
            Errand::Load { component, actor, done } => drop(done.send(self.put_back(component, actor).await)),
            Errand::Unload { component, actor, mut reason, done } => {
                cut(&mut reason, TEXT_BYTES_MAX);
                drop(done.send(self.take_away(&component, &actor, &reason)));
            }
        }
    }

    async fn put_back(&mut self, component: Option<String>, actor: String) -> Result<(), String> {
        match &component {
            Some(name) => {
                let unknown = || format!("the configuration has no component `{name}`");
                let kept = self.tools.get_mut(name).ok_or_else(unknown)?;
                (kept.stamp, kept.is_away) = (None, false);
                self.enter(EntryKind::Load { name: component, actor });
                self.look(false).await;
            }
            None => {
                self.enter(EntryKind::Load { name: None, actor });
                self.look(true).await;
            }
        }
        Ok(())
    }

    fn take_away(&mut self, name: &str, actor: &str, reason: &str) -> Result<usize, String> {
        let kept = self.tools.remove(name).ok_or_else(|| format!("the configuration has no component `{name}`"))?;
        let (tool, digest) = (kept.tool.clone(), kept.component.as_ref().map(Component::digest));
        // The reason first: from the next moment on calls are stopped for it.
        let (name, actor, reason) = (name.to_owned(), actor.to_owned(), reason.to_owned());
        let kind =
            EntryKind::Unload { name: name.clone(), component: digest, actor: actor.clone(), reason: reason.clone() };
        self.enter(kind);
        let stopped = self.unload(&name, kept, &actor, &reason);
        let why = format!("it was taken away by {actor}: {reason}");
        self.served.fail(&name, &why);
        let (stamp, component, earlier, error) = (None, None, Vec::new(), Some(why));
        self.tools.insert(name, Kept { tool, stamp, component, earlier, error, is_away: true });
        Ok(stopped)
    }

    fn enter(&self, kind: EntryKind) {
        self.host.core().log.record(Record::Noted(kind));
    }

    /// Loads what has changed. Whether anything has.
    pub(super) async fn load(&mut self) -> bool {
        let mut changed = false;
        for (name, kept) in self.tools.iter_mut().filter(|(_, kept)| !kept.is_away) {
            let stamp = Stamp::of(&kept.tool.path);
            if kept.stamp.is_some_and(|before| stamp.is_same(&before)) {
                continue;
            }
            let mut source = Source::file(&kept.tool.path).named(name.clone());
            if let Some(digest) = kept.tool.digest {
                source = source.expect_digest(digest);
            }
            let loaded = self.host.load(source).await;
            // Not before: a look that was broken off has not happened.
            kept.stamp = Some(stamp);
            let error = match loaded {
                Ok(component) => {
                    changed |= kept.put(&self.host, &self.served, component);
                    None
                }
                Err(error) => Some(format!("`{}`: {error}", kept.tool.path.display())),
            };
            if kept.error != error {
                changed = true;
                match &error {
                    Some(why) => {
                        let stays = if kept.component.is_some() { "; the one from before stays" } else { "" };
                        self.served.fail(name, why);
                        say(&format!("estop: NOT LOADED: {}: {}{stays}", printable(name), printable(why)));
                    }
                    None => self.served.mend(name),
                }
                kept.error = error;
            }
        }
        changed
    }
}

impl Kept {
    /// Calls get this one from now on; those of the one before go on. Whether it is another one.
    fn put(&mut self, host: &Host, served: &Served, component: Component) -> bool {
        let digest = component.digest();
        let before = self.component.replace(component.clone());
        if before.as_ref().is_some_and(|before| before.digest() == digest) {
            return false;
        }
        served.put(component);
        if let Some(before) = before {
            host.unload(&before);
            self.earlier.push(before.digest());
        }
        // No call of theirs can begin any more.
        self.earlier.retain(|earlier| *earlier != digest && host.runs(*earlier));
        true
    }
}

/// What stops the calls of a component that was taken away.
fn unloaded(name: &str, actor: &str, reason: &str) -> Interrupt {
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    Interrupt::new(Cause::Shutdown, actor).reason(format!("the tool `{name}` was unloaded{reason}"))
}

fn halts(host: &Host) -> Vec<HaltId> {
    host.halts().iter().map(|halt| halt.halt).collect()
}
