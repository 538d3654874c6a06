//! One timer for every wait that the client is to blame for.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    task::unconstrained,
    time::{Instant, Sleep, sleep},
};

use crate::{
    Limits,
    activity::{Activity, Wait},
};

/// Ends a wait for the client that takes too long. Looks at what happened after each turn of the connection's task, so a
/// request costs it two glances at the clock and no timer of its own.
pub(crate) struct Watchdog<'a> {
    limits: &'a Limits,
    activity: &'a Activity,
    wait: Wait,
    timer: Pin<Box<Sleep>>,
    /// Whether the timer counts: it is left to run out when there is nothing to limit, which is cheaper than stopping it.
    armed: bool,
}

impl<'a> Watchdog<'a> {
    pub(crate) fn new(limits: &'a Limits, activity: &'a Activity) -> Self {
        Self { limits, activity, wait: Wait::Handler, timer: Box::pin(sleep(Duration::ZERO)), armed: false }
    }

    /// Ready with the wait that took too long.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Wait> {
        let wait = self.activity.wait();
        if wait != self.wait {
            self.begin(wait);
        }
        if !self.armed {
            return Poll::Pending;
        }
        // A client that keeps the task busy uses up its budget, without which the timer would never look at the clock.
        pin!(unconstrained(self.timer.as_mut())).poll(cx).map(|()| wait)
    }

    fn begin(&mut self, wait: Wait) {
        let now = Instant::now();
        let deadline = self.limit(wait).and_then(|limit| now.checked_add(limit));
        if let Some(deadline) = deadline {
            self.timer.as_mut().reset(deadline);
        }
        self.armed = deadline.is_some();
        self.wait = wait;
        match wait {
            Wait::NextRequest { .. } => self.activity.set_idle_since(now),
            _ => self.activity.set_busy(),
        }
    }

    /// How long the client may take.
    fn limit(&self, wait: Wait) -> Option<Duration> {
        match wait {
            Wait::Handler => None,
            Wait::Header { .. } => Some(self.limits.header_timeout),
            Wait::NextRequest { .. } => Some(self.limits.idle_timeout),
            Wait::Reader { .. } => Some(self.limits.write_timeout),
            Wait::Linger => Some(self.limits.linger_timeout),
        }
    }
}
