use loadtest_core::result::{Point, Series};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

#[test]
fn addresses_are_for_this_machine_unless_they_say_otherwise() {
    for (text, expected) in [
        ("", "127.0.0.1:8089"),
        ("9000", "127.0.0.1:9000"),
        (":9000", "127.0.0.1:9000"),
        ("localhost:9000", "127.0.0.1:9000"),
        ("0.0.0.0", "0.0.0.0:8089"),
        ("0.0.0.0:9000", "0.0.0.0:9000"),
        ("[::1]:9000", "[::1]:9000"),
    ] {
        assert_eq!(parse_address(text).unwrap().to_string(), expected, "{text}");
    }
    for text in ["my-host:80", "70000", "1.2.3"] {
        assert!(parse_address(text).unwrap_err().contains("0.0.0.0:8089"), "{text}");
    }
}

#[test]
fn names_of_this_machine_are_known() {
    for host in
        ["localhost", "LOCALHOST:8089", "127.0.0.1:8089", "127.0.0.2", "[::1]:8089", "[::1]"]
    {
        assert!(is_name_of_this_machine(host, None), "{host}");
        assert!(is_name_of_this_machine(host, Some("laptop")), "{host}");
    }
    for host in ["evil.example", "evil.example:8089", "localhost.evil.example", "10.0.0.1:8089", ""]
    {
        assert!(!is_name_of_this_machine(host, None), "{host}");
    }
}

#[test]
fn other_machines_open_the_page_by_address_or_host_name() {
    for host in ["10.0.0.1:8089", "[fd00::1]:8089", "laptop", "Laptop:8089", "laptop.lan:8089"] {
        assert!(is_name_of_this_machine(host, Some("laptop")), "{host}");
    }
    for host in ["evil.example", "evil.example:8089", "laptop-2", ""] {
        assert!(!is_name_of_this_machine(host, Some("laptop")), "{host}");
    }
}

fn result() -> loadtest_report::RunResult {
    let schema = serde_json::json!({
        "version": 3, "generator": "test", "name": "burst", "uid": "u", "elapsedSeconds": 2.0,
        "userSeconds": 2.0, "usersPeak": 1, "coverage": 1.0, "scheduleLag": null,
        "eventLoopLag": null, "tasks": [], "thresholds": [], "events": [], "runners": [],
        "status": {}, "series": {"stepSeconds": 1.0, "points": []},
        "spec": {
            "target": {"http": "http://localhost"}, "load": {"users": 1, "duration": "1s"},
            "scenario": {"tasks": [{"name": "get", "http": {"path": "/"}}]},
        },
        "total": serde_json::to_value(loadtest_core::result::TaskResult::default()).unwrap(),
    });
    serde_json::from_value(schema).unwrap()
}

fn series(points: u32) -> Series {
    let point = |n: u32| Point { start: n.into(), end: f64::from(n) + 1.0, ..Point::default() };
    Series { step_seconds: 1.0, points: (0..points).map(point).collect() }
}

/// Sends a request and returns the response until `end` comes, or until it ends.
async fn ask(address: SocketAddr, request: &str, end: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(end) {
        let count = stream.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    text
}

fn get_request(path: &str, host: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn viewers_get_all_points_once_and_the_last_state() {
    let feed = LiveFeed::new();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let page = LivePage::serve(any, "burst", &feed, None).await.unwrap();
    let address = page.address;
    let viewer = tokio::spawn(async move {
        ask(address, &get_request("/events", "localhost"), "\"isOver\":true").await
    });
    // The viewer joins before the first state, or after it: both get everything.
    for points in 1..=3 {
        feed.publish(result(), &series(points), false);
        tokio::task::yield_now().await;
    }
    feed.publish(result(), &series(3), true);
    let late = ask(address, &get_request("/events", "localhost"), "\"isOver\":true").await;
    page.end().await;
    for text in [viewer.await.unwrap(), late] {
        assert!(text.contains("content-type: text/event-stream"), "{text}");
        let last = text.lines().rfind(|line| line.starts_with("data: ")).unwrap();
        let update: serde_json::Value = serde_json::from_str(&last[6..]).unwrap();
        let points = update["series"]["points"].as_array().unwrap().len();
        let first = usize::try_from(update["first"].as_u64().unwrap()).unwrap();
        assert_eq!((first + points, &update["isOver"]), (3, &true.into()));
    }
}

/// The token of the button on the page.
async fn read_token(address: SocketAddr) -> String {
    let html = ask(address, &get_request("/", "127.0.0.1"), "</html>").await;
    let (_, rest) = html.split_once("data-token=\"").unwrap();
    rest.split('"').next().unwrap().to_owned()
}

fn stop_request(host: &str, token: &str) -> String {
    format!(
        "POST /stop HTTP/1.1\r\nhost: {host}\r\nx-stop-token: {token}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
}

#[tokio::test]
async fn a_stop_needs_the_token_and_a_name_of_this_machine() {
    let feed = LiveFeed::new();
    let stop = StopOrder::new();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let page = LivePage::serve(any, "burst", &feed, Some(give_order(&stop))).await.unwrap();
    let token = read_token(page.address).await;
    for (host, token) in [("localhost", ""), ("localhost", "0"), ("evil.example", &token)] {
        let text = ask(page.address, &stop_request(host, token), "\0").await;
        assert!(text.starts_with("HTTP/1.1 403") && !stop.is_cancelled(), "{text}");
    }
    let text = ask(page.address, &get_request("/", "evil.example"), "\0").await;
    assert!(text.starts_with("HTTP/1.1 403") && !text.contains("data-token"), "{text}");
    let text = ask(page.address, &stop_request("localhost", &token), "\0").await;
    assert!(text.starts_with("HTTP/1.1 204") && stop.is_cancelled(), "{text}");
    page.end().await;
}

#[tokio::test]
async fn a_viewer_reads_why_a_test_cannot_be_stopped() {
    let feed = LiveFeed::new();
    let refuse: StopAction = Arc::new(|| Box::pin(async { Err("forbidden".to_owned()) }));
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let page = LivePage::serve(any, "burst", &feed, Some(refuse)).await.unwrap();
    let token = read_token(page.address).await;
    let text = ask(page.address, &stop_request("localhost", &token), "\0").await;
    assert!(text.starts_with("HTTP/1.1 502") && text.ends_with("forbidden"), "{text}");
    page.end().await;
}
