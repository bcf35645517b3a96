//! The record of one request.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// The endpoint of a request.
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
    /// All endpoints.
    pub const ALL: [Self; 5] =
        [Self::Chat, Self::Health, Self::Models, Self::WebSocket, Self::Other];

    /// Returns the name used in settings, JSON and CSV.
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

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The whole response was written, and it was no error.
    Completed,
    /// The response was an error: a status of at least 400, or an injected failure.
    Failed,
    /// The client closed the connection before the response was complete.
    Aborted,
}

/// The direction of a WebSocket message, as the simulator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Received,
    Sent,
}

/// One request. Times are nanoseconds since the simulator's start; 0 means "never".
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// The kernel's timestamp of the request's last bytes.
    pub(crate) arrival: u64,
    /// The first byte of the response was written. For a WebSocket: the upgrade response.
    pub(crate) first_byte: u64,
    /// The first content token was written. For a WebSocket: the first reply.
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
    /// The header line for [`Record::write_csv`].
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

    /// Returns the time from the upgrade request to its response, for an accepted session only.
    pub(crate) fn connect_time(&self) -> Option<u64> {
        let upgraded = self.endpoint == Endpoint::WebSocket && self.status == 101;
        (upgraded && self.first_byte > 0).then(|| self.first_byte.saturating_sub(self.arrival))
    }

    /// Appends the record as one line of CSV.
    pub(crate) fn write_csv(&self, text: &mut String) {
        let optional = |nanos: u64| if nanos == 0 { String::new() } else { nanos.to_string() };
        let outcome = match self.outcome {
            Outcome::Completed => "completed",
            Outcome::Failed => "failed",
            Outcome::Aborted => "aborted",
        };
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{outcome},{},{}",
            self.endpoint.name(),
            self.arrival,
            optional(self.first_byte),
            optional(self.first_content),
            self.end,
            self.status,
            self.messages_received,
            self.messages_sent,
        );
    }
}
