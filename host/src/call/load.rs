//! Loading a component, from its bytes to its description: a call of the host's own, tool `load` of agent `host`.
//!
//! Invariants:
//! - Whatever works on a load has ended before its call is released: the thread that reads or compiles, the compiler's
//!   process, the call in which the component describes itself.
//! - A component is in the host's table only if the gate let its load end by itself.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;
use tokio::sync::{SemaphorePermit, oneshot};

use super::gated::Gated;
use super::live::HostCall;
use super::{Answer, Call, CallState, End, Failure, Fault, Output, Run, Stopped, end, may_start, start_deadline};
use crate::host::Core;
use crate::interrupt::{Cause, HOST_ACTOR};
use crate::tools::compile::Switch;
use crate::tools::{Code, Component, LoadError, Source, describe};

/// What it is called in the inventory and in the log.
pub(crate) const TOOL: &str = "load";

/// What is to be loaded, and for whom.
pub(super) struct Order {
    source: Source,
    answer: oneshot::Sender<Result<Component, LoadError>>,
}

/// A load that has begun. Dropping it stops it.
pub(crate) struct Load {
    core: Arc<Core>,
    call: Call,
    answer: oneshot::Receiver<Result<Component, LoadError>>,
}

impl Load {
    /// From here on interrupts meet it.
    pub(crate) fn start(core: &Arc<Core>, source: Source, priority: u8) -> Self {
        let (answer, is_loaded) = oneshot::channel();
        let call = Call::load(Arc::clone(core), Order { source, answer }, priority);
        Self { core: Arc::clone(core), call, answer: is_loaded }
    }

    /// Stops it.
    #[cfg(feature = "cli")]
    pub(crate) fn interrupt(&self, interrupt: crate::Interrupt) {
        drop(self.call.interrupt_with(interrupt));
    }

    /// How it ended, once nothing works on it any more.
    pub(crate) async fn loaded(self) -> Result<Component, LoadError> {
        let outcome = self.call.outcome().await;
        match &outcome.end {
            End::Stopped(stopped) => Err(match self.core.tools.compiler.deadline() {
                Some(deadline) if stopped.cause == Cause::Deadline && stopped.actor == HOST_ACTOR => {
                    LoadError::CompileLimit(format!("too slow to compile: it was not done after {deadline:?}"))
                }
                _ => stopped.into(),
            }),
            End::Refused(_) if self.core.closing.load(Ordering::Acquire) => Err(LoadError::Closing),
            End::Refused(why) => Err(LoadError::Refused(why.clone())),
            // Sent before the call ended, unless loading has panicked.
            _ => self.answer.await.unwrap_or_else(|_| Err(panicked())),
        }
    }
}

impl From<&Stopped> for LoadError {
    fn from(stopped: &Stopped) -> Self {
        let Stopped { cause, actor, reason, .. } = stopped.clone();
        LoadError::Stopped { cause, actor, reason }
    }
}

fn panicked() -> LoadError {
    LoadError::Compile("loading it panicked; please report this with the component".into())
}

/// A component that has passed everything, before it is in the table.
pub(super) struct Loaded {
    component: Component,
    answer: oneshot::Sender<Result<Component, LoadError>>,
}

impl Loaded {
    /// `None`: the load was stopped before.
    pub(super) fn conclude(self, core: &Core, call: &CallState) -> Option<End> {
        call.gate.settle().ok()?;
        let inserted = core.tools.insert(self.component, core.limits.components_max);
        let end = match &inserted {
            Ok(_) => End::Completed(Output { json: Value::Null, attachments: Vec::new() }),
            Err(error) => End::Failed(error.into()),
        };
        // Whoever asked may have gone away.
        let _ = self.answer.send(inserted);
        Some(end)
    }
}

impl From<&LoadError> for Failure {
    fn from(error: &LoadError) -> Self {
        Self { code: error.code().into(), message: error.to_string(), retryable: false, data: None }
    }
}

/// Loads a component for a call that is registered already.
pub(super) async fn drive(core: Arc<Core>, call: Arc<CallState>, order: Order) {
    let mut run = Run::default();
    let ended = {
        let load = pin!(Some(load(&core, &call, order, &mut run)));
        Gated::new(&core, &call, load).await
    };
    end(&core, &call, ended, run).await;
}

async fn load<'a>(
    core: &'a Arc<Core>,
    call: &Arc<CallState>,
    order: Order,
    run: &mut Run<'a>,
) -> Result<Answer, Fault> {
    let Order { source, answer } = order;
    match carry_out(core, call, source, run).await {
        Ok(component) => Ok(Answer::Loaded(Loaded { component, answer })),
        Err(error) => {
            let fault = match &error {
                LoadError::Refused(why) => Fault::Refused(why.clone()),
                error => Fault::Failed(error.into()),
            };
            let _ = answer.send(Err(error));
            Err(fault)
        }
    }
}

/// An interrupt can meet it at every `await`. What then still works is in `run.held`.
async fn carry_out<'a>(
    core: &'a Arc<Core>,
    call: &Arc<CallState>,
    source: Source,
    run: &mut Run<'a>,
) -> Result<Component, LoadError> {
    may_start(core, call).await.map_err(LoadError::Refused)?;
    let source = Arc::new(source);
    let (bytes, digest) = {
        let _reading = call.live.enter(HostCall::LoadRead);
        let (source, bytes_max) = (Arc::clone(&source), core.limits.component_bytes_max);
        run.held.aside(core, move || source.read(bytes_max)).await?
    };
    // Only now it is known what is loaded, and whether that is halted.
    call.is_about(digest);
    may_start(core, call).await.map_err(LoadError::Refused)?;
    source.check(digest)?;
    let name = source.name(digest)?;
    if let Some(component) = core.tools.find(digest, &name) {
        return Ok(component);
    }
    let known = match core.tools.code(digest) {
        Some(code) => Some(code),
        None => {
            let task_core = Arc::clone(core);
            run.held.aside(core, move || task_core.tools.cached(&task_core, digest)).await?.map(Arc::new)
        }
    };
    let code = match known {
        Some(code) => {
            run.start(core, call, None);
            code
        }
        None => {
            let task_core = Arc::clone(core);
            let compile = move |switch: &Switch| task_core.tools.compile(&task_core, digest, &bytes, switch);
            let code = compiled(core, call, run, compile).await?;
            // The rest has no deadline, or one of its own.
            start_deadline(core, call, 0, None);
            Arc::new(code)
        }
    };
    let specs = {
        let _describing = call.live.enter(HostCall::LoadDescribe);
        let asked = describe::ask(call, core, &code, &name);
        run.held.describing = Some(Arc::clone(&asked.call));
        asked.answer().await?
    };
    let tools_max = core.limits.tools_max;
    let tools = run.held.aside(core, move || describe::check(specs, tools_max)).await?;
    Ok(Component::new(digest, name, tools, code))
}

/// Once there is a place. On a thread of its own: the runtime's are for what is over soon.
async fn compiled<'a>(
    core: &'a Arc<Core>,
    call: &Arc<CallState>,
    run: &mut Run<'a>,
    compile: impl FnOnce(&Switch) -> Result<Code, LoadError> + Send + 'static,
) -> Result<Code, LoadError> {
    run.held.place = {
        let _waiting = call.live.enter(HostCall::LoadWait);
        core.tools.compiler.place().await
    };
    run.start(core, call, core.tools.compiler.deadline());
    let _compiling = call.live.enter(HostCall::LoadCompile);
    let switch = Arc::new(Switch::default());
    run.held.switch = Some(Arc::clone(&switch));
    let (work, code) = run.held.work(move || compile(&switch));
    let thread = thread::Builder::new().name("estop-compile".into()).spawn(work);
    drop(thread.map_err(|error| LoadError::Compile(format!("cannot start a thread for it: {error}")))?);
    let code = code.await.unwrap_or_else(|_| Err(panicked()));
    run.held.place = None;
    code
}

/// What works on a load and does not end when its future is dropped. One thing at a time.
#[derive(Default)]
pub(super) struct Held<'a> {
    work: Option<Work>,
    /// Kills the compiler's process.
    switch: Option<Arc<Switch>>,
    /// Stopped with the load, as every call below another one.
    describing: Option<Arc<CallState>>,
    /// For whoever is compiled next.
    place: Option<SemaphorePermit<'a>>,
}

/// Something that a thread does.
struct Work {
    /// Who is first: the thread that begins, or the load's end.
    taken: Arc<AtomicBool>,
    /// Resolves when the thread is done.
    ended: oneshot::Receiver<()>,
}

impl Held<'_> {
    /// Waits until nothing works any more. Without a bound of its own: until then the call is not released, and is said to
    /// be stopping, or unconfirmed.
    pub(super) async fn end(&mut self) {
        if let Some(switch) = self.switch.take() {
            switch.throw();
        }
        if let Some(work) = self.work.take()
            // If it has not begun, it will not.
            && work.taken.swap(true, Ordering::AcqRel)
        {
            // The other end is dropped, not used.
            let _ = work.ended.await;
        }
        if let Some(call) = self.describing.take() {
            call.outcome().await;
        }
        self.place = None;
    }

    /// What is over soon, on a thread of the runtime.
    async fn aside<T: Send + 'static>(
        &mut self,
        core: &Core,
        work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
    ) -> Result<T, LoadError> {
        let (work, result) = self.work(work);
        drop(core.io.handle.spawn_blocking(work));
        result.await.unwrap_or_else(|_| Err(panicked()))
    }

    /// For a thread to do; and its result.
    fn work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
    ) -> (impl FnOnce() + Send + 'static, oneshot::Receiver<Result<T, LoadError>>) {
        let (result, is_there) = oneshot::channel();
        let (ends, ended) = oneshot::channel::<()>();
        let taken = Arc::new(AtomicBool::new(false));
        self.work = Some(Work { taken: Arc::clone(&taken), ended });
        let thread = move || {
            let _ends = ends;
            if !taken.swap(true, Ordering::AcqRel) {
                // If nobody waits for it, it is dropped here, before this has ended.
                let _ = result.send(work());
            }
        };
        (thread, is_there)
    }
}
