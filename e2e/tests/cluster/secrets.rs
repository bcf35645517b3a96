//! The value of a Secret reaches the target, and nobody else.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Node, Pod},
    events::v1::Event,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, LogParams},
};
use loadtest_core::{
    control,
    resource::{LoadTest, Verdict},
    result::LoadTestResult,
};
use loadtest_e2e::{
    operator_pods::{list_ready, pods},
    test_namespace::{TestNamespace, health_spec, pod_ip},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
};

use crate::command_line::build_command;

/// The planted value. No pattern of a credential matches it.
const VALUE: &str = "violet-giraffe";

/// Starts an HTTP server on the node, which pods reach. It refuses every third request and repeats its
/// credential, as careless servers do. Returns its URL and the number of requests with the credential.
async fn start_careless_server(namespace: &TestNamespace) -> Result<(String, Arc<AtomicU32>)> {
    let nodes: Api<Node> = Api::all(namespace.client.clone());
    let nodes = nodes.list(&ListParams::default()).await?.items;
    let mut addresses = nodes.iter().filter_map(|node| node.status.as_ref()?.addresses.as_ref());
    let address = addresses.find_map(|all| all.iter().find(|a| a.type_ == "InternalIP"));
    let node = &address.context("no node with an InternalIP")?.address;
    let listener = TcpListener::bind("0.0.0.0:0").await?;
    let url = format!("http://{node}:{}", listener.local_addr()?.port());
    let count = Arc::new(AtomicU32::new(0));
    let server_count = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let count = Arc::clone(&server_count);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = socket.read(&mut buffer).await {
                    let request = String::from_utf8_lossy(&buffer[..n]);
                    let has_value = request.contains(&format!("authorization: Bearer {VALUE}\r\n"));
                    let number = count.fetch_add(u32::from(has_value), Ordering::Relaxed);
                    let response = if number.is_multiple_of(3) {
                        let body =
                            format!(r#"{{"error": {{"message": "{VALUE} is nobody's key"}}}}"#);
                        let head = "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json";
                        format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                    } else {
                        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()
                    };
                    if socket.write_all(response.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok((url, count))
}

/// Everything that a run leaves behind, as texts with names.
async fn collect_traces(
    namespace: &TestNamespace,
    test: &LoadTest,
) -> Result<Vec<(String, String)>> {
    let mut traces = Vec::new();
    let mut add = |name: &str, text: String| traces.push((name.to_owned(), text));
    let everything = ListParams::default();
    let (client, name) = (&namespace.client, &namespace.name);
    add("LoadTests", serde_json::to_string(&namespace.load_tests.list(&everything).await?)?);
    let results: Api<LoadTestResult> = Api::namespaced(client.clone(), name);
    add("LoadTestResults", serde_json::to_string(&results.list(&everything).await?)?);
    let result = namespace.read_result(test).await?.context("no result")?;
    add("the decoded result", serde_json::to_string(&result)?);
    let jobs: Api<Job> = Api::namespaced(client.clone(), name);
    add("Jobs", serde_json::to_string(&jobs.list(&everything).await?)?);
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), name);
    add("ConfigMaps", serde_json::to_string(&config_maps.list(&everything).await?)?);
    let events: Api<Event> = Api::namespaced(client.clone(), name);
    add("Events", serde_json::to_string(&events.list(&everything).await?)?);
    add("pods", serde_json::to_string(&namespace.pods.list(&everything).await?)?);
    for pod in namespace.list_runners(&test.name_any()).await? {
        add("log of a runner", read_log(&namespace.pods, &pod).await?);
        let address = pod_ip(&pod).context("no address")?;
        for path in [control::path::METRICS, control::path::ERRORS, control::path::HISTORY] {
            let url = format!("http://{address}:{}{path}", control::PORT);
            let bytes = namespace.http.get(url).send().await?.error_for_status()?.bytes().await?;
            add(path, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    for pod in list_ready(namespace).await? {
        add("log of the operator", read_log(&pods(namespace), &pod).await?);
        let url = format!("http://{}:8080/metrics", pod_ip(&pod).context("no address")?);
        add("metrics of the operator", namespace.http.get(url).send().await?.text().await?);
    }
    Ok(traces)
}

async fn read_log(pods: &Api<Pod>, pod: &Pod) -> Result<String> {
    Ok(pods.logs(&pod.name_any(), &LogParams::default()).await?)
}

/// Makes every kind of report.
async fn collect_reports(namespace: &TestNamespace, test: &str) -> Result<Vec<(String, String)>> {
    let command = build_command().await?;
    let folder = tempfile::tempdir()?;
    let path = |file: &str| folder.path().join(file).display().to_string();
    let mut program = Command::new(&command);
    program.args(["report", test, "-n", &namespace.name, "-o", "wide"]);
    for option in ["html", "csv", "junit", "markdown", "json", "hdr", "summary-export"] {
        program.args([format!("--{option}"), path(option)]);
    }
    let output = program.output().await?;
    let mut reports = vec![
        ("table".to_owned(), String::from_utf8_lossy(&output.stdout).into_owned()),
        ("progress".to_owned(), String::from_utf8_lossy(&output.stderr).into_owned()),
    ];
    for entry in std::fs::read_dir(folder.path())? {
        let entry = entry?;
        let content = std::fs::read(entry.path())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        reports.push((name, String::from_utf8_lossy(&content).into_owned()));
    }
    ensure!(reports.len() > 8, "reports are missing: {:?}", reports.first());
    Ok(reports)
}

#[tokio::test]
async fn secret_value_reaches_only_the_target() -> Result<()> {
    TestNamespace::run("secret", async |namespace| {
        let (url, requests_with_value) = start_careless_server(&namespace).await?;
        let secret = format!(
            "{{apiVersion: v1, kind: Secret, metadata: {{name: api}}, stringData: {{token: Bearer {VALUE}}}}}"
        );
        namespace.apply(&secret).await?;
        let thresholds = json!([{"metric": "errorRate", "target": "< 1%"}]);
        let mut spec = health_spec(2, "8s", &thresholds);
        spec["target"]["http"] = url.into();
        spec["target"]["headersFrom"] = json!([
            {"header": "authorization", "secretKeyRef": {"name": "api", "key": "token"}}
        ]);
        let test = namespace.create_test("secret", spec).await?;
        let status = namespace.wait_until_finished("secret", 60).await?;
        ensure!(status.known_verdict() == Some(Verdict::Fail), "{status:#?}");
        let requests = status.summary.context("no summary")?.requests;
        ensure!(requests > 0);
        ensure!(requests == u64::from(requests_with_value.load(Ordering::Relaxed)));
        let error = status.errors.first().context("no error")?;
        let example = error.example.as_deref().unwrap_or_default();
        ensure!(example.contains("*** is nobody's key"), "{example}");
        let mut traces = collect_traces(&namespace, &test).await?;
        traces.extend(collect_reports(&namespace, "secret").await?);
        for (name, text) in traces {
            ensure!(!text.is_empty() || name == "progress", "nothing in {name}");
            ensure!(!text.contains(VALUE), "the value of the Secret is in {name}");
        }
        Ok(())
    })
    .await
}
