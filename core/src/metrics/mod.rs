//! The metrics contract between runners and whoever reads them: names, labels, and
//! the numbers of one runner and of all.
//!
//! Runners expose these as Prometheus metrics; the operator, the CLI and any
//! Prometheus read the same exposition. All counters are cumulative.

mod connections;
mod encode;
mod exposition;
mod histogram;
mod numbers;

pub use connections::{ConnectStep, Connections};
pub use encode::{Format, Shown, encode};
pub use exposition::{ExpositionError, Identity, RunnerNumbers, RunnerState, decode};
pub use histogram::{LatencyHistogram, MergeError, SCHEMA};
pub use numbers::{Numbers, Outcome, TaskNumbers, Tokens, judged};

/// Metric family names. Counters carry their `_total` here, as they are read.
pub mod names {
    /// Info: labels `run`, `index`, `pod_uid`.
    pub const RUNNER: &str = "loadtest_runner_info";
    /// Gauge: 0 waiting, 1 running, 2 done, 3 released, 4 cut short.
    pub const STATE: &str = "loadtest_runner_state";
    /// Gauge: seconds of load since this runner's start, standing still once load is over.
    pub const ELAPSED: &str = "loadtest_elapsed_seconds";
    /// Gauge: users running now.
    pub const USERS: &str = "loadtest_users";
    /// Gauge: the most users that ran at once.
    pub const USERS_PEAK: &str = "loadtest_users_peak";
    /// Counter: user-seconds of load, without graceful stop.
    pub const USER_SECONDS: &str = "loadtest_user_seconds_total";
    /// Counter: requests by task and outcome.
    pub const REQUESTS: &str = "loadtest_requests_total";
    /// Histogram: from planned to the last byte.
    pub const RESPONSE_TIME: &str = "loadtest_response_time_seconds";
    /// Histogram: from sent to the last byte.
    pub const SERVICE_TIME: &str = "loadtest_service_time_seconds";
    /// Histogram: from planned to the first content token.
    pub const FIRST_RESPONSE: &str = "loadtest_time_to_first_response_seconds";
    /// Histogram: from the start of a WebSocket's connection to its upgrade.
    pub const WEB_SOCKET_CONNECT: &str = "loadtest_websocket_connect_seconds";
    /// Histogram: between two tokens of a streamed chat.
    pub const INTER_TOKEN: &str = "loadtest_inter_token_latency_seconds";
    /// Histogram: a streamed chat's time from its first to its last token, by token.
    pub const TOKEN_TIME: &str = "loadtest_time_per_output_token_seconds";
    /// Counter: tokens of chat answers, by task and kind.
    pub const TOKENS: &str = "loadtest_tokens_total";
    /// Counter: successful requests that met every latency target of their task.
    pub const GOOD: &str = "loadtest_good_requests_total";
    /// Counter: arrivals that found no user free, by task.
    pub const DROPPED: &str = "loadtest_dropped_total";
    /// Counter: errors by task and kind.
    pub const ERRORS: &str = "loadtest_errors_total";
    /// Counter: bytes written to sockets, by task.
    pub const SENT_BYTES: &str = "loadtest_sent_bytes_total";
    /// Counter: bytes read from sockets, by task.
    pub const RECEIVED_BYTES: &str = "loadtest_received_bytes_total";
    /// Counter: connections opened, by task.
    pub const CONNECTIONS: &str = "loadtest_connections_total";
    /// Counter: connections opened in place of one that had ended, by task.
    pub const RECONNECTS: &str = "loadtest_reconnects_total";
    /// Histogram: the steps of opening a connection, by task and step.
    pub const CONNECT: &str = "loadtest_connect_seconds";
    /// Histogram: from when a request was sent to the first byte of its answer.
    pub const FIRST_BYTE: &str = "loadtest_time_to_first_byte_seconds";
    /// Histogram: from a WebSocket message to the last reply it awaits.
    pub const ROUND_TRIP: &str = "loadtest_websocket_round_trip_seconds";
    /// Counter: WebSocket messages, by task and direction.
    pub const MESSAGES: &str = "loadtest_websocket_messages_total";
    /// Gauge: the most resident memory that the runner was seen with, in bytes.
    pub const MEMORY: &str = "loadtest_runner_memory_bytes";
    /// Gauge: the largest share of its memory limit, without files that the kernel can drop, that
    /// the runner was seen with; 0 without one.
    pub const MEMORY_RATIO: &str = "loadtest_runner_memory_ratio";
    /// Histogram: how late a load thread came to what was due.
    pub const LOOP_LAG: &str = "loadtest_event_loop_lag_seconds";
    /// Counter: seconds of load that the runner's busiest load thread was on a CPU.
    pub const THREAD_BUSY: &str = "loadtest_busiest_thread_cpu_seconds_total";
    /// Counter: seconds for which a CPU limit kept the runner from running.
    pub const THROTTLED: &str = "loadtest_cpu_throttled_seconds_total";
    /// Histogram: how late a user acted on its schedule.
    pub const SCHEDULE_LAG: &str = "loadtest_schedule_lag_seconds";
}
