//! The truth about many requests, their times, and clients that leave.

use std::{io::Write, time::Duration};

use cell0_simulator::{Listen, Quantiles, Settings, Simulator, StartError};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::time::Instant;

use crate::client::{Client, RUN, chat_body, settled, simulator, truth_when};

const MS: u64 = 1_000_000;

/// A timer is up to 1 ms coarse, and a machine of tests is busy: late is allowed, early is not.
fn all_within(times: Quantiles, least: u64, most: u64) {
    assert!(times.count > 0 && times.min >= least * MS, "{times:?}");
    assert!(times.p50 <= most * MS, "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_equal_what_many_clients_sent() {
    let simulator = simulator("").await;
    let address = simulator.http_addr();
    let clients: Vec<_> = (0..20)
        .map(|_| {
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                for _ in 0..50 {
                    assert_eq!(client.ask("GET", "/health", "").await.unwrap().0, 200);
                    assert_eq!(client.chat(json!({"stream": true})).await.unwrap().0, 200);
                }
                assert_eq!(client.ask("GET", "/nothing", "").await.unwrap().0, 404);
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let truth = settled(&simulator).await;
    let of = |counts: cell0_simulator::Counts| (counts.received, counts.completed, counts.failed);
    assert_eq!(of(truth.endpoints.health.counts), (1000, 1000, 0));
    assert_eq!(of(truth.endpoints.chat.counts), (1000, 1000, 0));
    assert_eq!(of(truth.endpoints.other.counts), (20, 0, 20));
    assert_eq!(of(truth.totals.counts), (2020, 2000, 20));
    assert_eq!(truth.totals.all.service_time.count, 2020);
    assert_eq!(truth.totals.successful.service_time.count, 2000);
    assert!(!truth.truncated && truth.totals.first_arrival < truth.totals.last_end);
}

#[tokio::test]
async fn scripted_latencies_are_what_really_happened() {
    let simulator =
        simulator("{chat: {latency: 40ms, tokens: 4, tokenGap: 10ms}, health: {latency: 15ms}}")
            .await;
    let mut client = Client::connect(simulator.http_addr()).await;
    for _ in 0..5 {
        client.ask("GET", "/health", "").await.unwrap();
        client.chat(json!({"stream": true})).await.unwrap();
    }
    let truth = settled(&simulator).await;
    all_within(truth.endpoints.health.successful.service_time, 15, 30);
    assert_eq!(truth.endpoints.health.successful.time_to_first_response.count, 0);
    all_within(truth.endpoints.chat.successful.time_to_first_response, 40, 60);
    all_within(truth.endpoints.chat.successful.service_time, 70, 100);

    simulator.forget();
    client.chat(json!({})).await.unwrap();
    let whole = settled(&simulator).await.endpoints.chat.successful;
    all_within(whole.service_time, 80, 1000);
    assert_eq!(whole.service_time.p50, whole.time_to_first_response.p50);
}

/// The simulator runs on the thread that is kept here.
#[tokio::test]
async fn a_request_arrives_when_it_comes_and_not_when_the_simulator_has_time_for_it() {
    let simulator = simulator("{health: {latency: 10ms}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    client.ask("GET", "/health", "").await.unwrap();
    let kept = Duration::from_millis(50);
    // The kernel begins to stamp a moment after it was asked to.
    for attempt in 1.. {
        simulator.forget();
        let mut socket = std::net::TcpStream::connect(simulator.http_addr()).unwrap();
        let request = format!("GET /health HTTP/1.1\r\nhost: s\r\nx-loadtest-run: {RUN}\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        std::thread::sleep(kept);
        let truth = truth_when(&simulator, |counts| counts.completed == 1).await;
        let took = Duration::from_nanos(truth.totals.all.service_time.min);
        if took >= kept {
            break;
        }
        assert!(attempt < 50, "{took:?}");
    }
}

#[tokio::test]
async fn the_first_event_is_not_the_first_token() {
    let simulator = simulator("{chat: {latency: 100ms}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let start = Instant::now();
    let body = chat_body(json!({"stream": true}));
    let response = client.send("POST", "/v1/chat/completions", &body).await.unwrap();
    let mut body = response.into_body();
    let role = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let role_after = start.elapsed();
    assert!(role.windows(4).any(|word| word == b"role"));
    let token = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let token_after = start.elapsed();
    assert!(token.windows(5).any(|word| word == b"Hello"));
    assert!(role_after >= Duration::from_millis(50) && role_after < token_after);
    body.collect().await.unwrap();
    let seen = settled(&simulator).await.endpoints.chat.successful.time_to_first_response;
    // Our clock started before the request was sent and read the token after it was written.
    assert!(seen.p50 >= 100 * MS && u128::from(seen.p50) <= token_after.as_nanos(), "{seen:?}");
}

#[tokio::test]
async fn a_client_that_leaves_is_counted_as_aborted() {
    let simulator = simulator("{chat: {latency: 30s}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let mut other = Client::connect(simulator.http_addr()).await;
    let waiting = tokio::spawn(async move { client.chat(json!({})).await });
    let streaming = tokio::spawn(async move { other.chat(json!({"stream": true})).await });
    truth_when(&simulator, |counts| counts.in_flight == 2).await;
    waiting.abort();
    streaming.abort();
    let truth = settled(&simulator).await.endpoints.chat;
    assert_eq!((truth.counts.received, truth.counts.aborted), (2, 2));
    assert_eq!(truth.all.service_time.count, 2);
    assert_eq!(truth.successful.service_time.count, 0);
    assert!(truth.all.service_time.max < 30_000 * MS);
}

#[tokio::test]
async fn new_settings_hold_from_the_next_request_on_open_connections() {
    let simulator = simulator("").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    assert_eq!(client.ask("GET", "/health", "").await.unwrap().0, 200);
    let patch = json!({"health": {"errors": {"rate": "100%", "kinds": [{"status": 503}]}}});
    simulator.set(simulator.settings().patched(patch).unwrap()).unwrap();
    assert_eq!(client.ask("GET", "/health", "").await.unwrap().0, 503);
}

#[tokio::test]
async fn nothing_is_answered_in_a_stall() {
    let simulator = simulator("{health: {stall: {every: 100ms, for: 60ms}}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(450) {
        client.ask("GET", "/health", "").await.unwrap();
    }
    let truth = settled(&simulator).await;
    let mut control = Client::connect(simulator.control_addr()).await;
    let (_, csv) = control.ask("GET", "/truth/run-1/records", "").await.unwrap();
    let mut stalled = 0;
    for line in csv.lines().skip(1) {
        let fields: Vec<u64> =
            line.split(',').skip(1).take(2).map(|field| field.parse().unwrap()).collect();
        let (arrival, first_byte) = (fields[0], fields[1]);
        if arrival > 100 * MS && arrival % (100 * MS) < 60 * MS {
            stalled += 1;
            assert!(first_byte >= arrival - arrival % (100 * MS) + 60 * MS, "{line}");
        }
    }
    assert!(stalled >= 2, "{csv}");
    assert!(truth.endpoints.health.all.service_time.max >= 40 * MS);
}

#[tokio::test]
async fn runs_are_kept_apart() {
    let simulator = simulator("").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    client.ask("GET", "/health", "").await.unwrap();
    settled(&simulator).await;
    assert_eq!(simulator.truth("").totals.counts.received, 0);
    assert_eq!(simulator.truth("run-2").totals.counts.received, 0);
    assert_eq!(simulator.truth(RUN).totals.counts.received, 1);
    assert_eq!(simulator.runs().len(), 1);
}

#[tokio::test]
async fn bad_settings_do_not_start() {
    let mut settings = Settings::default();
    settings.chat.tokens = 0;
    let error = Simulator::start(settings.clone(), Listen::loopback()).await.unwrap_err();
    assert_eq!(error.to_string(), "settings field chat.tokens is 0: it must be 1 to 100000");
    let simulator = simulator("").await;
    assert!(simulator.set(settings).is_err());
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let first = simulator("").await;
    let listen = Listen { http_port: first.http_addr().port(), ..Listen::loopback() };
    let error = Simulator::start(Settings::default(), listen).await.unwrap_err();
    assert!(matches!(error, StartError::Listen { port: "HTTP", .. }), "{error:?}");
}

#[tokio::test]
async fn a_stopped_simulator_takes_nothing_and_keeps_its_truth() {
    let simulator = simulator("{chat: {latency: 30s}}").await;
    let address = simulator.http_addr();
    let mut client = Client::connect(address).await;
    let waiting = tokio::spawn(async move { client.chat(json!({})).await });
    truth_when(&simulator, |counts| counts.in_flight == 1).await;
    let start = Instant::now();
    simulator.shutdown().await;
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(waiting.await.unwrap().is_err());
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    let counts = simulator.truth(RUN).totals.counts;
    assert_eq!((counts.aborted, counts.in_flight), (1, 0));
}

#[tokio::test]
async fn dropping_a_simulator_stops_it() {
    let simulator = simulator("{chat: {latency: 30s}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let waiting = tokio::spawn(async move { client.chat(json!({})).await });
    truth_when(&simulator, |counts| counts.in_flight == 1).await;
    drop(simulator);
    assert!(waiting.await.unwrap().is_err());
}
