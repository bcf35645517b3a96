//! The machine check: compares the limits of this machine with the needs of the load, before the
//! load starts.
//!
//! Without it, a limit shows only as failed requests during the ramp, and the failures look like
//! those of the target. The check reports each problem with its remedy.

use std::{fs, net::ToSocketAddrs};

use loadtest_core::{
    load::LoadModel,
    plan::{Plan, TaskKind, memory_bytes},
    resource::{ConnectionReuse, HttpVersion, Session},
};

use crate::{
    machine::{limits, memory},
    prepare::{endpoint::Endpoint, plan::PreparedPlan},
};

/// Number of open files that a process needs besides its connections: listeners, timers, scrapes.
const SPARE_FILES: u64 = 100;

/// The limits of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of open files of this process. `None` without a limit.
    pub files: Option<u64>,
    /// Number of local ports for connections to one address and port.
    pub ports: u64,
    /// Memory limit of this container in bytes. `None` without a limit.
    pub memory: Option<u64>,
}

impl Limits {
    /// Reads the limits.
    pub fn of_this_machine() -> Self {
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let mut bounds =
            range.iter().flat_map(|text| text.split_whitespace()).map(str::parse::<u64>);
        let ports = match (bounds.next(), bounds.next()) {
            (Some(Ok(low)), Some(Ok(high))) if low <= high => high - low + 1,
            // Used when the system does not report its range: most of the 65,536 ports.
            _ => 60_000,
        };
        Self { files: limits::file_limit(), ports, memory: memory::limit_bytes() }
    }
}

/// The users of a runner, and the maximum number of connections that they have open at the same
/// time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ConnectionNeed {
    users: u64,
    http: u64,
    websocket: u64,
}

impl ConnectionNeed {
    fn of_runner(plan: &Plan, index: u32) -> Self {
        let scenario = &plan.test.scenario;
        let all_users = u64::from(plan.test.load.peak_users().get());
        let users = plan.runner_partition(index).count_below(all_users).min(concurrent_users(plan));
        let speaks_http =
            scenario.picked_kinds().any(|kind| !matches!(kind, TaskKind::WebSocket(_)));
        let target = &plan.test.target;
        let http = match (target.connections, target.http_version) {
            _ if !speaks_http => 0,
            (ConnectionReuse::Shared, HttpVersion::Http2) => u64::from(plan.threads),
            // In the worst case all users wait for a response at the same time.
            _ => users,
        };
        let sessions = |wanted: Session| {
            let is_wanted =
                |kind: &&TaskKind| matches!(kind, TaskKind::WebSocket(w) if w.session == wanted);
            scenario.picked_kinds().filter(is_wanted).count() as u64
        };
        // A user runs one task at a time, and keeps its sessions open between tasks.
        let per_task = sessions(Session::PerTask).min(1);
        let per_user = sessions(Session::PerUser);
        Self { users, http, websocket: users * (per_task + per_user) }
    }
}

/// Returns how many users of one runner can have a connection open at the same time.
///
/// In the open model these are the arrivals within the longest timeout. In the closed model these
/// are the users that start before the end.
fn concurrent_users(plan: &Plan) -> u64 {
    let timeouts = plan.test.scenario.picked_kinds().map(|kind| match kind {
        TaskKind::Http(http) => http.timeout,
        TaskKind::Chat(chat) => chat.timeout,
        TaskKind::WebSocket(socket) => socket.timeout,
    });
    let total = match (&plan.test.load, plan.test.load.peak_arrival_rate()) {
        (_, Some(rate)) => rate.value() * timeouts.max().unwrap_or_default().as_secs_f64(),
        (LoadModel::Users(load), None) => {
            load.spawn_rate.get().value() * load.duration.as_secs_f64()
        }
        (_, None) => f64::MAX,
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "float casts saturate, and no rate is negative"
    )]
    let per_runner = (total / f64::from(plan.runners)).ceil() as u64;
    // The parts of the runners differ by at most one user.
    per_runner.saturating_add(1)
}

/// Returns all problems that would keep a runner from making its load. `target_in_process` is true
/// when this process also runs the target.
pub fn find_problems(
    prepared: &PreparedPlan,
    index: u32,
    limits: &Limits,
    target_in_process: bool,
) -> Vec<String> {
    let endpoints = [(&prepared.http, "target.http"), (&prepared.websocket, "target.webSocket")];
    let address_count = |endpoint_index: usize| {
        let (endpoint, _) = endpoints[endpoint_index];
        endpoint.as_ref().map_or(1, count_addresses)
    };
    check_limits(
        &prepared.plan,
        ConnectionNeed::of_runner(&prepared.plan, index),
        limits,
        target_in_process,
        address_count,
    )
}

/// Returns the number of addresses of an endpoint. One if the name can't be resolved.
fn count_addresses(endpoint: &Endpoint) -> u64 {
    let found = (endpoint.host.as_str(), endpoint.port).to_socket_addrs();
    found.map_or(1, |found| found.count() as u64).max(1)
}

/// Compares needs with limits. `address_count` is called only when one address is not enough.
fn check_limits(
    plan: &Plan,
    need: ConnectionNeed,
    limits: &Limits,
    target_in_process: bool,
    address_count: impl Fn(usize) -> u64,
) -> Vec<String> {
    let ConnectionNeed { users, http, websocket } = need;
    let mut problems = Vec::new();
    let files = ((http + websocket) << u32::from(target_in_process)) + SPARE_FILES;
    if let Some(limit) = limits.files.filter(|limit| files > *limit) {
        let fits = max_users(users, files - SPARE_FILES, limit.saturating_sub(SPARE_FILES));
        problems.push(format!(
            "{users} users need {files} open files, but the limit is {limit}: use at most {fits} users per runner, or raise the hard limit of open files (ulimit -Hn)"
        ));
    }
    for (endpoint_index, (name, connections)) in
        [("target.http", http), ("target.webSocket", websocket)].into_iter().enumerate()
    {
        if connections > limits.ports && connections > limits.ports * address_count(endpoint_index)
        {
            let fits = max_users(users, connections, limits.ports * address_count(endpoint_index));
            problems.push(format!(
                "{users} users need {connections} connections to {name}, but there are only {} local ports: use at most {fits} users per runner, or widen net.ipv4.ip_local_port_range",
                limits.ports
            ));
        }
    }
    let bytes = memory_bytes(plan, users);
    if let Some(limit) = limits.memory.filter(|limit| bytes > *limit) {
        let mebi = |bytes: u64| bytes.div_ceil(1 << 20);
        problems.push(format!(
            "{users} users need about {} MiB of memory, but the limit is {} MiB: raise runners.resources.limits.memory, or use at most {} users per runner",
            mebi(bytes),
            mebi(limit),
            max_users_in_memory(plan, users, limit)
        ));
    }
    problems
}

/// Returns the maximum number of users within a memory limit.
fn max_users_in_memory(plan: &Plan, users: u64, limit: u64) -> u64 {
    let base = memory_bytes(plan, 0);
    max_users(users, memory_bytes(plan, users) - base, limit.saturating_sub(base))
}

/// Returns the maximum number of users within `available`, when `users` need `needed`.
fn max_users(users: u64, needed: u64, available: u64) -> u64 {
    u64::try_from(u128::from(users) * u128::from(available) / u128::from(needed.max(1)))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use loadtest_core::{
        plan::{RunIdentity, ValidTest, size_test, validate},
        resource::LoadTestSpec,
    };

    use super::*;

    const NO_LIMITS: Limits = Limits { files: None, ports: 28_232, memory: None };

    fn valid(target: &str, load: &str, tasks: &str) -> ValidTest {
        let spec = format!(
            "{{target: {{http: 'http://t', webSocket: 'ws://t'{target}}}, load: {load}, \
             scenario: {{tasks: [{tasks}]}}, runners: {{usersPerRunner: 1000000}}}}"
        );
        let spec: LoadTestSpec = serde_saphyr::from_str(&spec).unwrap();
        validate(&spec).unwrap()
    }

    fn plan_of(test: ValidTest) -> Plan {
        let sizing = size_test(&test);
        Plan { threads: 2, ..Plan::new(test, &sizing, RunIdentity::default()) }
    }

    fn plan(users: u64, target: &str, tasks: &str) -> Plan {
        let load = format!("{{users: {users}, spawnRate: 10000, duration: 1m}}");
        plan_of(valid(target, &load, tasks))
    }

    const HTTP: &str = "{name: a, http: {path: /}}";
    const SOCKET: &str = "{name: b, webSocket: {}}";
    const KEPT_SOCKET: &str = "{name: c, webSocket: {session: PerUser}}";

    fn problems_of(plan: &Plan, limits: &Limits) -> String {
        check_limits(plan, ConnectionNeed::of_runner(plan, 0), limits, false, |_| 1).join("; ")
    }

    #[test]
    fn users_need_connections_for_their_open_tasks() {
        for (target, tasks, http, websocket) in [
            ("", HTTP, 100, 0),
            ("", SOCKET, 0, 100),
            ("", &[HTTP, SOCKET, KEPT_SOCKET].join(", "), 100, 200),
            (", connections: Shared, httpVersion: HTTP2", HTTP, 2, 0),
            (", connections: Shared", HTTP, 100, 0),
        ] {
            let need = ConnectionNeed::of_runner(&plan(100, target, tasks), 0);
            assert_eq!((need.http, need.websocket), (http, websocket), "{target} {tasks}");
        }
    }

    #[test]
    fn a_load_within_the_limits_has_no_problem() {
        assert_eq!(problems_of(&plan(20_000, "", HTTP), &NO_LIMITS), "");
    }

    #[test]
    fn too_few_files_are_reported_with_the_possible_users() {
        let limits = Limits { files: Some(1024), ..NO_LIMITS };
        let problem = problems_of(&plan(2000, "", HTTP), &limits);
        assert!(problem.contains("need 2100 open files, but the limit is 1024"), "{problem}");
        assert!(problem.contains("at most 924 users"), "{problem}");
    }

    #[test]
    fn ports_are_counted_per_address() {
        let plan = plan(50_000, "", HTTP);
        assert!(problems_of(&plan, &NO_LIMITS).contains("at most 28232 users"));
        assert_eq!(
            check_limits(&plan, ConnectionNeed::of_runner(&plan, 0), &NO_LIMITS, false, |_| 2),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_low_memory_limit_is_reported() {
        let limits = Limits { memory: Some(64 << 20), ..NO_LIMITS };
        assert!(problems_of(&plan(10_000, "", HTTP), &limits).contains("the limit is 64 MiB"));
        assert_eq!(problems_of(&plan(100, "", HTTP), &limits), "");
    }

    #[test]
    fn only_users_and_tasks_that_run_need_connections() {
        let need = |load: &str, tasks: &str| {
            ConnectionNeed::of_runner(&plan_of(valid("", load, tasks)), 0)
        };
        let arrivals = "{arrivalRate: 100/s, maxUsers: 30000, duration: 1m}";
        assert_eq!(need(arrivals, HTTP).http, 6001);
        let slow_ramp = "{users: 30000, spawnRate: 10, duration: 1m}";
        assert_eq!(need(slow_ramp, HTTP).http, 601);
        let unused = "{name: a, http: {path: /}}, {name: b, weight: 0, webSocket: {}}";
        assert_eq!(need(slow_ramp, unused).websocket, 0);
    }

    #[test]
    fn the_limits_of_the_machine_are_read() {
        assert!(Limits::of_this_machine().ports > 100);
    }
}
