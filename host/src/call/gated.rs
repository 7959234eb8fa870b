//! The future that stands between the workers and a guest.
//!
//! Invariant: the inner future is polled between `enter` and `leave` only. When either says that the gate is closed, it
//! is never polled again: dropping it unwinds the guest's stack without running any of its code.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::CallState;
use super::meter::Meter;
use crate::host::Core;

pub(super) enum Ended<T> {
    /// By itself.
    Ready(T),
    /// The gate was closed.
    Interrupted,
    /// A host function, or the host, panicked.
    Panicked(String),
}

pub(super) struct Gated<'a, F> {
    core: &'a Core,
    call: &'a Arc<CallState>,
    inner: Pin<&'a mut Option<F>>,
    meter: Option<Meter>,
}

impl<'a, F: Future> Gated<'a, F> {
    /// `inner` is emptied when the gate is closed.
    pub(super) fn new(core: &'a Core, call: &'a Arc<CallState>, inner: Pin<&'a mut Option<F>>) -> Self {
        Self { core, call, inner, meter: None }
    }
}

impl<F> Gated<'_, F> {
    /// Unwinds the guest's stack. A panic of what a host function left there ends here too.
    fn interrupted<T>(&mut self) -> Ended<T> {
        let inner = self.inner.as_mut();
        if catch_unwind(AssertUnwindSafe(|| {
            let mut inner = inner;
            inner.set(None);
        }))
        .is_err()
        {
            tracing::error!(call = %self.call.id, "a host function panicked while it was dropped");
        }
        Ended::Interrupted
    }
}

impl<F: Future> Future for Gated<'_, F> {
    type Output = Ended<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Before the gate is looked at: an interrupt from here on finds somebody to wake.
        self.call.waker.register(cx.waker());
        let entered = self.call.gate.enter().is_ok();
        let meter = self.meter.take().map(|meter| meter.of(cx.waker()));
        let Some(inner) = self.inner.as_mut().as_pin_mut().filter(|_| entered) else {
            return Poll::Ready(self.interrupted());
        };
        let waker = meter.as_ref().map_or(cx.waker(), Meter::waker);
        let polled = catch_unwind(AssertUnwindSafe(|| inner.poll(&mut Context::from_waker(waker))));
        if self.call.gate.leave().is_err() {
            self.call.halted(self.core.now_ns());
            return Poll::Ready(self.interrupted());
        }
        match polled {
            Ok(Poll::Pending) => {
                let seen = self.call.live.fuel_seen();
                self.meter = Some(Meter::pending(meter, cx.waker(), &self.call.live));
                super::charge(self.core, self.call, self.call.live.fuel_seen() - seen);
                Poll::Pending
            }
            Ok(Poll::Ready(value)) => Poll::Ready(Ended::Ready(value)),
            Err(panic) => Poll::Ready(Ended::Panicked(message(&*panic))),
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let mut text = text.unwrap_or("(without a message)").to_owned();
    crate::interrupt::cut(&mut text, crate::interrupt::TEXT_BYTES_MAX);
    text
}
