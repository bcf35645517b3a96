//! The truth: counts, times, and requests that clients abort.

use std::{io::Write, time::Duration};

use cell0_simulator::{Listen, Quantiles, Settings, Simulator, StartError};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::time::Instant;

use crate::client::{Client, RUN_UID, chat_body, start_simulator, wait_for_truth, wait_until_idle};

const MS: u64 = 1_000_000;

/// Asserts that no time is below `least` and that the median is at most `most` milliseconds.
///
/// Timers have a resolution of 1 ms and the machine may be busy, so late responses are allowed.
fn assert_within(times: Quantiles, least: u64, most: u64) {
    assert!(times.count > 0 && times.min >= least * MS, "{times:?}");
    assert!(times.p50 <= most * MS, "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_equal_the_requests_of_many_clients() {
    let simulator = start_simulator("").await;
    let address = simulator.http_addr();
    let clients: Vec<_> = (0..20)
        .map(|_| {
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                for _ in 0..50 {
                    assert_eq!(client.request("GET", "/health", "").await.unwrap().0, 200);
                    assert_eq!(client.request_chat(json!({"stream": true})).await.unwrap().0, 200);
                }
                assert_eq!(client.request("GET", "/nothing", "").await.unwrap().0, 404);
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let truth = wait_until_idle(&simulator).await;
    let main_counts =
        |counts: cell0_simulator::Counts| (counts.received, counts.completed, counts.failed);
    assert_eq!(main_counts(truth.endpoints.health.counts), (1000, 1000, 0));
    assert_eq!(main_counts(truth.endpoints.chat.counts), (1000, 1000, 0));
    assert_eq!(main_counts(truth.endpoints.other.counts), (20, 0, 20));
    assert_eq!(main_counts(truth.totals.counts), (2020, 2000, 20));
    assert_eq!(truth.totals.all.service_time.count, 2020);
    assert_eq!(truth.totals.successful.service_time.count, 2000);
    assert!(!truth.truncated && truth.totals.first_arrival < truth.totals.last_end);
}

#[tokio::test]
async fn recorded_times_match_the_configured_latencies() {
    let simulator = start_simulator(
        "{chat: {latency: 40ms, tokens: 4, tokenGap: 10ms}, health: {latency: 15ms}}",
    )
    .await;
    let mut client = Client::connect(simulator.http_addr()).await;
    for _ in 0..5 {
        client.request("GET", "/health", "").await.unwrap();
        client.request_chat(json!({"stream": true})).await.unwrap();
    }
    let truth = wait_until_idle(&simulator).await;
    assert_within(truth.endpoints.health.successful.service_time, 15, 30);
    assert_eq!(truth.endpoints.health.successful.time_to_first_response.count, 0);
    assert_within(truth.endpoints.chat.successful.time_to_first_response, 40, 60);
    assert_within(truth.endpoints.chat.successful.service_time, 70, 100);

    simulator.forget_runs();
    client.request_chat(json!({})).await.unwrap();
    let complete = wait_until_idle(&simulator).await.endpoints.chat.successful;
    assert_within(complete.service_time, 80, 1000);
    assert_eq!(complete.service_time.p50, complete.time_to_first_response.p50);
}

/// The simulator runs on the thread of the test, which sleeps while the request arrives.
#[tokio::test]
async fn arrival_time_does_not_depend_on_the_time_of_the_read() {
    let simulator = start_simulator("{health: {latency: 10ms}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    client.request("GET", "/health", "").await.unwrap();
    let blocked = Duration::from_millis(50);
    // The kernel starts to take timestamps with a short delay.
    for attempt in 1.. {
        simulator.forget_runs();
        let mut socket = std::net::TcpStream::connect(simulator.http_addr()).unwrap();
        let request =
            format!("GET /health HTTP/1.1\r\nhost: s\r\nx-loadtest-run: {RUN_UID}\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        std::thread::sleep(blocked);
        let truth = wait_for_truth(&simulator, |counts| counts.completed == 1).await;
        let service_time = Duration::from_nanos(truth.totals.all.service_time.min);
        if service_time >= blocked {
            break;
        }
        assert!(attempt < 50, "{service_time:?}");
    }
}

#[tokio::test]
async fn first_response_is_the_first_token_not_the_role() {
    let simulator = start_simulator("{chat: {latency: 100ms}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let start = Instant::now();
    let body = chat_body(json!({"stream": true}));
    let response = client.send_request("POST", "/v1/chat/completions", &body).await.unwrap();
    let mut body = response.into_body();
    let role = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let role_after = start.elapsed();
    assert!(role.windows(4).any(|word| word == b"role"));
    let token = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let token_after = start.elapsed();
    assert!(token.windows(5).any(|word| word == b"Hello"));
    assert!(role_after >= Duration::from_millis(50) && role_after < token_after);
    body.collect().await.unwrap();
    let recorded =
        wait_until_idle(&simulator).await.endpoints.chat.successful.time_to_first_response;
    // The client's time includes sending the request and reading the token.
    assert!(recorded.p50 >= 100 * MS, "{recorded:?}");
    assert!(u128::from(recorded.p50) <= token_after.as_nanos(), "{recorded:?}");
}

#[tokio::test]
async fn requests_of_disconnected_clients_are_aborted() {
    let simulator = start_simulator("{chat: {latency: 30s}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let mut other = Client::connect(simulator.http_addr()).await;
    let waiting = tokio::spawn(async move { client.request_chat(json!({})).await });
    let streaming = tokio::spawn(async move { other.request_chat(json!({"stream": true})).await });
    wait_for_truth(&simulator, |counts| counts.in_flight == 2).await;
    waiting.abort();
    streaming.abort();
    let truth = wait_until_idle(&simulator).await.endpoints.chat;
    assert_eq!((truth.counts.received, truth.counts.aborted), (2, 2));
    assert_eq!(truth.all.service_time.count, 2);
    assert_eq!(truth.successful.service_time.count, 0);
    assert!(truth.all.service_time.max < 30_000 * MS);
}

#[tokio::test]
async fn new_settings_apply_to_open_connections() {
    let simulator = start_simulator("").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    assert_eq!(client.request("GET", "/health", "").await.unwrap().0, 200);
    let patch = json!({"health": {"errors": {"rate": "100%", "kinds": [{"status": 503}]}}});
    let settings = simulator.current_settings().with_patch(patch).unwrap();
    simulator.replace_settings(settings).unwrap();
    assert_eq!(client.request("GET", "/health", "").await.unwrap().0, 503);
}

#[tokio::test]
async fn no_response_is_sent_during_a_stall() {
    let simulator = start_simulator("{health: {stall: {every: 100ms, for: 60ms}}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(450) {
        client.request("GET", "/health", "").await.unwrap();
    }
    let truth = wait_until_idle(&simulator).await;
    let mut control = Client::connect(simulator.control_addr()).await;
    let (_, csv) = control.request("GET", "/truth/run-1/records", "").await.unwrap();
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
async fn runs_are_recorded_separately() {
    let simulator = start_simulator("").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    client.request("GET", "/health", "").await.unwrap();
    wait_until_idle(&simulator).await;
    assert_eq!(simulator.truth("").totals.counts.received, 0);
    assert_eq!(simulator.truth("run-2").totals.counts.received, 0);
    assert_eq!(simulator.truth(RUN_UID).totals.counts.received, 1);
    assert_eq!(simulator.run_summaries().len(), 1);
}

#[tokio::test]
async fn invalid_settings_are_refused_at_the_start() {
    let mut settings = Settings::default();
    settings.chat.tokens = 0;
    let error = Simulator::start(settings.clone(), Listen::loopback()).await.unwrap_err();
    assert_eq!(error.to_string(), "settings field chat.tokens is 0: it must be 1 to 100000");
    let simulator = start_simulator("").await;
    assert!(simulator.replace_settings(settings).is_err());
}

#[tokio::test]
async fn start_error_names_the_occupied_port() {
    let first = start_simulator("").await;
    let listen = Listen { http_port: first.http_addr().port(), ..Listen::loopback() };
    let error = Simulator::start(Settings::default(), listen).await.unwrap_err();
    assert!(matches!(error, StartError::Listen { port: "HTTP", .. }), "{error:?}");
}

#[tokio::test]
async fn stopped_simulator_refuses_clients_and_keeps_its_truth() {
    let simulator = start_simulator("{chat: {latency: 30s}}").await;
    let address = simulator.http_addr();
    let mut client = Client::connect(address).await;
    let waiting = tokio::spawn(async move { client.request_chat(json!({})).await });
    wait_for_truth(&simulator, |counts| counts.in_flight == 1).await;
    let start = Instant::now();
    simulator.shutdown().await;
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(waiting.await.unwrap().is_err());
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    let counts = simulator.truth(RUN_UID).totals.counts;
    assert_eq!((counts.aborted, counts.in_flight), (1, 0));
}

#[tokio::test]
async fn dropped_simulator_stops() {
    let simulator = start_simulator("{chat: {latency: 30s}}").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    let waiting = tokio::spawn(async move { client.request_chat(json!({})).await });
    wait_for_truth(&simulator, |counts| counts.in_flight == 1).await;
    drop(simulator);
    assert!(waiting.await.unwrap().is_err());
}
