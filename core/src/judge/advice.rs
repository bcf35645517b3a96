//! Advice about a missed target or an error: the cause that the measurements show, in numbers, and the
//! section of `docs/troubleshooting.md` about it. Pure.

use crate::{
    metrics::{LatencyHistogram, LatencyMetric, Metric, TaskMetrics},
    values::{Duration, Percent},
};

/// The page with a section for each cause.
const PAGE: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/troubleshooting.md#");
/// Gaps between tokens are steady if the 95th percentile is at most this many times the median.
const STEADY_GAPS: f64 = 3.0;
/// Share of requests that fail, above which errors explain a low throughput.
const MANY_FAILURES: f64 = 0.1;

/// A cause of slow responses or errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cause {
    /// The section of the page.
    section: &'static str,
    /// The remedy.
    remedy: &'static str,
}

const fn cause(section: &'static str, remedy: &'static str) -> Cause {
    Cause { section, remedy }
}

const SLOW_RESPONSES: Cause = cause(
    "slow-responses",
    "look at the CPU, the queues and the downstream calls of the target at this load",
);
const LARGE_BODIES: Cause =
    cause("slow-responses", "look at the size of the body, at its compression and at the network");
const WAITING_REQUESTS: Cause = cause(
    "waiting-requests",
    "the target does not keep up with this rate: lower the rate, or find what limits the target",
);
const SLOW_CONNECTIONS: Cause = cause(
    "slow-connections",
    "let clients keep their connections, or look at the accept queue, the proxy and the TLS handshakes of the target",
);
const SLOW_FIRST_TOKEN: Cause = cause(
    "slow-first-token",
    "requests queue, or their prompts take long to read: larger batches, more replicas or a prompt cache help",
);
const LATE_CONTENT: Cause = cause(
    "slow-first-token",
    "reasoning or tool calls come before the content: limit them, or judge timeToFirstToken",
);
const UNEVEN_TOKENS: Cause = cause(
    "uneven-tokens",
    "prompts of other requests interrupt the generation: chunked prefill or fewer requests per replica help",
);
const SLOW_TOKENS: Cause = cause(
    "slow-tokens",
    "the model generates slowly: a faster GPU, quantization or smaller batches help",
);
const SLOW_WEB_SOCKET: Cause = cause(
    "slow-websockets",
    "look at connection limits, the load balancer and the handler of new sessions",
);
const SLOW_MESSAGES: Cause = cause(
    "slow-websockets",
    "one slow handler delays all messages behind it: look at what the message loop waits for",
);
const LOW_THROUGHPUT: Cause = cause(
    "low-throughput",
    "look at the latency rows; if these meet their targets, more users give more load",
);
const LOW_GOODPUT: Cause =
    cause("low-goodput", "see which latency target of the task most requests miss");
const NO_ADDRESS: Cause =
    cause("dns", "check the host in target, and whether the runners can resolve its name by DNS");
const REFUSED: Cause = cause(
    "connection-refused",
    "check whether the target runs and listens on this port; on a cluster, look at the endpoints of the Service",
);
const NO_ANSWER: Cause = cause(
    "connection-timeouts",
    "a firewall or a NetworkPolicy may drop packets, or the accept queue is full",
);
const TLS: Cause =
    cause("tls", "compare the certificate and its names with target.tls, and the versions of TLS");
const TIMEOUTS: Cause = cause(
    "timeouts",
    "the target takes longer than the timeout: find what it waits for, or raise the timeout of the task",
);
const RESETS: Cause = cause(
    "resets",
    "the target or a proxy ended connections: compare their idle timeouts and restarts, and look for crashes",
);
const RATE_LIMIT: Cause = cause(
    "rate-limits",
    "the target limits the rate: raise its limit for the test, or lower the load",
);
const OVERLOAD: Cause = cause(
    "overload",
    "the target is overloaded, or its proxy has no healthy backend: look at circuit breakers, replicas and the speed of autoscaling",
);
const CREDENTIALS: Cause =
    cause("rejected-requests", "check the credentials in target.headers and target.headersFrom");
const REJECTED: Cause =
    cause("rejected-requests", "check the path, the method and the body of the task");
const SERVER_ERROR: Cause = cause("server-errors", "look at the log of the target");
const REDIRECTS: Cause = cause(
    "rejected-requests",
    "use the final address in target or in the path of the task, or raise maxRedirects",
);
const CHECKS: Cause = cause("checks", "compare the response in the example with the check");
const STREAMS: Cause = cause(
    "chat-streams",
    "the stream failed after status 200: look at the log, the memory and the limits of the model server",
);
const PROTOCOL: Cause =
    cause("protocol-errors", "check whether the port speaks the protocol in the URL of the target");
const SESSIONS: Cause = cause(
    "websocket-closes",
    "look at the close code, at session limits, and at the timeouts of proxies",
);
const GENERATOR: Cause =
    cause("load-generator", "the load generator is too small: use more runners or larger ones");
const LARGE_RESPONSES: Cause =
    cause("load-generator", "the response is larger than the load generator reads");

impl Cause {
    /// The advice: the evidence, the remedy and the link.
    fn to_advice(self, evidence: &str) -> String {
        let Self { section, remedy } = self;
        let separator = if evidence.is_empty() { "" } else { ": " };
        format!("{evidence}{separator}{remedy} ({PAGE}{section})")
    }
}

/// Advice about errors of a kind; `None` for an unknown kind.
pub(super) fn error_advice(kind: &str) -> Option<String> {
    error_cause(kind).map(|cause| cause.to_advice(""))
}

fn error_cause(kind: &str) -> Option<Cause> {
    if let Some(status) = kind.strip_prefix("http_") {
        return Some(match status {
            "401" | "403" | "407" => CREDENTIALS,
            "429" => RATE_LIMIT,
            "502" | "503" | "504" => OVERLOAD,
            _ if status.starts_with('5') => SERVER_ERROR,
            _ => REJECTED,
        });
    }
    if kind.starts_with("websocket_close_") {
        return Some(SESSIONS);
    }
    Some(match kind {
        "dns" => NO_ADDRESS,
        "connect" => REFUSED,
        "timeout_connect" => NO_ANSWER,
        "tls" => TLS,
        "timeout_response" | "timeout_body" => TIMEOUTS,
        "reset" | "stale_connection" => RESETS,
        "protocol" => PROTOCOL,
        "redirect" => REDIRECTS,
        "check_body" | "check_header" | "check_json" => CHECKS,
        "stream_error" | "stream_cut" | "stream_malformed" => STREAMS,
        "port_exhausted" | "file_limit" => GENERATOR,
        "size_limit" => LARGE_RESPONSES,
        _ => return None,
    })
}

/// Advice about a metric that misses its target on a task.
pub(super) fn advice_for(metric: Metric, task: &TaskMetrics) -> String {
    match metric {
        Metric::ErrorRate => errors(task),
        Metric::Throughput => {
            let failed = task.failed_requests() as f64 / task.completed_requests().max(1) as f64;
            if failed > MANY_FAILURES {
                return errors(task);
            }
            let evidence = percentile(task, LatencyMetric::ServiceTime, 0.95);
            let evidence = evidence.map(|p95| format!("serviceTime p95 is {}", p95.rounded()));
            LOW_THROUGHPUT.to_advice(&evidence.unwrap_or_default())
        }
        Metric::Goodput => LOW_GOODPUT.to_advice(""),
        Metric::TokensPerSecond => slow_tokens(task),
        Metric::Latency(latency) => match latency {
            LatencyMetric::TimeToFirstToken | LatencyMetric::TimeToFirstResponse => {
                slow_first_token(latency, task)
            }
            LatencyMetric::InterTokenLatency | LatencyMetric::TimePerOutputToken => {
                slow_tokens(task)
            }
            LatencyMetric::WebSocketConnect => slow_web_socket(task),
            LatencyMetric::WebSocketRoundTrip => SLOW_MESSAGES.to_advice(""),
            _ => slow_response(latency, task),
        },
    }
}

fn samples(task: &TaskMetrics, metric: LatencyMetric) -> LatencyHistogram {
    task.latencies.samples(metric)
}

fn percentile(task: &TaskMetrics, metric: LatencyMetric, share: f64) -> Option<Duration> {
    samples(task, metric).quantile(share)
}

/// The most frequent kind of error, and its share of all errors.
fn errors(task: &TaskMetrics) -> String {
    let all: u64 = task.errors.values().sum();
    // The common kinds exist with the count zero.
    let counted = task.errors.iter().filter(|(_, count)| **count > 0);
    let Some((kind, count)) = counted.max_by_key(|(_, count)| **count) else {
        return dropped_arrivals(task);
    };
    let evidence = if *count == all {
        format!("all errors are {kind}")
    } else {
        format!("{} of the errors are {kind}", Percent::of(*count, all).rounded())
    };
    error_cause(kind).unwrap_or(SERVER_ERROR).to_advice(&evidence)
}

/// Advice for arrivals that found no idle user.
pub(super) fn dropped_arrivals(task: &TaskMetrics) -> String {
    format!(
        "{} arrivals were dropped because no user was idle: raise load.maxUsers, or check whether the target can serve this rate",
        task.dropped
    )
}

fn slow_response(judged: LatencyMetric, task: &TaskMetrics) -> String {
    let p95 = |metric| percentile(task, metric, 0.95).map(Duration::as_secs_f64);
    let rounded_seconds = |seconds: f64| Duration::from_secs_f64(seconds).rounded();
    let slow = p95(judged).unwrap_or_default();
    let service = p95(LatencyMetric::ServiceTime).unwrap_or(slow);
    let (step, connect) = slowest_step(task);
    // The other times begin when the request is sent, on a connection that is open.
    let has_connect = judged == LatencyMetric::ResponseTime;
    if has_connect && task.connections >= task.completed_requests() / 2 && connect > slow / 2.0 {
        let evidence = format!(
            "most requests open a connection, and {step} takes {} (p95)",
            rounded_seconds(connect)
        );
        return SLOW_CONNECTIONS.to_advice(&evidence);
    }
    if judged == LatencyMetric::ResponseTime && service < slow / 2.0 {
        let evidence = format!(
            "requests waited to be sent, and took only {} after that (serviceTime p95)",
            rounded_seconds(service)
        );
        return WAITING_REQUESTS.to_advice(&evidence);
    }
    // The time of a stream is that of its tokens.
    if token_gaps(task).is_some() && judged != LatencyMetric::TimeToFirstByte {
        return slow_tokens(task);
    }
    let all_have_first_byte = samples(task, LatencyMetric::TimeToFirstByte).count()
        == samples(task, LatencyMetric::ServiceTime).count();
    match p95(LatencyMetric::TimeToFirstByte).filter(|_| all_have_first_byte) {
        Some(first) if first < service / 2.0 && judged != LatencyMetric::TimeToFirstByte => {
            LARGE_BODIES.to_advice(&format!(
                "the first byte came after {}, the last after {} (p95)",
                rounded_seconds(first),
                rounded_seconds(service)
            ))
        }
        Some(first) => SLOW_RESPONSES
            .to_advice(&format!("the first byte came after {} (p95)", rounded_seconds(first))),
        None => SLOW_RESPONSES.to_advice(""),
    }
}

/// The slowest step of new connections, and its 95th percentile in seconds.
fn slowest_step(task: &TaskMetrics) -> (&'static str, f64) {
    let steps = [
        (LatencyMetric::ConnectDns, "the DNS lookup"),
        (LatencyMetric::ConnectTcp, "the TCP handshake"),
        (LatencyMetric::ConnectTls, "the TLS handshake"),
        (LatencyMetric::ConnectUpgrade, "the WebSocket handshake"),
    ];
    let seconds = |metric| percentile(task, metric, 0.95).map_or(0.0, Duration::as_secs_f64);
    let measured = steps.map(|(metric, name)| (name, seconds(metric)));
    measured.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(("", 0.0))
}

/// The median and the 95th percentile of the gaps between tokens.
fn token_gaps(task: &TaskMetrics) -> Option<(Duration, Duration)> {
    let gaps = samples(task, LatencyMetric::InterTokenLatency);
    Some((gaps.quantile(0.5)?, gaps.quantile(0.95)?))
}

fn is_steady((p50, p95): (Duration, Duration)) -> bool {
    p95.as_secs_f64() <= STEADY_GAPS * p50.as_secs_f64()
}

fn slow_first_token(judged: LatencyMetric, task: &TaskMetrics) -> String {
    let content = percentile(task, LatencyMetric::TimeToFirstResponse, 0.95);
    let first = percentile(task, LatencyMetric::TimeToFirstToken, 0.95);
    if judged == LatencyMetric::TimeToFirstResponse
        && let (Some(content), Some(first)) = (content, first)
        && first.as_secs_f64() < content.as_secs_f64() / 2.0
    {
        let evidence = format!("the first token of any kind came after {} (p95)", first.rounded());
        return LATE_CONTENT.to_advice(&evidence);
    }
    let Some(gaps) = token_gaps(task) else { return SLOW_FIRST_TOKEN.to_advice("") };
    let (p50, p95) = (gaps.0.rounded(), gaps.1.rounded());
    if is_steady(gaps) {
        let evidence = format!("the gaps between tokens are steady (p50 {p50}, p95 {p95})");
        SLOW_FIRST_TOKEN.to_advice(&evidence)
    } else {
        UNEVEN_TOKENS
            .to_advice(&format!("the gaps between tokens are uneven too (p50 {p50}, p95 {p95})"))
    }
}

fn slow_tokens(task: &TaskMetrics) -> String {
    let Some(gaps) = token_gaps(task) else { return SLOW_TOKENS.to_advice("") };
    let (p50, p95) = (gaps.0.rounded(), gaps.1.rounded());
    let cause = if is_steady(gaps) { SLOW_TOKENS } else { UNEVEN_TOKENS };
    let gaps = if is_steady(gaps) { "slow but steady" } else { "uneven" };
    cause.to_advice(&format!("the gaps between tokens are {gaps} (p50 {p50}, p95 {p95})"))
}

fn slow_web_socket(task: &TaskMetrics) -> String {
    let (step, seconds) = slowest_step(task);
    let evidence = if seconds > 0.0 {
        format!("{step} takes {} (p95)", Duration::from_secs_f64(seconds).rounded())
    } else {
        String::new()
    };
    SLOW_WEB_SOCKET.to_advice(&evidence)
}

/// Splits advice into its text and its link.
pub fn split_advice(advice: &str) -> (&str, Option<&str>) {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ":/.#-_".contains(c);
    let parts = advice.strip_suffix(')').and_then(|rest| rest.rsplit_once(" ("));
    match parts {
        Some((text, link)) if link.starts_with("https://") && link.chars().all(is_plain) => {
            (text, Some(link))
        }
        _ => (advice, None),
    }
}

/// Adds the link about the load generator to a reason for which a row is Inconclusive.
pub(super) fn with_generator_link(reason: &str) -> String {
    format!("{reason} ({PAGE}{})", GENERATOR.section)
}

#[cfg(test)]
mod tests;
