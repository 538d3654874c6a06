//! Request bodies, with time limits, and response bodies, whose end marks the end of an exchange.

use std::{
    error::Error,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{BoxError, body::Body};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{Limits, activity::Activity};

/// The error when a request's body stalls or arrives too slowly. The handler should answer 408 (RFC 9110 §15.5.9); the connection
/// closes after the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request body arrived too slowly")]
pub struct BodyTooSlow;

impl BodyTooSlow {
    /// Whether this is the cause of an error, however deeply the readers of the body have wrapped it.
    #[must_use]
    pub fn is_cause_of(error: &(dyn Error + 'static)) -> bool {
        std::iter::successors(Some(error), |&error| error.source()).any(|error| error.is::<Self>())
    }
}

/// A request's body that fails with [`BodyTooSlow`] when its reader has to wait for the client longer than the limits allow.
///
/// Only the time in which the reader waits counts, so a slow handler does not use up the client's time.
pub(crate) struct RequestBody {
    incoming: Incoming,
    limits: Arc<Limits>,
    activity: Arc<Activity>,
    received: u64,
    waited: Duration,
    waiting_since: Option<Instant>,
    /// Created at the first wait.
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl RequestBody {
    /// Wraps the incoming body for a handler.
    pub(crate) fn wrap(incoming: Incoming, limits: Arc<Limits>, activity: &Arc<Activity>) -> Body {
        if incoming.is_end_stream() {
            return Body::empty();
        }
        Body::new(Self {
            incoming,
            limits,
            activity: Arc::clone(activity),
            received: 0,
            waited: Duration::ZERO,
            waiting_since: None,
            timer: None,
            ended: false,
        })
    }

    /// How long the reader may still wait for the next bytes.
    fn remaining_wait(&self) -> Duration {
        let earned = self.received.saturating_mul(1_000_000).checked_div(self.limits.body_min_rate);
        let total = earned.map_or(Duration::MAX, |micros| self.limits.body_grace.saturating_add(Duration::from_micros(micros)));
        self.limits.body_idle_timeout.min(total.saturating_sub(self.waited))
    }

    /// Ready when the reader has waited too long.
    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiting_since.is_none() {
            self.begin_wait(Instant::now());
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    fn begin_wait(&mut self, now: Instant) {
        self.activity.await_body(true);
        self.waiting_since = Some(now);
        self.timer = now.checked_add(self.remaining_wait()).map(|deadline| match self.timer.take() {
            Some(mut timer) => {
                timer.as_mut().reset(deadline);
                timer
            }
            None => Box::pin(sleep_until(deadline)),
        });
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            ready!(self.poll_timeout(cx));
            return Poll::Ready(Some(Err(BodyTooSlow.into())));
        };
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
            self.activity.await_body(false);
        }
        match &frame {
            Some(Ok(frame)) => self.received += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(_)) => {}
            None => self.ended = true,
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.activity.await_body(false);
        if !self.ended && !self.incoming.is_end_stream() {
            self.activity.leave_body_unread();
        }
    }
}

/// A response's body. The connection drops it when it is sent or aborted.
pub(crate) struct ResponseBody {
    body: Body,
    activity: Arc<Activity>,
}

impl ResponseBody {
    pub(crate) fn new(body: Body, activity: Arc<Activity>) -> Self {
        Self { body, activity }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.activity.end_response();
    }
}
