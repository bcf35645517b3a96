//! The ways an answer can be made to fail.

use loadtest_core::values::Share;
use rand::Rng;
use serde::{Deserialize, Serialize};

/// How often answers fail, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failures {
    /// The share of requests (or WebSocket sessions) that fail.
    pub rate: Share,
    /// What a failure is: one of these, each as likely. A kind listed twice is twice as likely.
    pub kinds: Vec<Failure>,
}

/// One way to fail. It strikes when the right answer would have gone out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failure {
    /// An answer with this HTTP status, 400 to 599.
    Status(u16),
    /// A TCP reset instead of an answer.
    Reset,
    /// No answer, until the client leaves.
    Hang,
    /// Bytes that are not HTTP instead of an answer; then the connection is closed.
    Garbage,
    /// Chat: a stream with status 200 that ends in an event `data: {"error": …}` after half of its
    /// tokens. An answer that is not streamed has status 500 instead.
    StreamError,
    /// The connection is closed, without a reset, after half of the answer's body.
    CutShort,
    /// Chat: an event in mid-stream whose data is not JSON; the stream then goes on and ends as
    /// any other. An answer that is not streamed has a body that is not JSON.
    MalformedEvent,
    /// WebSocket: a close frame with this code.
    CloseCode(u16),
    /// WebSocket: the upgrade is answered with this HTTP status, 400 to 599.
    RejectUpgrade(u16),
}

impl Failures {
    /// No failures; `kind` once the rate is raised.
    pub fn never(kind: Failure) -> Self {
        Self { rate: Share::of_one(0.0), kinds: vec![kind] }
    }

    /// Every answer fails in this way.
    pub fn always(kind: Failure) -> Self {
        Self { rate: Share::of_one(1.0), kinds: vec![kind] }
    }

    /// Draws the fate of one request: `None` when it is to be answered well.
    pub fn draw(&self, rng: &mut impl Rng) -> Option<Failure> {
        if self.rate.value() <= 0.0 || rng.random::<f64>() >= self.rate.value() {
            return None;
        }
        let index = rng.random_range(0..self.kinds.len().max(1));
        self.kinds.get(index).copied()
    }
}

impl Failure {
    /// True for what a WebSocket session can do.
    pub(super) fn fits_web_socket(self) -> bool {
        matches!(self, Self::Reset | Self::Hang | Self::CloseCode(_) | Self::RejectUpgrade(_))
    }

    /// True for what every HTTP answer can do.
    pub(super) fn fits_http(self) -> bool {
        matches!(self, Self::Status(_) | Self::Reset | Self::Hang | Self::Garbage | Self::CutShort)
    }

    /// True for what a chat answer can do.
    pub(super) fn fits_chat(self) -> bool {
        self.fits_http() || matches!(self, Self::StreamError | Self::MalformedEvent)
    }

    /// The kind as settings spell it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Status(_) => "status",
            Self::Reset => "reset",
            Self::Hang => "hang",
            Self::Garbage => "garbage",
            Self::StreamError => "streamError",
            Self::CutShort => "cutShort",
            Self::MalformedEvent => "malformedEvent",
            Self::CloseCode(_) => "closeCode",
            Self::RejectUpgrade(_) => "rejectUpgrade",
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn the_share_of_failures_is_the_rate() {
        let failures =
            Failures { rate: Share::of_one(0.1), kinds: vec![Failure::Reset, Failure::Hang] };
        let mut rng = SmallRng::seed_from_u64(1);
        let drawn: Vec<_> = (0..100_000).filter_map(|_| failures.draw(&mut rng)).collect();
        assert!((9_700..10_300).contains(&drawn.len()), "{}", drawn.len());
        let resets = drawn.iter().filter(|kind| **kind == Failure::Reset).count();
        assert!((4_700..5_300).contains(&resets), "{resets}");
    }

    #[test]
    fn no_rate_means_no_failure_and_a_full_one_means_nothing_else() {
        let mut rng = SmallRng::seed_from_u64(1);
        let never = Failures::never(Failure::Reset);
        let always = Failures::always(Failure::Reset);
        for _ in 0..1_000 {
            assert_eq!(never.draw(&mut rng), None);
            assert_eq!(always.draw(&mut rng), Some(Failure::Reset));
        }
    }
}
