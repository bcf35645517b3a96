//! One request, as it went.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// Where a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/health`
    Health,
    /// `/v1/models`
    Models,
    /// A session on the WebSocket port.
    WebSocket,
    /// Any other path of the HTTP port.
    Other,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Chat, Self::Health, Self::Models, Self::WebSocket, Self::Other];

    /// The name that settings, JSON and CSV use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Health => "health",
            Self::Models => "models",
            Self::WebSocket => "webSocket",
            Self::Other => "other",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The whole answer was written, and it was a good one.
    Completed,
    /// The answer was an error: a status from 400 on, or an injected failure.
    Failed,
    /// The client left before the answer was complete.
    Aborted,
}

/// One request; times are nanoseconds since the simulator's start, 0 for what never happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// When the request had come, by the kernel's stamp of it.
    pub(crate) arrival: u64,
    /// The first byte of the answer written. For a WebSocket: the upgrade answered.
    pub(crate) first_byte: u64,
    /// The first content token written. For a WebSocket: the first reply.
    pub(crate) first_content: u64,
    pub(crate) end: u64,
    pub(crate) messages_received: u32,
    pub(crate) messages_sent: u32,
    /// 0 when no status was written.
    pub(crate) status: u16,
    pub(crate) endpoint: Endpoint,
    pub(crate) outcome: Outcome,
}

impl Record {
    /// The header of [`Record::write_csv`].
    pub(crate) const CSV_HEADER: &str = "endpoint,arrival,firstByte,firstContent,end,status,\
                                         outcome,messagesReceived,messagesSent\n";

    pub(crate) fn new(endpoint: Endpoint, arrival: u64) -> Self {
        Self {
            arrival,
            first_byte: 0,
            first_content: 0,
            end: 0,
            messages_received: 0,
            messages_sent: 0,
            status: 0,
            endpoint,
            outcome: Outcome::Aborted,
        }
    }

    pub(crate) fn service_time(&self) -> u64 {
        self.end.saturating_sub(self.arrival)
    }

    pub(crate) fn time_to_first_response(&self) -> Option<u64> {
        (self.first_content > 0).then(|| self.first_content.saturating_sub(self.arrival))
    }

    /// From the upgrade request to its answer: only a session that was let in has one.
    pub(crate) fn connect(&self) -> Option<u64> {
        let upgraded = self.endpoint == Endpoint::WebSocket && self.status == 101;
        (upgraded && self.first_byte > 0).then(|| self.first_byte.saturating_sub(self.arrival))
    }

    pub(crate) fn write_csv(&self, into: &mut String) {
        let time = |nanos: u64| if nanos == 0 { String::new() } else { nanos.to_string() };
        let outcome = match self.outcome {
            Outcome::Completed => "completed",
            Outcome::Failed => "failed",
            Outcome::Aborted => "aborted",
        };
        // Writing to a String can't fail.
        let _ = writeln!(
            into,
            "{},{},{},{},{},{},{outcome},{},{}",
            self.endpoint.name(),
            self.arrival,
            time(self.first_byte),
            time(self.first_content),
            self.end,
            self.status,
            self.messages_received,
            self.messages_sent,
        );
    }
}
