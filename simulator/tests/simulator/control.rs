//! The control port.

use cell0_simulator::{RunTruth, Settings};
use serde_json::{Value, json};

use crate::client::{Client, RUN_UID, start_simulator, wait_until_idle};

#[tokio::test]
async fn probes_and_index_return_200() {
    let simulator = start_simulator("").await;
    let mut control = Client::connect(simulator.control_addr()).await;
    for path in ["/healthz", "/readyz", "/"] {
        assert_eq!(control.request("GET", path, "").await.unwrap().0, 200, "{path}");
    }
}

#[tokio::test]
async fn truth_over_http_equals_the_truth_in_process() {
    let simulator = start_simulator("").await;
    let mut client = Client::connect(simulator.http_addr()).await;
    for _ in 0..3 {
        client.request_chat(json!({})).await.unwrap();
    }
    client.request("GET", "/nothing", "").await.unwrap();
    let truth = wait_until_idle(&simulator).await;
    let mut control = Client::connect(simulator.control_addr()).await;
    let (_, text) = control.request("GET", "/truth/run-1", "").await.unwrap();
    assert_eq!(serde_json::from_str::<RunTruth>(&text).unwrap(), truth);

    let (_, runs) = control.request_json("GET", "/truth", "").await;
    assert_eq!(
        (&runs["runs"][0]["run"], &runs["runs"][0]["totals"]["received"]),
        (&json!(RUN_UID), &json!(4))
    );
    // Control requests belong to no run, so the run without a UID is empty.
    let (_, unnamed) = control.request_json("GET", "/truth/", "").await;
    assert_eq!(unnamed["totals"]["counts"]["received"], 0);

    let (_, csv) = control.request("GET", "/truth/run-1/records?endpoint=chat", "").await.unwrap();
    let lines: Vec<_> = csv.lines().collect();
    assert!(lines[0].starts_with("endpoint,arrival,firstByte,firstContent,end,status,outcome"));
    assert_eq!(lines.len(), 1 + 3);
    assert!(
        lines[1..]
            .iter()
            .all(|line| line.starts_with("chat,") && line.ends_with(",200,completed,0,0"))
    );
    assert_eq!(control.request("GET", "/truth/none/records", "").await.unwrap().0, 404);
    assert_eq!(
        control.request("GET", "/truth/run-1/records?endpoint=no", "").await.unwrap().0,
        400
    );

    assert_eq!(control.request("DELETE", "/truth", "").await.unwrap().0, 204);
    assert_eq!(control.request_json("GET", "/truth", "").await.1, json!({"runs": []}));
    // The client's connection still holds the forgotten run.
    client.request_chat(json!({})).await.unwrap();
    assert_eq!(wait_until_idle(&simulator).await.totals.counts.completed, 1);
}

#[tokio::test]
async fn settings_can_be_read_replaced_and_patched() {
    let simulator = start_simulator("").await;
    let mut control = Client::connect(simulator.control_addr()).await;
    let (_, settings) = control.request_json("GET", "/settings", "").await;
    assert_eq!(Settings::from_json(settings).unwrap(), simulator.current_settings());

    let (status, _) =
        control.request_json("PATCH", "/settings", r#"{"chat":{"latency":"7ms"}}"#).await;
    assert_eq!(status, 200);
    let patched = simulator.current_settings();
    assert_eq!(serde_json::to_value(patched.chat.latency).unwrap(), json!("7ms"));
    assert_eq!(serde_json::to_value(patched.health.latency).unwrap(), json!("0s"));

    let (status, settings) = control.request_json("PUT", "/settings", r#"{"seed":9}"#).await;
    assert_eq!((status, &settings["seed"]), (200, &json!(9)));
    assert_eq!(simulator.current_settings(), Settings { seed: 9, ..Settings::default() });
}

#[tokio::test]
async fn invalid_settings_are_refused_without_effect() {
    let simulator = start_simulator("").await;
    let before = simulator.current_settings();
    let mut control = Client::connect(simulator.control_addr()).await;
    for (body, words) in [
        ("{", ["not JSON", ""]),
        (r#"{"chat":{"latency":"soon"}}"#, ["chat.latency", "soon"]),
        (r#"{"chat":{"tokens":0}}"#, ["chat.tokens", "0"]),
        (r#"{"health":{"errors":{"rate":"150%"}}}"#, ["health.errors.rate", "150%"]),
        (r#"{"oops":1}"#, ["oops", "unknown field"]),
    ] {
        for method in ["PUT", "PATCH"] {
            let (status, response): (u16, Value) =
                control.request_json(method, "/settings", body).await;
            let message = response["error"].as_str().unwrap();
            assert_eq!(status, 400);
            assert!(words.iter().all(|word| message.contains(word)), "{body}: {message}");
        }
    }
    assert_eq!(simulator.current_settings(), before);
}
