//! What was measured, by task: of one runner, or of several added up.

use std::collections::BTreeMap;

use super::{Connections, LatencyHistogram};

/// How a request ended. Latency rows take all but [`Outcome::Failure`]: a fast error is
/// no fast answer, while a timeout or an interruption lasted at least its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// As expected.
    Success,
    /// An error, before its timeout.
    Failure,
    /// No answer within its timeout.
    Timeout,
    /// Still open when the test ended.
    Interrupted,
}

impl Outcome {
    /// Every outcome, in the order of [`Self::index`].
    pub const ALL: [Self; 4] = [Self::Success, Self::Failure, Self::Timeout, Self::Interrupted];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Timeout => "timeout",
            Self::Interrupted => "interrupted",
        }
    }

    /// The outcome with a label's value.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == label)
    }

    /// Its place in an array of one per outcome.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Tokens of chat answers: as the target's `usage` counts them or, where it sends none, one for
/// each event of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of answers' content.
    pub output: u64,
    /// Of reasoning that came before it.
    pub reasoning: u64,
    /// Of tool calls.
    pub tool: u64,
    /// Of prompts; zero where the target does not say.
    pub prompt: u64,
}

impl Tokens {
    /// The kinds, as labels call them, each with its count.
    pub const fn by_kind(&self) -> [(&'static str, u64); 4] {
        let Self { output, reasoning, tool, prompt } = *self;
        [("output", output), ("reasoning", reasoning), ("tool", tool), ("prompt", prompt)]
    }

    /// The count of the kind that a label calls so.
    pub fn of_kind(&mut self, kind: &str) -> Option<&mut u64> {
        match kind {
            "output" => Some(&mut self.output),
            "reasoning" => Some(&mut self.reasoning),
            "tool" => Some(&mut self.tool),
            "prompt" => Some(&mut self.prompt),
            _ => None,
        }
    }

    /// Tokens that the target made: all but prompts'.
    pub const fn generated(&self) -> u64 {
        self.output + self.reasoning + self.tool
    }

    /// Adds others.
    pub const fn add(&mut self, other: &Self) {
        let Self { output, reasoning, tool, prompt } = *other;
        self.output += output;
        self.reasoning += reasoning;
        self.tool += tool;
        self.prompt += prompt;
    }

    const fn since(&self, earlier: &Self) -> Self {
        Self {
            output: self.output.saturating_sub(earlier.output),
            reasoning: self.reasoning.saturating_sub(earlier.reasoning),
            tool: self.tool.saturating_sub(earlier.tool),
            prompt: self.prompt.saturating_sub(earlier.prompt),
        }
    }
}

/// The numbers of one task.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskNumbers {
    /// Requests by outcome, in the order of [`Outcome::ALL`].
    pub requests: [u64; 4],
    /// From planned to the last byte, by outcome.
    pub response_time: [LatencyHistogram; 4],
    /// From sent to the last byte, by outcome.
    pub service_time: [LatencyHistogram; 4],
    /// From planned to the first content token, by the request's outcome.
    pub first_response: [LatencyHistogram; 4],
    /// From the start of a WebSocket's connection to its upgrade, by the session's outcome.
    pub web_socket_connect: [LatencyHistogram; 4],
    /// From sent to the first byte of the answer, of http and chat requests but failed ones; of
    /// those that timed out or were interrupted before it, their age.
    pub first_byte: LatencyHistogram,
    /// From a WebSocket message that was sent to the last reply it awaits, or to its session's
    /// timeout or interruption.
    pub round_trip: LatencyHistogram,
    /// WebSocket messages sent.
    pub messages_sent: u64,
    /// WebSocket messages received, awaited or not.
    pub messages_received: u64,
    /// Connections opened.
    pub connections: Connections,
    /// Between two tokens of a streamed chat, of every stream.
    pub inter_token: LatencyHistogram,
    /// From the first to the last token of a successful streamed chat, by the tokens after the
    /// first.
    pub token_time: LatencyHistogram,
    /// Tokens of chat answers.
    pub tokens: Tokens,
    /// Successful requests that met every latency target of their task.
    pub good: u64,
    /// Arrivals that found no user free, so that no request was sent; in none of the above.
    pub dropped: u64,
    /// Errors by kind.
    pub errors: BTreeMap<String, u64>,
    /// Bytes written to sockets.
    pub sent_bytes: u64,
    /// Bytes read from sockets.
    pub received_bytes: u64,
}

impl TaskNumbers {
    /// Requests that ended before the test did.
    pub fn completed(&self) -> u64 {
        self.of(Outcome::Success) + self.failures()
    }

    /// Requests that failed, timeouts included.
    pub fn failures(&self) -> u64 {
        self.of(Outcome::Failure) + self.of(Outcome::Timeout)
    }

    /// What the load model wanted of requests that ended before the test did: those that were
    /// sent, and those that were dropped.
    pub fn wanted(&self) -> u64 {
        self.completed() + self.dropped
    }

    /// Failed and dropped requests.
    pub fn missed(&self) -> u64 {
        self.failures() + self.dropped
    }

    /// Requests with one outcome.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.requests[outcome.index()]
    }

    /// Adds another runner's numbers.
    pub fn merge(&mut self, other: &Self) {
        let Self {
            requests,
            response_time,
            service_time,
            first_response,
            web_socket_connect,
            first_byte,
            round_trip,
            messages_sent,
            messages_received,
            connections,
            inter_token,
            token_time,
            tokens,
            good,
            dropped,
            errors,
            sent_bytes,
            received_bytes,
        } = other;
        for i in 0..4 {
            self.requests[i] += requests[i];
            self.response_time[i].merge(&response_time[i]);
            self.service_time[i].merge(&service_time[i]);
            self.first_response[i].merge(&first_response[i]);
            self.web_socket_connect[i].merge(&web_socket_connect[i]);
        }
        self.first_byte.merge(first_byte);
        self.round_trip.merge(round_trip);
        self.messages_sent += messages_sent;
        self.messages_received += messages_received;
        self.connections.merge(connections);
        self.inter_token.merge(inter_token);
        self.token_time.merge(token_time);
        self.tokens.add(tokens);
        self.good += good;
        self.dropped += dropped;
        for (kind, count) in errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        self.sent_bytes += sent_bytes;
        self.received_bytes += received_bytes;
    }
}

impl TaskNumbers {
    /// What came since `earlier`, an older state of these same numbers.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        // Taken apart without `..`: a number can't be forgotten here.
        let Self {
            requests,
            response_time,
            service_time,
            first_response,
            web_socket_connect,
            first_byte,
            round_trip,
            messages_sent,
            messages_received,
            connections,
            inter_token,
            token_time,
            tokens,
            good,
            dropped,
            errors,
            sent_bytes,
            received_bytes,
        } = self;
        let all = |now: &[LatencyHistogram; 4], then: &[LatencyHistogram; 4]| {
            std::array::from_fn(|i| now[i].since(&then[i]))
        };
        let rest = |kind: &String, n: u64| {
            n.saturating_sub(earlier.errors.get(kind).copied().unwrap_or(0))
        };
        Self {
            requests: std::array::from_fn(|i| requests[i].saturating_sub(earlier.requests[i])),
            response_time: all(response_time, &earlier.response_time),
            service_time: all(service_time, &earlier.service_time),
            first_response: all(first_response, &earlier.first_response),
            web_socket_connect: all(web_socket_connect, &earlier.web_socket_connect),
            first_byte: first_byte.since(&earlier.first_byte),
            round_trip: round_trip.since(&earlier.round_trip),
            messages_sent: messages_sent.saturating_sub(earlier.messages_sent),
            messages_received: messages_received.saturating_sub(earlier.messages_received),
            connections: connections.since(&earlier.connections),
            inter_token: inter_token.since(&earlier.inter_token),
            token_time: token_time.since(&earlier.token_time),
            tokens: tokens.since(&earlier.tokens),
            good: good.saturating_sub(earlier.good),
            dropped: dropped.saturating_sub(earlier.dropped),
            errors: errors.iter().map(|(kind, n)| (kind.clone(), rest(kind, *n))).collect(),
            sent_bytes: sent_bytes.saturating_sub(earlier.sent_bytes),
            received_bytes: received_bytes.saturating_sub(earlier.received_bytes),
        }
    }
}

/// What latency rows take of a distribution by outcome.
pub fn judged(by_outcome: &[LatencyHistogram; 4]) -> LatencyHistogram {
    let mut all = LatencyHistogram::default();
    for outcome in [Outcome::Success, Outcome::Timeout, Outcome::Interrupted] {
        all.merge(&by_outcome[outcome.index()]);
    }
    all
}

/// The numbers of a runner, or of all of them added up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Numbers {
    /// By task name.
    pub tasks: BTreeMap<String, TaskNumbers>,
    /// How late users acted on their schedule.
    pub schedule_lag: LatencyHistogram,
    /// How late load threads came to what was due: more than a moment means that one of them was
    /// kept from running, whatever its users did.
    pub loop_lag: LatencyHistogram,
    /// Users running now.
    pub users: u64,
    /// The most users that ran at once; of several runners, the sum of theirs.
    pub users_peak: u64,
    /// User-seconds of load.
    pub user_seconds: f64,
    /// Seconds of load since the start, without graceful stop; of several runners, the longest.
    pub elapsed_seconds: f64,
    /// Seconds of load that the busiest load thread was on a CPU; of several runners, the most.
    pub busy_seconds: f64,
    /// Seconds for which a CPU limit kept a runner from running; of several, the most.
    pub throttled_seconds: f64,
    /// The most resident bytes that a runner was seen with; of several, the most.
    pub memory_bytes: f64,
    /// The largest share of its memory limit that a runner was seen with, zero without one; of
    /// several, the highest.
    pub memory_ratio: f64,
}

impl Numbers {
    /// Adds another runner's numbers.
    pub fn merge(&mut self, other: &Self) {
        let Self {
            tasks,
            schedule_lag,
            loop_lag,
            users,
            users_peak,
            user_seconds,
            elapsed_seconds,
            busy_seconds,
            throttled_seconds,
            memory_bytes,
            memory_ratio,
        } = other;
        for (name, task) in tasks {
            self.tasks.entry(name.clone()).or_default().merge(task);
        }
        self.schedule_lag.merge(schedule_lag);
        self.loop_lag.merge(loop_lag);
        self.users += users;
        self.users_peak += users_peak;
        self.user_seconds += user_seconds;
        self.elapsed_seconds = self.elapsed_seconds.max(*elapsed_seconds);
        self.busy_seconds = self.busy_seconds.max(*busy_seconds);
        self.throttled_seconds = self.throttled_seconds.max(*throttled_seconds);
        self.memory_bytes = self.memory_bytes.max(*memory_bytes);
        self.memory_ratio = self.memory_ratio.max(*memory_ratio);
    }

    /// What came since `earlier`, an older state of these same numbers. Users and memory stay
    /// those of now.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let Self {
            tasks,
            schedule_lag,
            loop_lag,
            users,
            users_peak,
            user_seconds,
            elapsed_seconds,
            busy_seconds,
            throttled_seconds,
            memory_bytes,
            memory_ratio,
        } = self;
        let none = TaskNumbers::default();
        let rest = |(name, task): (&String, &TaskNumbers)| {
            (name.clone(), task.since(earlier.tasks.get(name).unwrap_or(&none)))
        };
        Self {
            tasks: tasks.iter().map(rest).collect(),
            schedule_lag: schedule_lag.since(&earlier.schedule_lag),
            loop_lag: loop_lag.since(&earlier.loop_lag),
            users: *users,
            users_peak: *users_peak,
            user_seconds: (user_seconds - earlier.user_seconds).max(0.0),
            elapsed_seconds: (elapsed_seconds - earlier.elapsed_seconds).max(0.0),
            busy_seconds: (busy_seconds - earlier.busy_seconds).max(0.0),
            throttled_seconds: (throttled_seconds - earlier.throttled_seconds).max(0.0),
            memory_bytes: *memory_bytes,
            memory_ratio: *memory_ratio,
        }
    }

    /// The share of load's time that the busiest load thread was on a CPU.
    pub fn thread_busy(&self) -> f64 {
        if self.elapsed_seconds > 0.0 { self.busy_seconds / self.elapsed_seconds } else { 0.0 }
    }

    /// All tasks as one.
    pub fn total(&self) -> TaskNumbers {
        self.tasks.values().fold(TaskNumbers::default(), |mut total, task| {
            total.merge(task);
            total
        })
    }
}
