//! A streamed chat answer: server-sent events, each when it is due.

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
    answer::{Cut, CutShort},
    chat::{Reply, token},
};
use crate::{
    line::Line,
    settings::{Failure, Latency, Stall},
};

/// The events of one answer. Times are nanoseconds since the simulator's start.
#[derive(Debug)]
pub(crate) struct ChatStream {
    pub(super) line: Arc<Line>,
    pub(super) reply: Reply,
    pub(super) pace: Pace,
    /// What goes wrong after half of the tokens.
    pub(super) failure: Option<Failure>,
    pub(super) step: Step,
    /// When the next event is due.
    pub(super) due: u64,
    pub(super) sleep: Option<Pin<Box<Sleep>>>,
}

/// How fast tokens come.
#[derive(Debug)]
pub(super) struct Pace {
    pub(super) first_token: u64,
    pub(super) gap: Latency,
    pub(super) stall: Option<Stall>,
    pub(super) rng: SmallRng,
}

/// The next event.
#[derive(Debug)]
pub(super) enum Step {
    Role,
    Token(u32),
    Finish,
    Cut(Cut),
    Over,
}

impl Pace {
    /// The soonest time from `due` on that is not in a stall.
    pub(super) fn release(&self, due: u64) -> u64 {
        self.stall.map_or(due, |stall| stall.release(due))
    }
}

impl ChatStream {
    pub(super) fn is_over(&self) -> bool {
        matches!(self.step, Step::Over)
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        if let Step::Cut(cut) = &mut self.step {
            return cut.poll(cx);
        }
        ready!(self.poll_due(cx));
        let event = match self.step {
            Step::Role => {
                self.step = Step::Token(0);
                self.due = self.pace.first_token;
                self.reply.event(r#"{"role":"assistant","content":""}"#, None)
            }
            Step::Token(index) => match self.fail(index) {
                Some(event) => event,
                None => self.token(index),
            },
            Step::Finish => {
                self.step = Step::Over;
                self.line.done();
                self.reply.last_events()
            }
            Step::Cut(_) | Step::Over => return Poll::Ready(None),
        };
        Poll::Ready(Some(Ok(Frame::data(event))))
    }

    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let clock = self.line.server.clock;
        if self.due <= clock.now() {
            return Poll::Ready(());
        }
        let deadline = clock.instant(self.due);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx)
    }

    fn token(&mut self, index: u32) -> Bytes {
        if index == 0 {
            self.line.content();
        }
        if index + 1 < self.reply.tokens {
            self.step = Step::Token(index + 1);
            let gap = self.pace.gap.draw(&mut self.pace.rng);
            // From when this one was due, not from when it went out: lateness does not add up.
            self.due = self.pace.release(self.due + gap);
        } else {
            self.step = Step::Finish;
        }
        self.reply.event(&format!(r#"{{"content":"{}"}}"#, token(index)), None)
    }

    /// The failure's event, when its time has come.
    fn fail(&mut self, index: u32) -> Option<Bytes> {
        if index != self.reply.tokens / 2 {
            return None;
        }
        let failure = self.failure.take()?;
        self.line.inject();
        match failure {
            Failure::StreamError => {
                self.step = Step::Over;
                self.line.done();
                Some(Bytes::from_static(
                    b"data: {\"error\":{\"message\":\"injected by the simulator\",\
                      \"type\":\"server_error\",\"param\":null,\"code\":\"injected\"}}\n\n",
                ))
            }
            Failure::CutShort => {
                self.step = Step::Cut(Cut::Flush);
                Some(Bytes::from_static(b"data: {\"id\":\"chatcmpl-"))
            }
            // The step stays: the token that was due follows at once.
            _ => Some(Bytes::from_static(b"data: {\"id\":\"chatcmpl-\n\n")),
        }
    }
}
