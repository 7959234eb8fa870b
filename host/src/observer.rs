//! Observers: an embedder's own eyes, off the path of every stop.
//!
//! Invariant: an observer that is slow or stuck loses events and delays nobody.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

#[cfg(feature = "control")]
use crate::control::events::Feed;
use crate::log::Entry;

/// Events that wait for an observer; more are lost.
const EVENTS_MAX: usize = 4096;

/// Is told what the log is told. Lossy: the log is the record, this is for looking on.
pub trait Observer: Send + 'static {
    /// Something was entered. Called on a thread of its own.
    fn entry(&mut self, entry: &Entry);
}

#[derive(Clone, Default)]
pub(crate) struct Observers {
    queues: Arc<[SyncSender<Entry>]>,
    /// For whoever watches from other processes.
    #[cfg(feature = "control")]
    pub(crate) feed: Arc<Feed>,
}

impl Observers {
    /// One thread for each; it ends with the log.
    pub(crate) fn start(observers: Vec<Box<dyn Observer>>) -> std::io::Result<Self> {
        let mut queues = Vec::with_capacity(observers.len());
        for mut observer in observers {
            let (queue, events) = sync_channel::<Entry>(EVENTS_MAX);
            thread::Builder::new()
                .name("estop-observe".into())
                .spawn(move || events.iter().for_each(|entry| observer.entry(&entry)))?;
            queues.push(queue);
        }
        Ok(Self {
            queues: queues.into(),
            #[cfg(feature = "control")]
            feed: Arc::default(),
        })
    }

    pub(crate) fn entry(&self, entry: &Entry) {
        #[cfg(feature = "control")]
        self.feed.entry(entry);
        for queue in &*self.queues {
            // Full or gone: lossy by contract.
            let _ = queue.try_send(entry.clone());
        }
    }
}
