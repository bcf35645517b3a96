//! Every way to fail has its kind.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use cell0_simulator::Simulator;
use loadtest_core::{plan::Plan, resource::Tls};
use loadtest_runner::Snapshot;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
};

use crate::load::{only, plan, run, simulator};

/// The kinds of error of a short run, with what was told of them.
async fn kinds_of(plan: Plan) -> BTreeMap<String, String> {
    let Snapshot { numbers, examples } = run(plan).await;
    let task = only(&numbers);
    assert_eq!(task.completed(), task.failures(), "every request fails: {:?}", task.errors);
    let kinds = task.errors.iter().filter(|(_, count)| **count > 0);
    let told = |kind: &String| {
        examples
            .values()
            .zip(examples.keys())
            .find_map(|(message, key)| (key.1 == *kind).then(|| message.clone()))
    };
    kinds.map(|(kind, _)| (kind.clone(), told(kind).expect("an example"))).collect()
}

async fn failing(settings: &str, task: Value) -> (Simulator, Plan) {
    let simulator = simulator(settings).await;
    let mut task = task;
    task["name"] = "it".into();
    let plan = plan(&simulator, 2, "1s", &json!([task]));
    (simulator, plan)
}

fn chat(stream: bool, timeout: &str) -> Value {
    json!({"chat": {
        "models": ["cell0-small"], "messages": ["Hello"], "stream": stream, "timeout": timeout,
    }})
}

fn session(timeout: &str) -> Value {
    json!({"webSocket": {"path": "/", "send": ["ping"], "replies": 1, "timeout": timeout}})
}

/// Short for what never answers; long enough for a machine that stands still.
fn patience(failure: &str) -> &'static str {
    if failure == "hang" { "400ms" } else { "5s" }
}

#[tokio::test]
async fn failures_of_a_chat_have_their_kinds() {
    let cases = [
        ("status: 503", true, "http_503"),
        ("status: 429", false, "http_429"),
        ("reset", true, "reset"),
        ("hang", true, "timeout_response"),
        ("garbage", true, "protocol"),
        ("streamError", true, "stream_error"),
        ("streamError", false, "http_500"),
        ("cutShort", true, "stream_cut"),
        ("cutShort", false, "reset"),
        ("malformedEvent", true, "stream_malformed"),
        ("malformedEvent", false, "protocol"),
    ];
    for (failure, stream, kind) in cases {
        let errors = format!("errors: {{rate: 100%, kinds: [{failure}]}}");
        let settings = format!("{{chat: {{tokens: 4, latency: 1ms, tokenGap: 1ms, {errors}}}}}");
        let (_simulator, plan) = failing(&settings, chat(stream, patience(failure))).await;
        let kinds = kinds_of(plan).await;
        assert_eq!(
            kinds.keys().collect::<Vec<_>>(),
            [kind],
            "{failure}, stream {stream}: {kinds:?}"
        );
    }
}

#[tokio::test]
async fn failures_of_a_session_have_their_kinds() {
    let cases = [
        ("closeCode: 1011", "websocket_close_1011"),
        ("rejectUpgrade: 503", "http_503"),
        ("reset", "reset"),
        ("hang", "timeout_response"),
    ];
    for (failure, kind) in cases {
        let settings = format!("{{webSocket: {{errors: {{rate: 100%, kinds: [{failure}]}}}}}}");
        let (_simulator, plan) = failing(&settings, session(patience(failure))).await;
        let kinds = kinds_of(plan).await;
        assert_eq!(kinds.keys().collect::<Vec<_>>(), [kind], "{failure}: {kinds:?}");
    }
}

#[tokio::test]
async fn an_answer_that_stalls_within_its_body_is_a_timeout_of_the_body() {
    let settings = "{chat: {tokens: 4, latency: 1ms, tokenGap: 1m}}";
    let (_simulator, plan) = failing(settings, chat(true, "2s")).await;
    assert_eq!(kinds_of(plan).await.into_keys().collect::<Vec<_>>(), ["timeout_body"]);
}

#[tokio::test]
async fn a_status_that_was_not_expected_is_a_failure() {
    let task = json!({"http": {"path": "/health", "expectStatus": [204]}});
    let (_simulator, plan) = failing("{}", task).await;
    assert_eq!(kinds_of(plan).await.into_keys().collect::<Vec<_>>(), ["http_200"]);
}

#[tokio::test]
async fn a_target_that_is_not_there_is_named() {
    let task = json!({"http": {"path": "/health", "timeout": "2s"}});
    let (_simulator, plan) = failing("{}", task).await;
    // Nobody listens there, and nobody else can.
    let held = TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let free = held.local_addr().unwrap();
    let nowhere = format!("{}.invalid", "a".repeat(64));
    let cases = [
        (format!("http://{free}"), "connect", free.to_string()),
        // No label is so long: the resolver says so without asking anyone.
        (format!("http://{nowhere}:80"), "dns", nowhere),
    ];
    for (url, kind, named) in cases {
        let mut plan = plan.clone();
        plan.target.http = Some(url);
        let kinds = kinds_of(plan).await;
        assert_eq!(kinds.keys().collect::<Vec<_>>(), [kind], "{kinds:?}");
        assert!(kinds[kind].contains(&named), "{kinds:?}");
    }
}

#[tokio::test]
async fn a_target_that_says_nothing_to_tls_is_a_timeout_of_the_connect() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let task = json!({"http": {"path": "/health", "timeout": "300ms"}});
    let (_simulator, mut plan) = failing("{}", task).await;
    plan.target.http = Some(format!("https://{}", silent.local_addr().unwrap()));
    assert_eq!(kinds_of(plan).await.into_keys().collect::<Vec<_>>(), ["timeout_connect"]);
}

/// A TLS server for `localhost` that answers every connection's first bytes with one answer;
/// its address and its certificate.
async fn tls_server() -> (std::net::SocketAddr, String) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(socket).await else { return };
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, cert.pem())
}

#[tokio::test]
async fn a_certificate_is_judged_as_the_spec_says() {
    let (address, pem) = tls_server().await;
    let task = json!({"http": {"path": "/health"}});
    let (_simulator, mut plan) = failing("{}", task).await;
    plan.target.http = Some(format!("https://localhost:{}", address.port()));
    assert_eq!(kinds_of(plan.clone()).await.into_keys().collect::<Vec<_>>(), ["tls"]);
    let trusting = [
        Tls { ca_bundle: Some(pem), ..Tls::default() },
        Tls { insecure_skip_verify: true, ..Tls::default() },
    ];
    for tls in trusting {
        plan.target.tls = Some(tls);
        let numbers = run(plan.clone()).await.numbers;
        let task = only(&numbers);
        assert!(task.completed() > 0 && task.failures() == 0, "{:?}", task.errors);
    }
}

#[tokio::test]
async fn a_name_that_never_resolves_does_not_outlast_the_test() {
    let task = json!({"http": {"path": "/health", "timeout": "20s"}});
    let (_simulator, mut plan) = failing("{}", task).await;
    plan.target.http = Some("http://nowhere.invalid".into());
    let run = tokio::time::timeout(Duration::from_secs(15), run(plan)).await;
    assert!(run.is_ok(), "1 s of load and 5 s of grace took longer than 15 s");
}
