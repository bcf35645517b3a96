//! How many runners a test needs, and what each asks for: from what load costs a runner, as
//! measured. Pure.
//!
//! The figures are those of `docs/measurement.md`, "What load costs", with their source and
//! date. They are of one core of one machine; on a slower one a runner takes more than it asked
//! for, and says so when that is not there.

use crate::{
    plan::Plan,
    resource::{
        HttpVersion, LoadTestSpec, Reuse, Scenario, Session, Sizing, Target, Task, TaskKind,
    },
    values::{Duration, Rate},
};

/// CPU of a request on an open connection: two wake-ups, a write and a read.
const REQUEST: f64 = 40.0;
/// Opening and closing a connection, in microseconds of CPU.
const CONNECT: f64 = 40.0;
/// A TLS handshake, on top of that.
const HANDSHAKE: f64 = 400.0;
/// A WebSocket's upgrade and its close, on top of that.
const UPGRADE: f64 = 50.0;
/// A message of a WebSocket and its replies, or a token of a stream, each with its wake-ups.
const MESSAGE: f64 = 20.0;
/// Tokens of an answer whose length nobody has said.
const TOKENS: f64 = 256.0;
/// Seconds that an answer takes of a target that nobody has measured yet: what users without a
/// pause are held up by. And a token of a stream, of a fast model.
const ANSWER: f64 = 0.05;
const TOKEN: f64 = 0.01;

/// Millicores that a load thread has for what it does on average: half a core, so that it is on
/// time for the rest.
const THREAD: f64 = 500.0;
/// Millicores of a runner that does nothing but be scraped.
const IDLE: f64 = 30.0;
/// The CPU request of a runner, in millicores, at least and at most.
const CPU: (f64, f64) = (100.0, 4000.0);
/// The most load threads of one runner.
const MAX_THREADS: i64 = 16;
/// Users of one runner that nobody has asked for, at most: well within the local ports to one
/// address, and the open files of a container.
const MAX_USERS: i64 = 5000;
/// The most runners of a test.
const MAX_RUNNERS: i64 = crate::resource::MAX_RUNNERS;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;
/// A runner without users.
const PROCESS: u64 = 32 * MIB;
/// A task's recorders on one load thread, filled, and their copy while they are scraped.
const RECORDERS: u64 = MIB;
/// A user with a request open on a connection of its own, its socket in the kernel with it.
const USER: u64 = 28 * KIB;
/// A WebSocket session that is kept open, likewise.
const SESSION: u64 = 12 * KIB;
/// TLS on a connection.
const TLS: u64 = 40 * KIB;
/// HTTP/2 on a connection.
const HTTP2: u64 = 32 * KIB;
/// An answer that is decompressed while it comes.
const GZIP: u64 = 80 * KIB;

/// CPU of one request of a task, in microseconds.
fn cost(task: &Task, target: &Target) -> f64 {
    let handshake = |url: &Option<String>| {
        let secure =
            url.as_ref().is_some_and(|url| url.starts_with("https") || url.starts_with("wss"));
        CONNECT + if secure { HANDSHAKE } else { 0.0 }
    };
    let opens = target.connections == Reuse::PerRequest;
    let connect = if opens { handshake(&target.http) } else { 0.0 };
    match task.kind() {
        None => REQUEST,
        Some(TaskKind::Http(_)) => REQUEST + connect,
        Some(TaskKind::Chat(chat)) => {
            let tokens = chat.max_tokens.map_or(TOKENS, f64::from);
            REQUEST + connect + if chat.stream { tokens * MESSAGE } else { 0.0 }
        }
        Some(TaskKind::WebSocket(socket)) => {
            let open = match socket.session {
                Session::PerTask => handshake(&target.web_socket) + UPGRADE,
                Session::PerUser => 0.0,
            };
            REQUEST + open + socket.send.len() as f64 * (1.0 + f64::from(socket.replies)) * MESSAGE
        }
    }
}

/// How long the answer to a request of a task is taken to last, in seconds.
fn answer(task: &Task) -> f64 {
    match task.kind() {
        Some(TaskKind::Chat(chat)) => ANSWER + chat.max_tokens.map_or(TOKENS, f64::from) * TOKEN,
        _ => ANSWER,
    }
}

/// The mean over a scenario's requests.
fn mean(scenario: &Scenario, of: impl Fn(&Task) -> f64) -> f64 {
    let weight = |task: &Task| task.weight.max(0) as f64;
    let weights: f64 = scenario.tasks.iter().map(weight).sum();
    let sum: f64 = scenario.tasks.iter().map(|task| weight(task) * of(task)).sum();
    // A scenario has a task with a weight.
    sum / weights.max(1.0)
}

/// Requests per second over all users: the highest rate of arrivals, or what users would begin
/// whose target answers as fast as is taken for granted here.
fn rate(spec: &LoadTestSpec) -> f64 {
    let load = &spec.load;
    let stages = load.stages.iter().filter_map(|stage| stage.rate);
    let arrivals = load.arrival_rate.into_iter().chain(stages).map(Rate::value);
    if load.is_open() {
        return arrivals.fold(0.0, f64::max);
    }
    let middle = |min: Duration, max: Duration| f64::midpoint(min.as_secs_f64(), max.as_secs_f64());
    let pause = spec.scenario.pause.map_or(0.0, |pause| middle(pause.min, pause.max));
    let answers = mean(&spec.scenario, answer);
    let between =
        spec.scenario.pacing.map_or(pause + answers, |pacing| pacing.as_secs_f64().max(answers));
    load.peak_users() as f64 / between
}

/// Bytes that a runner with so many users of a plan takes, its sockets in the kernel included.
pub fn memory_bytes(plan: &Plan, users: u64) -> u64 {
    memory(&plan.target, &plan.scenario, u64::from(plan.workers), users)
}

fn memory(target: &Target, scenario: &Scenario, workers: u64, users: u64) -> u64 {
    let secure =
        |url: &Option<String>, scheme| url.as_ref().is_some_and(|url| url.starts_with(scheme));
    // A task of weight 0 is never chosen.
    let chosen = || scenario.tasks.iter().filter(|task| task.weight > 0).filter_map(Task::kind);
    let kept = chosen()
        .filter(|kind| matches!(kind, TaskKind::WebSocket(w) if w.session == Session::PerUser));
    let kept = kept.count() as u64;
    let looks_inside = |kind: TaskKind<'_>| match kind {
        TaskKind::Chat(_) => true,
        TaskKind::Http(http) => !http.checks.is_empty(),
        TaskKind::WebSocket(_) => false,
    };
    let is_http2 = target.http_version == HttpVersion::Http2;
    let multiplexed = target.connections == Reuse::Shared && is_http2;
    let with = |bytes, applies: bool| if applies { bytes } else { 0 };
    let http = with(TLS, secure(&target.http, "https") && !multiplexed)
        + with(HTTP2, is_http2 && !multiplexed)
        + with(GZIP, target.gzip && chosen().any(looks_inside));
    let each = USER + http + kept * (SESSION + with(TLS, secure(&target.web_socket, "wss")));
    PROCESS + scenario.tasks.len() as u64 * workers * RECORDERS + users.saturating_mul(each)
}

/// Sizes a test: runners, users of each, threads, and the resources to ask for.
///
/// Without `usersPerRunner` a runner has as many users as one load thread can serve with half
/// a core. Requests are modest, so that a 2-core cluster holds the operator, a target and
/// several runners; there is no CPU limit, so a runner takes more where there is more.
pub fn size(spec: &LoadTestSpec) -> Sizing {
    let users = spec.load.peak_users().max(1);
    let rate = rate(spec);
    // A microsecond of CPU per second is a thousandth of a millicore.
    let each = rate / users as f64 * mean(&spec.scenario, |task| cost(task, &spec.target)) / 1000.0;
    #[expect(clippy::cast_possible_truncation, reason = "float casts saturate, and it is clamped")]
    let of_thread = (THREAD / each.max(1e-9)) as i64;
    let fewest = quotient_up(users, MAX_RUNNERS);
    let asked_for = spec.runners.users_per_runner;
    let per_runner = asked_for.unwrap_or_else(|| of_thread.clamp(1, MAX_USERS).max(fewest)).max(1);
    let runners = quotient_up(users, per_runner);
    let largest = quotient_up(users, runners);
    let needs = each * largest as f64;
    let cpu = ((IDLE + needs).clamp(CPU.0, CPU.1) / 10.0).ceil() * 10.0;
    #[expect(clippy::cast_possible_truncation, reason = "float casts saturate, and it is clamped")]
    let workers = ((needs / THREAD).ceil() as i64).clamp(1, MAX_THREADS.min(largest));
    let bytes =
        memory(&spec.target, &spec.scenario, workers.unsigned_abs(), largest.unsigned_abs());
    let asked = |name: &str| {
        let resources = spec.runners.resources.as_ref()?;
        let request = resources.requests.as_ref().and_then(|r| r.get(name));
        let limit = resources.limits.as_ref().and_then(|l| l.get(name));
        request.or(limit).map(|quantity| quantity.0.clone())
    };
    Sizing {
        runners,
        users_per_runner: largest,
        rate_per_runner: Rate::per_second(rate / runners as f64).rounded(),
        workers,
        cpu: asked("cpu").unwrap_or_else(|| format!("{cpu}m")),
        memory: asked("memory").unwrap_or_else(|| format!("{}Mi", bytes.div_ceil(MIB))),
    }
}

/// Division that rounds up, of what is above zero.
const fn quotient_up(whole: i64, by: i64) -> i64 {
    (whole + by - 1) / by
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::spec;

    fn sized(edit: impl FnOnce(&mut LoadTestSpec)) -> Sizing {
        let mut spec = spec();
        edit(&mut spec);
        size(&spec)
    }

    #[test]
    fn two_hundred_users_at_a_hundred_a_runner_are_two_runners() {
        let sizing = sized(|_| ());
        assert_eq!((sizing.runners, sizing.users_per_runner, sizing.workers), (2, 100, 1));
        // Modest: a cluster of two cores holds several of them.
        assert_eq!((sizing.rate_per_runner.as_str(), sizing.cpu.as_str()), ("26.03/s", "130m"));
    }

    #[test]
    fn without_a_wish_runners_are_as_many_as_the_load_needs() {
        let of = |users: i64| {
            sized(|spec| {
                spec.runners.users_per_runner = None;
                spec.load.users = Some(users);
                spec.scenario.tasks.retain(|task| task.name == "health");
            })
        };
        let (few, many) = (of(200), of(100_000));
        assert_eq!((few.runners, few.cpu.as_str()), (1, "100m"));
        // 100,000 users with pauses of 2 s are nearly 50,000 requests/s at 40 µs: two cores; 5,000
        // users are the most of one runner.
        assert_eq!((many.runners, many.users_per_runner), (20, 5000));
        assert_eq!((many.cpu.as_str(), many.workers), ("130m", 1));
    }

    #[test]
    fn fast_arrivals_need_more_runners_than_their_users() {
        let sizing = sized(|spec| {
            spec.runners.users_per_runner = None;
            spec.scenario.tasks.retain(|task| task.name == "health");
            spec.scenario.pause = None;
            spec.load = serde_yaml::from_str("{arrivalRate: 50000/s, maxUsers: 400, duration: 1m}")
                .unwrap();
        });
        // Two cores of work, half a core a thread.
        assert_eq!((sizing.runners, sizing.users_per_runner), (4, 100));
        assert_eq!((sizing.rate_per_runner.as_str(), sizing.cpu.as_str()), ("12500/s", "530m"));
    }

    #[test]
    fn chats_cost_by_their_tokens() {
        let of = |max_tokens: i32| {
            sized(|spec| {
                spec.runners.users_per_runner = None;
                spec.load.users = Some(2000);
                spec.scenario.tasks.retain(|task| task.name == "chat");
                spec.scenario.tasks[0].chat.as_mut().unwrap().max_tokens = Some(max_tokens);
            })
        };
        assert!(of(1000).runners > of(10).runners, "{:?} {:?}", of(1000), of(10));
    }

    #[test]
    fn many_users_of_one_runner_get_more_threads() {
        let sizing = sized(|spec| {
            spec.runners.users_per_runner = Some(10_000);
            spec.load.users = Some(10_000);
        });
        assert!(sizing.workers > 1, "{sizing:?}");
    }

    #[test]
    fn what_the_user_asks_for_is_what_the_plan_shows() {
        let sizing = sized(|spec| {
            spec.runners.resources =
                serde_json::from_str(r#"{"requests": {"cpu": "2"}, "limits": {"memory": "1Gi"}}"#)
                    .unwrap();
        });
        assert_eq!((sizing.cpu.as_str(), sizing.memory.as_str()), ("2", "1Gi"));
    }

    #[test]
    fn memory_grows_with_what_is_kept_open() {
        let of = |target: &str, session: Session| {
            let mut spec = spec();
            spec.target.http = Some(format!("{target}://cell0"));
            spec.scenario.tasks[3].web_socket.as_mut().unwrap().session = session;
            memory(&spec.target, &spec.scenario, 1, 1000)
        };
        let plain = of("http", Session::PerTask);
        assert!(of("https", Session::PerTask) > plain);
        assert!(of("http", Session::PerUser) > plain);
    }

    proptest! {
        #[test]
        fn sizing_never_exceeds_what_was_allowed(
            users in 1_i64..=1_000_000,
            per_runner in prop::option::of(1_i64..=10_000),
        ) {
            let sizing = sized(|spec| {
                spec.load.users = Some(users);
                spec.runners.users_per_runner = per_runner;
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
