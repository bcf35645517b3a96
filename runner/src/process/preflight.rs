//! Before there is any load: does this machine let the runner make it?
//!
//! What would else come as failed requests halfway up the ramp, and be taken for the target's,
//! is told at once, with what to change.

use std::{fs, net::ToSocketAddrs};

use loadtest_core::{
    plan::Plan,
    resource::{HttpVersion, Reuse, Session, Task, TaskKind},
    sizing,
    values::Rate,
};

use crate::{
    machine::{limits, memory},
    prepare::{Endpoint, Prepared},
    selftest,
};

/// Files that a process needs besides its connections: listeners, timers, its metrics' readers.
const SPARE_FILES: u64 = 100;

/// What this machine allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Files that this process may have open; `None` for any number.
    pub files: Option<u64>,
    /// Local ports for connections to one address and port.
    pub ports: u64,
    /// Bytes of memory that this container may have; `None` for what there is.
    pub memory: Option<u64>,
}

/// Gets this process ready for load: as many open files as it may have, its program in memory,
/// and run once.
pub fn make_ready() {
    limits::raise_file_limit();
    memory::warm_up();
    if let Err(error) = selftest::rehearse() {
        tracing::warn!(%error, "no rehearsal: the first requests may be late");
    }
}

impl Limits {
    /// Reads them.
    pub fn of_this_machine() -> Self {
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let mut ends = range.iter().flat_map(|text| text.split_whitespace()).map(str::parse::<u64>);
        let ports = match (ends.next(), ends.next()) {
            (Some(Ok(low)), Some(Ok(high))) if low <= high => high - low + 1,
            // A system that does not say has most of the 65,536.
            _ => 60_000,
        };
        Self { files: limits::file_limit(), ports, memory: memory::limit() }
    }
}

/// Connections that users need at once, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Need {
    users: u64,
    http: u64,
    web_socket: u64,
}

impl Need {
    fn of(plan: &Plan, index: u32) -> Self {
        // A task of weight 0 is never chosen.
        let chosen = || plan.scenario.tasks.iter().filter(|task| task.weight > 0);
        let kinds = || chosen().filter_map(Task::kind);
        let users = (plan.users_of(index).count() as u64).min(at_once(plan, kinds()));
        let speaks_http = kinds().any(|kind| !matches!(kind, TaskKind::WebSocket(_)));
        let target = &plan.target;
        let http = match (target.connections, target.http_version) {
            _ if !speaks_http => 0,
            (Reuse::Shared, HttpVersion::Http2) => u64::from(plan.workers),
            // At the worst all users wait for an answer at once.
            _ => users,
        };
        let sessions = |wanted: Session| {
            let of =
                |kind: &TaskKind<'_>| matches!(kind, TaskKind::WebSocket(w) if w.session == wanted);
            kinds().filter(of).count() as u64
        };
        // A user does one thing at a time, and keeps what it has open.
        let one_at_a_time = sessions(Session::PerTask).min(1);
        let kept = sessions(Session::PerUser);
        Self { users, http, web_socket: users * (one_at_a_time + kept) }
    }
}

/// Users of one runner that can have something open at once: of arrivals those that come within
/// the longest timeout, of users those that start before the end.
fn at_once<'a>(plan: &Plan, kinds: impl Iterator<Item = TaskKind<'a>>) -> u64 {
    let load = &plan.load;
    let most = if load.is_open() {
        let stages = load.stages.iter().filter_map(|stage| stage.rate);
        let rate = load.arrival_rate.into_iter().chain(stages).map(Rate::value).fold(0.0, f64::max);
        let timeouts = kinds.map(|kind| match kind {
            TaskKind::Http(http) => http.timeout,
            TaskKind::Chat(chat) => chat.timeout,
            TaskKind::WebSocket(socket) => socket.timeout,
        });
        rate * timeouts.max().unwrap_or_default().as_secs_f64()
    } else {
        match (load.spawn_rate, load.duration) {
            (Some(rate), Some(length)) => rate * length.as_secs_f64(),
            _ => f64::MAX,
        }
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "float casts saturate, and no rate is negative"
    )]
    let of_one = (most / f64::from(plan.runners.max(1))).ceil() as u64;
    // Shares are even, but for one.
    of_one.saturating_add(1)
}

/// Everything that would keep a runner from making its load. `both_ends` is true when the
/// target is in this process too.
pub fn problems(prepared: &Prepared, index: u32, limits: &Limits, both_ends: bool) -> Vec<String> {
    let ends = [(&prepared.http, "target.http"), (&prepared.web_socket, "target.webSocket")];
    let addresses = |which: usize| {
        let (endpoint, _) = ends[which];
        endpoint.as_ref().map_or(1, addresses_of)
    };
    judge(&prepared.plan, Need::of(&prepared.plan, index), limits, both_ends, addresses)
}

/// The addresses behind an endpoint's name; one for a name that is not known.
fn addresses_of(endpoint: &Endpoint) -> u64 {
    let found = (endpoint.host.as_str(), endpoint.port).to_socket_addrs();
    found.map_or(1, |found| found.count() as u64).max(1)
}

/// Pure, but for `addresses`, asked only where one address is too few.
fn judge(
    plan: &Plan,
    need: Need,
    limits: &Limits,
    both_ends: bool,
    addresses: impl Fn(usize) -> u64,
) -> Vec<String> {
    let Need { users, http, web_socket } = need;
    let mut problems = Vec::new();
    let files = ((http + web_socket) << u32::from(both_ends)) + SPARE_FILES;
    if let Some(limit) = limits.files.filter(|limit| files > *limit) {
        let fits = at_most(users, files - SPARE_FILES, limit.saturating_sub(SPARE_FILES));
        problems.push(format!(
            "{users} users need {files} open files, this process may have {limit}: use at most {fits} users per runner, or raise the hard limit of open files (ulimit -Hn)"
        ));
    }
    for (which, (name, connections)) in
        [("target.http", http), ("target.webSocket", web_socket)].into_iter().enumerate()
    {
        if connections > limits.ports && connections > limits.ports * addresses(which) {
            let fits = at_most(users, connections, limits.ports * addresses(which));
            problems.push(format!(
                "{users} users need {connections} connections to {name}, there are {} local ports: use at most {fits} users per runner, or a wider net.ipv4.ip_local_port_range",
                limits.ports
            ));
        }
    }
    let bytes = sizing::memory_bytes(plan, users);
    if let Some(limit) = limits.memory.filter(|limit| bytes > *limit) {
        let mebi = |bytes: u64| bytes.div_ceil(1 << 20);
        problems.push(format!(
            "{users} users need about {} MiB of memory, the limit is {} MiB: raise runners.resources.limits.memory, or use at most {} users per runner",
            mebi(bytes),
            mebi(limit),
            users_within(plan, users, limit)
        ));
    }
    problems
}

/// The most users of whom the memory is within a limit.
fn users_within(plan: &Plan, users: u64, limit: u64) -> u64 {
    let none = sizing::memory_bytes(plan, 0);
    at_most(users, sizing::memory_bytes(plan, users) - none, limit.saturating_sub(none))
}

/// The most users whose needs fit, when those of `users` are `needed`.
fn at_most(users: u64, needed: u64, there: u64) -> u64 {
    u64::try_from(u128::from(users) * u128::from(there) / u128::from(needed.max(1))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use loadtest_core::{plan::VERSION, resource::LoadTestSpec};

    use super::*;

    const ROOMY: Limits = Limits { files: None, ports: 28_232, memory: None };

    fn plan(users: u64, target: &str, tasks: &str) -> Plan {
        let spec = format!(
            "{{target: {{http: 'http://t', webSocket: 'ws://t'{target}}}, \
             load: {{users: {users}, spawnRate: 10000, duration: 1m}}, scenario: {{tasks: [{tasks}]}}}}"
        );
        let spec: LoadTestSpec = serde_yaml::from_str(&spec).unwrap();
        Plan {
            version: VERSION,
            run: "uid".into(),
            name: "test".into(),
            runners: 1,
            workers: 2,
            token_sha256: String::new(),
            target: spec.target,
            load: spec.load,
            scenario: spec.scenario,
            thresholds: spec.thresholds,
            release_grace: loadtest_core::Duration::ZERO,
            metrics_linger: loadtest_core::Duration::ZERO,
        }
    }

    const HTTP: &str = "{name: a, http: {path: /}}";
    const SOCKET: &str = "{name: b, webSocket: {}}";
    const KEPT: &str = "{name: c, webSocket: {session: PerUser}}";

    fn told(plan: &Plan, limits: &Limits) -> String {
        judge(plan, Need::of(plan, 0), limits, false, |_| 1).join("; ")
    }

    #[test]
    fn users_need_what_their_tasks_keep_open() {
        for (target, tasks, http, web_socket) in [
            ("", HTTP, 100, 0),
            ("", SOCKET, 0, 100),
            ("", &[HTTP, SOCKET, KEPT].join(", "), 100, 200),
            (", connections: Shared, httpVersion: HTTP2", HTTP, 2, 0),
            (", connections: Shared", HTTP, 100, 0),
        ] {
            let need = Need::of(&plan(100, target, tasks), 0);
            assert_eq!((need.http, need.web_socket), (http, web_socket), "{target} {tasks}");
        }
    }

    #[test]
    fn a_load_that_fits_has_no_problem() {
        assert_eq!(told(&plan(20_000, "", HTTP), &ROOMY), "");
    }

    #[test]
    fn too_few_files_are_told_with_what_fits() {
        let limits = Limits { files: Some(1024), ..ROOMY };
        let told = told(&plan(2000, "", HTTP), &limits);
        assert!(told.contains("need 2100 open files, this process may have 1024"), "{told}");
        assert!(told.contains("at most 924 users"), "{told}");
    }

    #[test]
    fn ports_are_counted_for_each_address() {
        let plan = plan(50_000, "", HTTP);
        assert!(told(&plan, &ROOMY).contains("at most 28232 users"));
        assert_eq!(judge(&plan, Need::of(&plan, 0), &ROOMY, false, |_| 2), Vec::<String>::new());
    }

    #[test]
    fn a_limit_of_memory_that_is_too_small_is_told() {
        let limits = Limits { memory: Some(64 << 20), ..ROOMY };
        assert!(told(&plan(10_000, "", HTTP), &limits).contains("the limit is 64 MiB"));
        assert_eq!(told(&plan(100, "", HTTP), &limits), "");
    }

    #[test]
    fn what_never_happens_is_not_needed() {
        let mut plan = plan(30_000, "", HTTP);
        plan.load =
            serde_yaml::from_str("{arrivalRate: 100/s, maxUsers: 30000, duration: 1m}").unwrap();
        assert_eq!(Need::of(&plan, 0).http, 6001);
        plan.load = serde_yaml::from_str("{users: 30000, spawnRate: 10, duration: 1m}").unwrap();
        assert_eq!(Need::of(&plan, 0).http, 601);
        plan.scenario.tasks = serde_yaml::from_str(
            "[{name: a, http: {path: /}}, {name: b, weight: 0, webSocket: {}}]",
        )
        .unwrap();
        assert_eq!(Need::of(&plan, 0).web_socket, 0);
    }

    #[test]
    fn a_machine_has_limits() {
        assert!(Limits::of_this_machine().ports > 100);
    }
}
