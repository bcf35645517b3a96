//! The contract between operator and runner: everything that one relies on in the other.
//!
//! The plan ([`crate::plan::Plan`]) and the exposition ([`crate::metrics`]) belong to the contract
//! too. Change [`VERSION`] with every change that an older operator or runner can't follow.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::{metrics::Identity, values::Duration};

/// The version of the contract. The plan and the exposition carry it, and both sides refuse
/// another one.
pub const VERSION: u32 = 4;

/// Name of a runner's container.
pub const CONTAINER: &str = "runner";
/// Label of a pod with its index in its Job, set by Kubernetes.
pub const INDEX_LABEL: &str = "batch.kubernetes.io/job-completion-index";
/// Maximum size of a runner's response in bytes. The metrics of 64 tasks at full resolution are smaller.
/// Users choose the image of the runners, so the response is not trusted.
pub const MAX_RESPONSE_BYTES: usize = 16 << 20;

/// The port on which a runner serves its metrics and takes orders.
pub const PORT: u16 = 9464;

/// The paths that a runner serves.
pub mod path {
    /// GET: the exposition.
    pub const METRICS: &str = "/metrics";
    /// GET: the steps of the runner's history, in the same format as the exposition. The query `after=N`
    /// leaves out the steps up to N. With the token of the run, `leaseNumber=N` makes the runner refuse
    /// orders with a lower number.
    pub const HISTORY: &str = "/metrics/history";
    /// GET: a JSON list of [`super::ErrorExample`].
    pub const ERRORS: &str = "/errors";
    /// GET: 200 while the process lives.
    pub const LIVENESS: &str = "/healthz";
    /// GET: 200 once the runner is ready for its start order.
    pub const READINESS: &str = "/readyz";
    /// POST: a [`super::StartOrder`].
    pub const START: &str = "/start";
    /// POST: a [`super::StopOrder`].
    pub const STOP: &str = "/stop";
    /// POST: a [`super::ReleaseOrder`].
    pub const RELEASE: &str = "/release";
}

/// Header of a reply of [`path::HISTORY`], with a [`HistoryReply`].
pub const HISTORY_HEADER: &str = "loadtest-runner";

/// The runner that gave a reply, and the time of the reply. A reply without new steps has them too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistoryReply {
    /// The runner.
    pub identity: Identity,
    /// Seconds of load at the time of the reply.
    pub elapsed_seconds: f64,
    /// Seconds from the request to that time. A reply without them counts as made at once.
    pub work_seconds: f64,
}

impl std::fmt::Display for HistoryReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Identity { run_uid, index, pod_uid } = &self.identity;
        let Self { elapsed_seconds, work_seconds, .. } = self;
        write!(f, "{run_uid};{index};{pod_uid};{elapsed_seconds};{work_seconds}")
    }
}

impl HistoryReply {
    /// Parses the header of a reply; `None` for a header that no runner writes.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split(';');
        let mut next = || parts.next();
        let (run_uid, index, pod_uid) =
            (next()?.to_owned(), next()?.parse().ok()?, next()?.to_owned());
        let seconds_of = |part: &str| part.parse().ok().filter(|seconds: &f64| seconds.is_finite());
        let elapsed_seconds = seconds_of(next()?)?;
        let work_seconds = next().map_or(Some(0.0), seconds_of)?;
        let identity = Identity { run_uid, index, pod_uid };
        Some(Self { identity, elapsed_seconds, work_seconds })
    }
}

/// The directory that the plan's ConfigMap is mounted to.
pub const PLAN_DIRECTORY: &str = "/etc/loadtest";
/// The file of the plan in [`PLAN_DIRECTORY`], and its key in the ConfigMap.
pub const PLAN_FILE: &str = "plan.json";
/// The path of the plan in a runner's container.
pub const PLAN_PATH: &str = "/etc/loadtest/plan.json";

/// Environment variables of a runner.
pub mod variable {
    /// The runner's index, set by the Job controller.
    pub const INDEX: &str = "JOB_COMPLETION_INDEX";
    /// UID of the pod.
    pub const POD_UID: &str = "LOADTEST_POD_UID";

    /// The variable that holds the value of `target.headersFrom[index]`.
    pub fn header(index: usize) -> String {
        format!("LOADTEST_HEADER_{index}")
    }
}

/// Exit codes of a runner. Zero means that the runner was released or that its release grace
/// passed.
pub mod exit_code {
    /// The runner could not run: a plan that it can't read, or a port that it can't bind.
    pub const CANNOT_RUN: u8 = 2;
    /// Other work on the machine disturbed the self test.
    pub const NOT_JUDGED: u8 = 3;
    /// The runner was killed after its start. Its load must not run twice.
    pub const KILLED_AFTER_START: u8 = 75;
    /// The runner was killed before its start.
    pub const KILLED_BEFORE_START: u8 = 76;
    /// The limits of the runner's machine are too low for the planned load.
    pub const LIMITS_TOO_LOW: u8 = 77;
    /// The target did not accept a connection. No load was made.
    pub const TARGET_UNREACHABLE: u8 = 78;
}

/// The termination grace period of a runner pod.
pub const TERMINATION_GRACE: Duration = Duration::from_secs(10);
/// How long a killed runner goes on serving its metrics, unless it is released. The pod's log is
/// deleted with the pod, so the operator must scrape the last metrics within this time. Shorter
/// than [`TERMINATION_GRACE`].
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(7);
/// Maximum lead of a start order, and maximum grace period of a stop order. A wrong unit must not
/// make a runner wait for a year.
pub const MAX_ORDER_SECONDS: f64 = 3600.0;

/// Tells a runner to start its load. Of several orders, the one that names the earliest start counts, because an order is
/// late by the time that it was on its way.
///
/// Each order has the number of the operator's Lease, which grows when another replica of the operator
/// takes over. A runner refuses an order with a lower number than it has seen: it comes from a replica that
/// no longer leads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartOrder {
    /// Number of the operator's Lease. Operators of earlier versions had none.
    #[serde(default)]
    pub lease_number: Option<u64>,
    /// Seconds from the sending of the order to the start. The load has its whole length, even if it
    /// starts late.
    pub in_seconds: f64,
}

/// Tells a runner to stop its load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StopOrder {
    /// Number of the operator's Lease. Operators of earlier versions had none.
    #[serde(default)]
    pub lease_number: Option<u64>,
    /// Seconds that requests in flight may still take.
    pub grace_seconds: f64,
}

/// Tells a runner that it may exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseOrder {
    /// Number of the operator's Lease. Operators of earlier versions had none.
    #[serde(default)]
    pub lease_number: Option<u64>,
    /// Number of the last step of the runner's history that the operator has read. A runner whose numbers
    /// are not final at that step refuses the order. Without it, the operator needs no numbers any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_step: Option<u64>,
}

/// One message of an error kind, as [`path::ERRORS`] lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorExample {
    /// The task of the request.
    pub task: String,
    /// The error kind.
    pub kind: String,
    /// The message of one such error.
    pub message: String,
}

/// Advice for two versions of the contract that differ.
pub fn version_advice() -> String {
    format!(
        "this program speaks version {VERSION}; operator and runner must be of one release (chart value runner.image, or spec.runners.image)"
    )
}

/// Message of the log lines that carry a runner's last metrics.
pub const LAST_METRICS: &str = "last metrics";
/// Maximum length of one part: container runtimes split lines near 16 KiB.
const PART_LENGTH: usize = 8 << 10;

/// One part of a runner's last exposition, as a line of its log carries it.
///
/// A runner that exits without a release order writes its exposition to its log: base64, split
/// into parts that are numbered from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastMetricsPart {
    /// The number of this part.
    pub part: usize,
    /// How many parts there are.
    pub parts: usize,
    /// A piece of the base64 text.
    pub data: String,
}

/// A log line as the runner's JSON logger writes it.
#[derive(Deserialize)]
struct LogLine {
    fields: LastMetricsPart,
}

/// Splits an exposition into parts for the log.
pub fn split_last_metrics(exposition: &[u8]) -> Vec<LastMetricsPart> {
    let text = STANDARD.encode(exposition);
    let parts = text.len().div_ceil(PART_LENGTH);
    let pieces = text.as_bytes().chunks(PART_LENGTH).zip(1..);
    pieces
        .map(|(piece, part)| LastMetricsPart {
            part,
            parts,
            data: String::from_utf8_lossy(piece).into_owned(),
        })
        .collect()
}

/// Puts the last exposition together from a runner's log; `None` when a part is missing.
pub fn join_last_metrics(log: &str) -> Option<Vec<u8>> {
    let parts: BTreeMap<usize, LastMetricsPart> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<LogLine>(line).ok())
        .map(|line| (line.fields.part, line.fields))
        .collect();
    let expected = parts.values().next()?.parts;
    if expected == 0 || !parts.keys().copied().eq(1..=expected) {
        return None;
    }
    let text: String = parts.into_values().map(|part| part.data).collect();
    STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Log lines as `tracing_subscriber`'s JSON format writes them.
    fn log_of(exposition: &[u8]) -> Vec<String> {
        let line = |part: LastMetricsPart| {
            let LastMetricsPart { part, parts, data } = part;
            format!(
                r#"{{"level":"INFO","fields":{{"message":"{LAST_METRICS}","part":{part},"parts":{parts},"data":"{data}"}}}}"#
            )
        };
        split_last_metrics(exposition).into_iter().map(line).collect()
    }

    #[test]
    fn last_metrics_are_found_among_other_lines() {
        let exposition: Vec<u8> = (0..20_000_u32).map(|i| (i % 251) as u8).collect();
        let mut lines = log_of(&exposition);
        assert!(lines.len() > 3);
        lines.insert(1, "not json".into());
        lines.insert(0, r#"{"level":"INFO","fields":{"message":"ready"}}"#.into());
        assert_eq!(join_last_metrics(&lines.join("\n")), Some(exposition));
    }

    #[test]
    fn a_log_with_a_missing_part_has_no_metrics() {
        let mut lines = log_of(&vec![7; 20_000]);
        lines.remove(1);
        assert_eq!(join_last_metrics(&lines.join("\n")), None);
        assert_eq!(join_last_metrics(""), None);
    }

    #[test]
    fn a_reply_says_who_gave_it() {
        let identity = Identity { run_uid: "run".into(), index: 7, pod_uid: "pod".into() };
        let reply = HistoryReply { identity, elapsed_seconds: 1.25, work_seconds: 0.5 };
        assert_eq!(HistoryReply::parse(&reply.to_string()), Some(reply));
        let of_earlier_build = HistoryReply::parse("run;7;pod;1.25").unwrap();
        assert!(of_earlier_build.work_seconds.abs() < 1e-9, "it says nothing of its work");
        for wrong in ["", "run;x;pod;1", "run;1;pod;NaN", "run;1;pod;1;NaN", "run;1;pod"] {
            assert_eq!(HistoryReply::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_plan_path_is_directory_and_file() {
        assert_eq!(PLAN_PATH, format!("{PLAN_DIRECTORY}/{PLAN_FILE}"));
        const { assert!(DRAIN_TIMEOUT.as_nanos() < TERMINATION_GRACE.as_nanos()) };
    }
}
