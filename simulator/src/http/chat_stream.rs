//! A streamed chat response: server-sent events, each sent at its time.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::Frame;
use rand::rngs::SmallRng;
use tokio::time::Sleep;

use super::{
    chat_completion::{ChatCompletion, token_text},
    truncated_body::{IncompleteBody, TruncatedBody},
};
use crate::{
    connection::RequestTracker,
    settings::{Failure, Latency, Stall},
};

/// The events of one response. Times are nanoseconds since the simulator's start.
#[derive(Debug)]
pub(crate) struct ChatStream {
    tracker: Arc<RequestTracker>,
    completion: ChatCompletion,
    schedule: TokenSchedule,
    /// The failure that happens after half of the tokens.
    failure: Option<Failure>,
    step: Step,
    /// The time at which the next event is sent.
    due: u64,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// The times of the tokens.
#[derive(Debug)]
pub(super) struct TokenSchedule {
    pub(super) first_token: u64,
    pub(super) gap: Latency,
    pub(super) stall: Option<Stall>,
    pub(super) rng: SmallRng,
}

/// The next event.
#[derive(Debug)]
enum Step {
    Role,
    Token(u32),
    Finish,
    Truncated(TruncatedBody),
    Over,
}

impl TokenSchedule {
    /// Returns the earliest time from `due` on that is not in a stall.
    pub(super) fn send_time(&self, due: u64) -> u64 {
        self.stall.map_or(due, |stall| stall.send_time(due))
    }

    /// Samples the time between two tokens.
    pub(super) fn sample_gap(&mut self) -> u64 {
        self.gap.sample_nanos(&mut self.rng)
    }
}

impl ChatStream {
    /// Returns a stream that sends its first event, which has the role, at `role_due`.
    pub(super) fn new(
        tracker: &Arc<RequestTracker>,
        completion: ChatCompletion,
        schedule: TokenSchedule,
        role_due: u64,
        failure: Option<Failure>,
    ) -> Self {
        Self {
            tracker: tracker.clone(),
            completion,
            due: schedule.send_time(role_due),
            schedule,
            failure,
            step: Step::Role,
            sleep: None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.step, Step::Over)
    }

    /// Returns the next event when it is due; `None` after the last event.
    pub(super) fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, IncompleteBody>>> {
        if let Step::Truncated(body) = &mut self.step {
            return body.poll_frame(cx);
        }
        ready!(self.poll_due(cx));
        let event = match self.step {
            Step::Role => {
                self.step = Step::Token(0);
                self.due = self.schedule.first_token;
                self.completion.event(r#"{"role":"assistant","content":""}"#, None)
            }
            Step::Token(index) => match self.inject_failure(index) {
                Some(event) => event,
                None => self.next_token(index),
            },
            Step::Finish => {
                self.step = Step::Over;
                self.tracker.mark_response_complete();
                self.completion.last_events()
            }
            Step::Truncated(_) | Step::Over => return Poll::Ready(None),
        };
        Poll::Ready(Some(Ok(Frame::data(event))))
    }

    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let clock = self.tracker.server.clock;
        if self.due <= clock.now() {
            return Poll::Ready(());
        }
        let deadline = clock.instant_at(self.due);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx)
    }

    fn next_token(&mut self, index: u32) -> Bytes {
        if index == 0 {
            self.tracker.mark_content();
        }
        if index + 1 < self.completion.tokens {
            self.step = Step::Token(index + 1);
            let gap = self.schedule.sample_gap();
            // The gap counts from the due time, not from the time of the write, so delays do not
            // add up.
            self.due = self.schedule.send_time(self.due + gap);
        } else {
            self.step = Step::Finish;
        }
        self.completion.event(&format!(r#"{{"content":"{}"}}"#, token_text(index)), None)
    }

    /// Returns the event of the injected failure after half of the tokens.
    fn inject_failure(&mut self, index: u32) -> Option<Bytes> {
        if index != self.completion.tokens / 2 {
            return None;
        }
        let failure = self.failure.take()?;
        self.tracker.mark_injected_failure();
        match failure {
            Failure::StreamError => {
                self.step = Step::Over;
                self.tracker.mark_response_complete();
                Some(Bytes::from_static(
                    b"data: {\"error\":{\"message\":\"injected by the simulator\",\
                      \"type\":\"server_error\",\"param\":null,\"code\":\"injected\"}}\n\n",
                ))
            }
            Failure::CutShort => {
                self.step = Step::Truncated(TruncatedBody::Flush);
                Some(Bytes::from_static(b"data: {\"id\":\"chatcmpl-"))
            }
            // The step does not change, so the token that was due follows at once.
            _ => Some(Bytes::from_static(b"data: {\"id\":\"chatcmpl-\n\n")),
        }
    }
}
