//! Connections of a task: how many, and what opening them took, step by step.

use super::LatencyHistogram;

/// A step of opening a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectStep {
    /// From the name to its addresses. Of those whose answer was known already, nothing.
    Dns,
    /// From the first packet to an open TCP connection.
    Tcp,
    /// The TLS handshake.
    Tls,
    /// The WebSocket handshake.
    Upgrade,
}

impl ConnectStep {
    /// Every step, in the order of [`Self::index`].
    pub const ALL: [Self; 4] = [Self::Dns, Self::Tcp, Self::Tls, Self::Upgrade];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Upgrade => "upgrade",
        }
    }

    /// The step with a label's value.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.as_str() == label)
    }

    /// Its place in an array of one per step.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The connections that a task's requests opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Connections {
    /// Connections opened.
    pub opened: u64,
    /// Those of them that took the place of one which the target, or a failure, had ended.
    pub again: u64,
    /// What the steps took, in the order of [`ConnectStep::ALL`].
    pub steps: [LatencyHistogram; 4],
}

impl Connections {
    /// Adds another runner's.
    pub fn merge(&mut self, other: &Self) {
        let Self { opened, again, steps } = other;
        self.opened += opened;
        self.again += again;
        for (mine, theirs) in self.steps.iter_mut().zip(steps) {
            mine.merge(theirs);
        }
    }

    /// What came since `earlier`, an older state of these.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let Self { opened, again, steps } = self;
        Self {
            opened: opened.saturating_sub(earlier.opened),
            again: again.saturating_sub(earlier.again),
            steps: std::array::from_fn(|i| steps[i].since(&earlier.steps[i])),
        }
    }
}
