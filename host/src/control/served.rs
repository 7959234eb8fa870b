//! The components that agents can call through the host's socket, by name.
//!
//! Invariant: a call is registered while the shelf is held, and a component is taken from here before its calls are stopped.
//! So whoever takes one away, or puts another one in its place, meets every call of it.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::{mpsc, oneshot};

use super::protocol::ServedComponent;
use crate::tools::Component;

/// Names that one message lists.
const NAMED_MAX: usize = 20;
/// Errands that wait for whoever keeps the shelf.
const ERRANDS_MAX: usize = 16;

/// A shelf of components for [`HostBuilder::serve_agents`](crate::HostBuilder::serve_agents). Cloning gives another handle
/// on the same one; it can be changed while agents call.
#[derive(Clone, Default)]
pub struct Served {
    shelf: Arc<RwLock<Shelf>>,
    /// Where somebody keeps it who can be asked.
    errands: Arc<OnceLock<mpsc::Sender<Errand>>>,
}

/// What an admin asks of whoever keeps the shelf. An error says why it was not done.
pub(crate) enum Errand {
    /// To look at the files now; and to put this component back, or all of them, if they were taken away.
    Load { component: Option<String>, actor: String, done: oneshot::Sender<Result<(), String>> },
    /// To take a component away until it is put back, and to stop its calls: how many.
    Unload { component: String, actor: String, reason: String, done: oneshot::Sender<Result<usize, String>> },
}

/// For whoever keeps the shelf.
#[cfg_attr(not(feature = "cli"), expect(dead_code, reason = "only `estop serve` keeps one"))]
pub(crate) type Errands = mpsc::Receiver<Errand>;

/// Whether somebody sees to an errand.
pub(super) enum Asked {
    Taken,
    Busy,
    Nobody,
}

#[derive(Default)]
struct Shelf {
    places: BTreeMap<String, Place>,
    trouble: Option<String>,
}

#[derive(Default)]
struct Place {
    component: Option<Component>,
    error: Option<String>,
}

/// There is no such tool here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotServed {
    #[error("no component has a tool `{tool}`; there are: {}", listed(.known))]
    Tool { tool: String, known: Vec<String> },
    #[error("no component `{component}` is served; there are: {}", listed(.known))]
    Component { component: String, known: Vec<String> },
    #[error("several components have a tool `{tool}`, say which one: {}", listed(.components))]
    Ambiguous { tool: String, components: Vec<String> },
    #[error("the component `{component}` is not loaded: {why}")]
    NotLoaded { component: String, why: String },
}

fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    match names {
        [] => "none".into(),
        names if more > 0 => format!("{} and {more} more", names[..NAMED_MAX].join(", ")),
        names => names.join(", "),
    }
}

impl Served {
    /// Nothing to call.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on whoever asks is heard here. `None`: somebody else keeps it.
    #[cfg(feature = "cli")]
    pub(crate) fn keep(&self) -> Option<Errands> {
        let (ask, errands) = mpsc::channel(ERRANDS_MAX);
        self.errands.set(ask).is_ok().then_some(errands)
    }

    /// Never waits.
    pub(super) fn ask(&self, errand: Errand) -> Asked {
        match self.errands.get().map(|keeper| keeper.try_send(errand)) {
            None | Some(Err(mpsc::error::TrySendError::Closed(_))) => Asked::Nobody,
            Some(Err(mpsc::error::TrySendError::Full(_))) => Asked::Busy,
            Some(Ok(())) => Asked::Taken,
        }
    }

    /// New calls get this component from now on, under the name that it was loaded with. What they got before.
    pub fn put(&self, component: Component) -> Option<Component> {
        let place = Place { component: Some(component.clone()), error: None };
        self.write().places.insert(component.name().to_owned(), place).and_then(|before| before.component)
    }

    /// Why what agents get under this name is not what they should get. What is there stays.
    pub fn fail(&self, name: impl Into<String>, why: impl Into<String>) {
        self.write().places.entry(name.into()).or_default().error = Some(why.into());
    }

    /// What is there is what should be.
    pub fn mend(&self, name: &str) {
        if let Some(place) = self.write().places.get_mut(name) {
            place.error = None;
        }
    }

    /// New calls do not find it any more. What was there: to stop its calls, interrupt its digest after this.
    pub fn remove(&self, name: &str) -> Option<Component> {
        self.write().places.remove(name).and_then(|place| place.component)
    }

    /// Told to whoever lists the tools: why the whole is not what it should be.
    pub fn trouble(&self, why: Option<String>) {
        self.write().trouble = why;
    }

    /// Starts a call of what is there now. `start` has to register it, and must not wait: the shelf is held meanwhile.
    pub(super) fn start<T>(
        &self,
        tool: &str,
        component: Option<&str>,
        start: impl FnOnce(&Component) -> T,
    ) -> Result<T, NotServed> {
        self.read().find(tool, component).map(start)
    }

    /// Everything, for whoever looks.
    pub(crate) fn list(&self) -> (Vec<ServedComponent>, Option<String>) {
        let shelf = self.read();
        let served = |(name, place): (&String, &Place)| ServedComponent {
            component: name.clone(),
            digest: place.component.as_ref().map(Component::digest),
            error: place.error.clone(),
            tools: place.component.as_ref().map(|component| component.tools().to_vec()).unwrap_or_default(),
        };
        (shelf.places.iter().map(served).collect(), shelf.trouble.clone())
    }

    /// Held for a moment only, and never while anything is waited for.
    fn read(&self) -> RwLockReadGuard<'_, Shelf> {
        self.shelf.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shelf> {
        self.shelf.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    /// The component that has this tool; and of which one, if the name of the tool does not say.
    fn find(&self, tool: &str, component: Option<&str>) -> Result<&Component, NotServed> {
        let known = || self.places.keys().cloned().collect();
        if let Some(name) = component {
            let unknown = || NotServed::Component { component: name.to_owned(), known: known() };
            let place = self.places.get(name).ok_or_else(unknown)?;
            let why = || place.error.clone().unwrap_or_default();
            let missing = || NotServed::NotLoaded { component: name.to_owned(), why: why() };
            return place.component.as_ref().ok_or_else(missing);
        }
        let served = self.places.values().filter_map(|place| place.component.as_ref());
        let having: Vec<&Component> = served.clone().filter(|component| component.tool(tool).is_some()).collect();
        match having[..] {
            [component] => Ok(component),
            [] => match self.places.iter().find(|(_, place)| place.component.is_none()) {
                // It may be the one that has it.
                Some((name, Place { error: Some(why), .. })) => {
                    Err(NotServed::NotLoaded { component: name.clone(), why: why.clone() })
                }
                _ => {
                    let full = |component: &Component| {
                        let name = component.name().to_owned();
                        component.tools().iter().map(|tool| format!("{name}/{}", tool.name)).collect::<Vec<_>>()
                    };
                    Err(NotServed::Tool { tool: tool.to_owned(), known: served.flat_map(full).collect() })
                }
            },
            _ => {
                let components = having.iter().map(|component| component.name().to_owned()).collect();
                Err(NotServed::Ambiguous { tool: tool.to_owned(), components })
            }
        }
    }
}
