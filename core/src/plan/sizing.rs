//! How many runners a test needs, and what each of them requests, from the measured cost of load.
//! Pure.
//!
//! `docs/measurement.md`, "Cost of load", gives the source and the date of the figures. They are
//! of one core of one machine. On a slower machine a runner needs more CPU than it requests, and
//! reports that in its metrics when it does not get it.

use super::{Pacing, Plan, RunnerRequest, Scenario, Task, TaskKind, ValidTest};
use crate::{
    resource::{ChatTask, ConnectionReuse, HttpVersion, MAX_RUNNERS, Session, Sizing, Target},
    values::{Duration, Rate, Users},
};

/// CPU time of a request on an open connection, in microseconds: two wake-ups, a write, a read.
const REQUEST_MICROS: f64 = 40.0;
/// CPU time to open and close a connection, in microseconds.
const CONNECT_MICROS: f64 = 40.0;
/// Additional CPU time of a TLS handshake, in microseconds.
const HANDSHAKE_MICROS: f64 = 400.0;
/// Additional CPU time to upgrade and close a WebSocket, in microseconds.
const UPGRADE_MICROS: f64 = 50.0;
/// CPU time of a WebSocket message, of a reply, or of a token of a stream, in microseconds.
const MESSAGE_MICROS: f64 = 20.0;
/// Assumed tokens of a response without `maxTokens` and `maxCompletionTokens`.
const ASSUMED_TOKENS: f64 = 256.0;
/// Assumed time of a response, in seconds: that of a fast target.
const ASSUMED_RESPONSE_SECONDS: f64 = 0.05;
/// Assumed time of a token of a stream, in seconds: that of a fast model.
const ASSUMED_TOKEN_SECONDS: f64 = 0.01;

/// Average millicores of a load thread: half a core, so that the thread is on time for bursts.
const THREAD_MILLICORES: f64 = 500.0;
/// Millicores of a runner without load, which Prometheus scrapes.
const IDLE_MILLICORES: f64 = 30.0;
/// Smallest and largest CPU request of a runner, in millicores.
const MILLICORES: (f64, f64) = (100.0, 4000.0);
/// Maximum of load threads of one runner.
const MAX_THREADS: u32 = 16;
/// Maximum of users per runner that the sizing chooses: far fewer than the local ports to one
/// address and the open files of a container allow.
const MAX_USERS_PER_RUNNER: u32 = 5000;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;
/// Memory of a runner without users, and of its last two minutes of metrics.
const PROCESS_BYTES: u64 = 36 * MIB;
/// Memory of a task in the metrics of those minutes.
const HISTORY_BYTES: u64 = MIB;
/// Memory of a task's recorders on one load thread, and of their copy during a scrape.
const RECORDER_BYTES: u64 = MIB;
/// Memory of a user with a request in flight on its own connection, kernel socket included.
const USER_BYTES: u64 = 28 * KIB;
/// Memory of a WebSocket session that stays open, kernel socket included.
const SESSION_BYTES: u64 = 12 * KIB;
/// Additional memory of TLS on a connection.
const TLS_BYTES: u64 = 40 * KIB;
/// Additional memory of HTTP/2 on a connection.
const HTTP2_BYTES: u64 = 32 * KIB;
/// Additional memory of a response that is decompressed while it arrives.
const GZIP_BYTES: u64 = 80 * KIB;

/// CPU time of one request of a task, in microseconds.
fn request_micros(task: &Task, target: &Target) -> f64 {
    let connect_micros = |url: &Option<String>| {
        let secure =
            url.as_ref().is_some_and(|url| url.starts_with("https") || url.starts_with("wss"));
        CONNECT_MICROS + if secure { HANDSHAKE_MICROS } else { 0.0 }
    };
    let always_connects = target.connections == ConnectionReuse::PerRequest;
    let connect = if always_connects { connect_micros(&target.http) } else { 0.0 };
    match &task.kind {
        TaskKind::Http(_) => REQUEST_MICROS + connect,
        TaskKind::Chat(chat) => {
            let per_token = if chat.stream { MESSAGE_MICROS } else { 0.0 };
            REQUEST_MICROS + connect + assumed_tokens(chat) * per_token
        }
        TaskKind::WebSocket(socket) => {
            let open = match socket.session {
                Session::PerTask => connect_micros(&target.web_socket) + UPGRADE_MICROS,
                Session::PerUser => 0.0,
            };
            let messages = socket.send.len() as f64 * (1.0 + f64::from(socket.replies));
            REQUEST_MICROS + open + messages * MESSAGE_MICROS
        }
    }
}

/// Assumed tokens of a response: as many as the request allows.
fn assumed_tokens(chat: &ChatTask) -> f64 {
    let limit = chat.max_tokens.or(chat.max_completion_tokens);
    limit.map_or(ASSUMED_TOKENS, |tokens| f64::from(tokens.get()))
}

/// Assumed time of the response to a request of a task, in seconds.
fn response_seconds(task: &Task) -> f64 {
    match &task.kind {
        TaskKind::Chat(chat) => {
            ASSUMED_RESPONSE_SECONDS + assumed_tokens(chat) * ASSUMED_TOKEN_SECONDS
        }
        TaskKind::Http(_) | TaskKind::WebSocket(_) => ASSUMED_RESPONSE_SECONDS,
    }
}

/// The mean of a value over a scenario's requests.
fn mean_over_requests(scenario: &Scenario, value: impl Fn(&Task) -> f64) -> f64 {
    let weights: f64 = scenario.tasks.iter().map(|task| f64::from(task.weight)).sum();
    let sum: f64 = scenario.tasks.iter().map(|task| f64::from(task.weight) * value(task)).sum();
    sum / weights
}

/// Requests per second over all runners: the highest rate of arrivals, or what the users send to a
/// target that responds as fast as assumed here.
fn request_rate(test: &ValidTest) -> f64 {
    if let Some(rate) = test.load.peak_arrival_rate() {
        return rate.value();
    }
    let response = mean_over_requests(&test.scenario, response_seconds);
    let middle = |min: Duration, max: Duration| f64::midpoint(min.as_secs_f64(), max.as_secs_f64());
    let interval = match test.scenario.pacing {
        Pacing::None => response,
        Pacing::Pause(pause) => middle(pause.min, pause.max) + response,
        Pacing::Interval(interval) => interval.as_secs_f64().max(response),
    };
    f64::from(test.load.peak_users().get()) / interval
}

/// Memory in bytes of a runner of a plan with a number of users, kernel sockets included.
pub fn memory_bytes(plan: &Plan, users: u64) -> u64 {
    runner_memory(&plan.test, plan.threads, users)
}

fn runner_memory(test: &ValidTest, threads: u32, users: u64) -> u64 {
    let ValidTest { target, scenario, .. } = test;
    let secure =
        |url: &Option<String>, scheme| url.as_ref().is_some_and(|url| url.starts_with(scheme));
    let keeps_session =
        |kind: &&TaskKind| matches!(kind, TaskKind::WebSocket(w) if w.session == Session::PerUser);
    let sessions = scenario.picked_kinds().filter(keeps_session).count() as u64;
    let reads_body = |kind: &TaskKind| match kind {
        TaskKind::Chat(_) => true,
        TaskKind::Http(http) => !http.checks.is_empty(),
        TaskKind::WebSocket(_) => false,
    };
    let is_http2 = target.http_version == HttpVersion::Http2;
    let multiplexed = target.connections == ConnectionReuse::Shared && is_http2;
    let bytes_if = |bytes, applies: bool| if applies { bytes } else { 0 };
    let http = bytes_if(TLS_BYTES, secure(&target.http, "https") && !multiplexed)
        + bytes_if(HTTP2_BYTES, is_http2 && !multiplexed)
        + bytes_if(GZIP_BYTES, target.gzip && scenario.picked_kinds().any(reads_body));
    let session = SESSION_BYTES + bytes_if(TLS_BYTES, secure(&target.web_socket, "wss"));
    let user = USER_BYTES + http + sessions * session;
    let tasks = scenario.tasks.len() as u64;
    let of_tasks = tasks * (u64::from(threads) * RECORDER_BYTES + HISTORY_BYTES);
    PROCESS_BYTES + of_tasks + users.saturating_mul(user)
}

/// Sizes a test: the number of runners, their users and load threads, and what they request.
///
/// Without `usersPerRunner`, a runner has as many users as one load thread can serve with half a
/// core. Requests are modest, so that a cluster of two cores holds the operator, a target and
/// several runners. There is no CPU limit: a runner uses more CPU where there is more.
pub fn size_test(test: &ValidTest) -> Sizing {
    let users = test.load.peak_users();
    let rate = request_rate(test);
    let mean_micros = mean_over_requests(&test.scenario, |task| request_micros(task, &test.target));
    // One microsecond of CPU per second is a thousandth of a millicore.
    let user_millicores = rate / f64::from(users.get()) * mean_micros / 1000.0;
    let per_runner = test.runner_request.users.unwrap_or_else(|| {
        let of_thread =
            whole_number(THREAD_MILLICORES / user_millicores).clamp(1, MAX_USERS_PER_RUNNER);
        let fewest = users.get().div_ceil(MAX_RUNNERS);
        Users::new(of_thread.max(fewest)).unwrap_or(Users::ONE)
    });
    let runners = match test.runner_request.count {
        // A runner without a user would have nothing to do.
        Some(count) => count.min(users),
        None => users.groups_of(per_runner),
    };
    let largest = users.groups_of(runners).get();
    let millicores = user_millicores * f64::from(largest);
    let cpu =
        ((IDLE_MILLICORES + millicores).clamp(MILLICORES.0, MILLICORES.1) / 10.0).ceil() * 10.0;
    let threads = whole_number((millicores / THREAD_MILLICORES).ceil());
    let threads = threads.clamp(1, MAX_THREADS.min(largest));
    let bytes = runner_memory(test, threads, u64::from(largest));
    let RunnerRequest { cpu: asked_cpu, memory: asked_memory, .. } = test.runner_request.clone();
    Sizing {
        runners: runners.get(),
        users_per_runner: largest,
        rate_per_runner: Rate::per_second(rate / f64::from(runners.get())).rounded(),
        threads_per_runner: threads,
        cpu: asked_cpu.unwrap_or_else(|| format!("{cpu}m")),
        memory: asked_memory.unwrap_or_else(|| format!("{}Mi", bytes.div_ceil(MIB))),
    }
}

fn whole_number(value: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "float casts saturate, and callers clamp the result"
    )]
    {
        value as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        plan::validate,
        resource::LoadTestSpec,
        testing::{spec, yaml},
    };

    fn valid(edit: impl FnOnce(&mut LoadTestSpec)) -> ValidTest {
        let mut spec = spec();
        edit(&mut spec);
        validate(&spec).unwrap()
    }

    fn sized(edit: impl FnOnce(&mut LoadTestSpec)) -> Sizing {
        size_test(&valid(edit))
    }

    /// Keeps one task, and no threshold.
    fn keep_task(spec: &mut LoadTestSpec, name: &str) {
        spec.scenario.tasks.retain(|task| task.name == name);
        spec.thresholds.clear();
    }

    #[test]
    fn two_hundred_users_by_a_hundred_need_two_runners() {
        let sizing = sized(|_| ());
        assert_eq!(
            (sizing.runners, sizing.users_per_runner, sizing.threads_per_runner),
            (2, 100, 1)
        );
        // A modest request: a cluster of two cores holds several such runners.
        assert_eq!((sizing.rate_per_runner.as_str(), sizing.cpu.as_str()), ("26.03/s", "130m"));
    }

    #[test]
    fn the_number_of_runners_can_be_given() {
        let of = |count: u32| {
            let sizing = sized(|spec| {
                spec.runners.users_per_runner = None;
                spec.runners.count = std::num::NonZeroU32::new(count);
            });
            (sizing.runners, sizing.users_per_runner)
        };
        assert_eq!(of(4), (4, 50));
        // Two hundred users can't be on more than 200 runners.
        assert_eq!(of(1000), (200, 1));
    }

    #[test]
    fn runners_follow_the_load_by_default() {
        let of = |users: u32| {
            sized(|spec| {
                spec.runners.users_per_runner = None;
                spec.load.users = Users::new(users);
                keep_task(spec, "health");
            })
        };
        let (few, many) = (of(200), of(100_000));
        assert_eq!((few.runners, few.cpu.as_str()), (1, "100m"));
        // 100,000 users with think times of 2 s send nearly 50,000 requests/s of 40 µs each: two
        // cores. 5,000 users are the maximum of one runner.
        assert_eq!((many.runners, many.users_per_runner), (20, 5000));
        assert_eq!((many.cpu.as_str(), many.threads_per_runner), ("130m", 1));
    }

    #[test]
    fn fast_arrivals_need_more_runners_than_their_users_do() {
        let sizing = sized(|spec| {
            spec.runners.users_per_runner = None;
            keep_task(spec, "health");
            spec.scenario.pause = None;
            spec.load = yaml("{arrivalRate: 50000/s, maxUsers: 400, duration: 1m}");
        });
        // Two cores of work, with half a core per thread.
        assert_eq!((sizing.runners, sizing.users_per_runner), (4, 100));
        assert_eq!((sizing.rate_per_runner.as_str(), sizing.cpu.as_str()), ("12500/s", "530m"));
    }

    #[test]
    fn chats_cost_by_their_tokens() {
        let of = |max_tokens: u32| {
            sized(|spec| {
                spec.runners.users_per_runner = None;
                spec.load.users = Users::new(2000);
                keep_task(spec, "chat");
                spec.scenario.tasks[0].chat.as_mut().unwrap().max_tokens =
                    std::num::NonZeroU32::new(max_tokens);
            })
        };
        assert!(of(1000).runners > of(10).runners, "{:?} {:?}", of(1000), of(10));
    }

    #[test]
    fn many_users_on_one_runner_get_more_threads() {
        let sizing = sized(|spec| {
            spec.runners.users_per_runner = Users::new(10_000);
            spec.load.users = Users::new(10_000);
        });
        assert!(sizing.threads_per_runner > 1, "{sizing:?}");
    }

    #[test]
    fn requested_resources_appear_in_the_sizing() {
        let sizing = sized(|spec| {
            spec.runners.resources =
                serde_json::from_str(r#"{"requests": {"cpu": "2"}, "limits": {"memory": "1Gi"}}"#)
                    .unwrap();
        });
        assert_eq!((sizing.cpu.as_str(), sizing.memory.as_str()), ("2", "1Gi"));
    }

    #[test]
    fn memory_grows_with_open_sessions_and_tls() {
        let of = |target: &str, session: Session| {
            let test = valid(|spec| {
                spec.target.http = Some(format!("{target}://cell0"));
                spec.scenario.tasks[3].web_socket.as_mut().unwrap().session = session;
            });
            runner_memory(&test, 1, 1000)
        };
        let plain = of("http", Session::PerTask);
        assert!(of("https", Session::PerTask) > plain);
        assert!(of("http", Session::PerUser) > plain);
    }

    proptest! {
        #[test]
        fn sizing_never_exceeds_its_limits(
            users in 1_u32..=crate::resource::MAX_USERS,
            per_runner in prop::option::of(1_u32..=10_000),
        ) {
            let sizing = sized(|spec| {
                spec.load.users = Users::new(users);
                spec.runners.users_per_runner = per_runner.and_then(Users::new);
            });
            prop_assert!(sizing.runners * sizing.users_per_runner >= users);
            prop_assert!((sizing.runners - 1) * sizing.users_per_runner < users);
            match per_runner {
                Some(asked) => prop_assert!(sizing.users_per_runner <= asked),
                None => prop_assert!(sizing.runners <= MAX_RUNNERS),
            }
        }
    }
}
