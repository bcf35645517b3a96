//! Injected failures: how often responses fail, and how.

use loadtest_core::values::Percent;
use rand::Rng;
use serde::{Deserialize, Serialize};

/// The rate and the kinds of injected failures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failures {
    /// The share of requests (for WebSocket: of sessions) that fail.
    pub rate: Percent,
    /// The kinds of failures, all equally likely. A kind that is listed twice is twice as likely.
    pub kinds: Vec<Failure>,
}

/// A kind of failure. It happens at the time at which the normal response would be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failure {
    /// A response with this HTTP status, 400 to 599.
    Status(u16),
    /// A TCP reset instead of a response.
    Reset,
    /// No response until the client closes the connection.
    Hang,
    /// Bytes that are not HTTP instead of a response; then the connection is closed.
    Garbage,
    /// Chat: a stream with status 200 that ends with an event `data: {"error": …}` after half of
    /// its tokens. A response that is not streamed has status 500 instead.
    StreamError,
    /// The connection is closed, without a reset, after half of the response body.
    CutShort,
    /// Chat: an event in the middle of the stream with data that is not JSON. The stream then
    /// continues normally. A response that is not streamed has a body that is not JSON.
    MalformedEvent,
    /// WebSocket: a close frame with this code.
    CloseCode(u16),
    /// WebSocket: an upgrade response with this HTTP status, 400 to 599.
    RejectUpgrade(u16),
}

impl Failures {
    /// Returns failures at a rate of 0 %, with `kind` as their only kind.
    pub fn never(kind: Failure) -> Self {
        Self { rate: Percent::from_fraction(0.0), kinds: vec![kind] }
    }

    /// Returns failures at a rate of 100 %, with `kind` as their only kind.
    pub fn always(kind: Failure) -> Self {
        Self { rate: Percent::from_fraction(1.0), kinds: vec![kind] }
    }

    /// Chooses the failure of one request; `None` if the request does not fail.
    pub fn choose_failure(&self, rng: &mut impl Rng) -> Option<Failure> {
        if self.rate.as_fraction() <= 0.0 || rng.random::<f64>() >= self.rate.as_fraction() {
            return None;
        }
        let index = rng.random_range(0..self.kinds.len().max(1));
        self.kinds.get(index).copied()
    }
}

impl Failure {
    /// Returns true if a WebSocket session can fail in this way.
    pub(super) fn fits_web_socket(self) -> bool {
        matches!(self, Self::Reset | Self::Hang | Self::CloseCode(_) | Self::RejectUpgrade(_))
    }

    /// Returns true if every HTTP response can fail in this way.
    pub(super) fn fits_http(self) -> bool {
        matches!(self, Self::Status(_) | Self::Reset | Self::Hang | Self::Garbage | Self::CutShort)
    }

    /// Returns true if a chat response can fail in this way.
    pub(super) fn fits_chat(self) -> bool {
        self.fits_http() || matches!(self, Self::StreamError | Self::MalformedEvent)
    }

    /// Returns the name of the kind in settings.
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
    fn share_of_failures_matches_the_rate() {
        let failures = Failures {
            rate: Percent::from_fraction(0.1),
            kinds: vec![Failure::Reset, Failure::Hang],
        };
        let mut rng = SmallRng::seed_from_u64(1);
        let chosen: Vec<_> =
            (0..100_000).filter_map(|_| failures.choose_failure(&mut rng)).collect();
        assert!((9_700..10_300).contains(&chosen.len()), "{}", chosen.len());
        let resets = chosen.iter().filter(|kind| **kind == Failure::Reset).count();
        assert!((4_700..5_300).contains(&resets), "{resets}");
    }

    #[test]
    fn rates_of_0_and_100_percent_are_exact() {
        let mut rng = SmallRng::seed_from_u64(1);
        let never = Failures::never(Failure::Reset);
        let always = Failures::always(Failure::Reset);
        for _ in 0..1_000 {
            assert_eq!(never.choose_failure(&mut rng), None);
            assert_eq!(always.choose_failure(&mut rng), Some(Failure::Reset));
        }
    }
}
