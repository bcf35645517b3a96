//! The commands of `loadtest` that work on a cluster.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    authentication::v1::TokenRequest, core::v1::ServiceAccount, rbac::v1::RoleBinding,
};
use kube::{Api, api::PostParams};
use loadtest_core::resource::Phase;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use loadtest_e2e::test_namespace::{TestNamespace, health_spec, wait_for};

/// Builds the command, and returns its path: beside the folder of the test's own program.
pub(crate) async fn build_command() -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let arguments = ["build", "--quiet", "--locked", "--offline", "-p", "loadtest"];
    let status = Command::new(cargo).args(arguments).status().await?;
    ensure!(status.success(), "loadtest can't be built");
    let program = std::env::current_exe()?;
    let folder = program.ancestors().nth(2).context("the test has no folder of builds")?;
    Ok(folder.join("loadtest"))
}

#[tokio::test]
async fn apply_runs_a_test_to_its_exit_code() -> Result<()> {
    let command = build_command().await?;
    TestNamespace::run("command-line", async |namespace| {
        namespace.deploy_simulator(json!({"health": {"latency": "5ms"}})).await?;
        let thresholds = json!([{"metric": "errorRate", "target": "< 1%"}]);
        let object = json!({
            "apiVersion": "loadtest.cell0.io/v1alpha1",
            "kind": "LoadTest",
            // The option -n wins over the namespace of the file.
            "metadata": {"name": "by-command", "namespace": "of-the-file"},
            "spec": health_spec(5, "5s", &thresholds),
        });
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("test.yaml").display().to_string();
        // JSON is YAML.
        std::fs::write(&file, object.to_string())?;
        let run = async |arguments: &[&str]| -> Result<(Option<i32>, String)> {
            let mut program = Command::new(&command);
            program.args(arguments).args(["-n", &namespace.name]);
            let Output { status, stdout, stderr } = program.output().await?;
            let text = [stdout, stderr].concat();
            Ok((status.code(), String::from_utf8_lossy(&text).into_owned()))
        };

        let html = folder.path().join("report.html");
        let html_option = format!("--html={}", html.display());
        let arguments = ["apply", &file, "--wait", "--set", "keepResult=true", &html_option];
        let (code, text) = run(&arguments).await?;
        ensure!(code == Some(0), "{code:?}: {text}");
        ensure!(text.contains("loadtest/by-command created in namespace"), "{text}");
        ensure!(text.contains("VERDICT  Pass"), "{text}");
        ensure!(std::fs::read_to_string(&html)?.contains("<title>by-command · Pass"));
        let (code, text) = run(&["list"]).await?;
        ensure!(code == Some(0) && text.contains("by-command  Finished  Pass"), "{text}");
        // A LoadTest runs once.
        let (code, text) = run(&["apply", &file, "--wait"]).await?;
        ensure!(code == Some(4) && text.contains("--replace"), "{code:?}: {text}");
        let arguments = ["apply", &file, "--replace", "--set", "load.duration=10m"];
        let (code, text) = run(&arguments).await?;
        ensure!(code == Some(0) && text.contains("by-command created"), "{code:?}: {text}");
        namespace.wait_for_phase("by-command", Phase::Running).await?;
        let (code, text) = run(&["apply", &file, "--set", "load.duration=10m"]).await?;
        ensure!(code == Some(0) && text.contains("unchanged"), "{code:?}: {text}");
        let (code, text) = run(&["cancel", "by-command"]).await?;
        ensure!(code == Some(0) && text.contains("is being cancelled"), "{code:?}: {text}");
        let (code, text) = run(&["watch", "by-command"]).await?;
        ensure!(code == Some(3) && text.contains("VERDICT  Inconclusive"), "{code:?}: {text}");
        let (code, text) = run(&["cancel", "by-command"]).await?;
        ensure!(code == Some(0) && text.contains("is over already: Cancelled"), "{text}");
        // The newest result of this name is that of the cancelled test.
        let (code, text) = run(&["report", "by-command"]).await?;
        ensure!(code == Some(3) && text.contains("VERDICT  Inconclusive"), "{code:?}: {text}");
        namespace.delete_test("by-command").await?;
        // It goes with its LoadTest. That of the first test is kept.
        wait_for(30, "the kept result", async || {
            let (code, text) = run(&["report", "by-command", "-o", "json"]).await?;
            Ok((code == Some(0) && text.contains(r#""verdict":"Pass""#)).then_some(()))
        })
        .await?;
        // A test that ends before its load has a result too, in every form.
        let junit = folder.path().join("junit.xml").display().to_string();
        let (code, text) = run(&["apply", &file, "--junit", &junit]).await?;
        ensure!(code == Some(2) && text.contains("need --wait"), "{code:?}: {text}");
        let image = "runners.image=Not/An_Image:!";
        let arguments = ["apply", &file, "--wait", "-o", "json", "--junit", &junit, "--set", image];
        let (code, text) = run(&arguments).await?;
        ensure!(code == Some(4) && text.contains(r#""phase":"Error""#), "{code:?}: {text}");
        let cases = std::fs::read_to_string(&junit)?;
        ensure!(cases.contains("<error") && cases.contains("An_Image"), "{cases}");
        namespace.delete_test("by-command").await?;
        let (code, text) = run(&["report", "never-ran"]).await?;
        ensure!(code == Some(4) && text.contains("no result of LoadTest"), "{code:?}: {text}");
        // An object that the API server refuses is bad input, before it is sent.
        let (code, text) = run(&["apply", &file, "--set", "load.users=0"]).await?;
        ensure!(code == Some(2) && text.contains("spec.load.users"), "{code:?}: {text}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_page_shows_a_running_test_and_stops_it() -> Result<()> {
    let command = build_command().await?;
    TestNamespace::run("live-page", async |namespace| {
        namespace.deploy_simulator(json!({"health": {"latency": "5ms"}})).await?;
        let mut spec = health_spec(6, "5m", &json!([]));
        spec["runners"] = json!({"count": 2});
        let test = namespace.create_test("watched", spec).await?;
        namespace.wait_for_phase("watched", Phase::Running).await?;
        let (_page, url) = open_page(&command, &namespace.name, "watched", None).await?;
        let html = namespace.http.get(&url).send().await?.error_for_status()?.text().await?;
        let (_, token) = html.split_once("data-token=\"").context("no button to stop")?;
        let token = token.split('"').next().context("no token")?;

        let client =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_mins(1)).build()?;
        let mut updates = Updates {
            response: client.get(format!("{url}events")).send().await?,
            text: String::new(),
        };
        let (mut last_end, mut requests, mut trust) = (0.0, 0, String::new());
        for _ in 0..5 {
            let update = updates.next().await?;
            let points = update["series"]["points"].as_array().context("no points")?;
            let end = points.last().and_then(|point| point["end"].as_f64()).unwrap_or(last_end);
            ensure!(end >= last_end, "the page goes back from {last_end} to {end}");
            last_end = end;
            requests += points.len();
            trust = update["parts"]["trust"].as_str().context("no part")?.to_owned();
        }
        ensure!(trust.contains("schedule lag"), "{trust}");
        ensure!(requests >= 3 && last_end > 2.0, "{requests} points until {last_end} s");

        let stop = format!("{url}stop");
        let refused = namespace.http.post(&stop).header("x-stop-token", "0").send().await?;
        ensure!(refused.status() == http::StatusCode::FORBIDDEN, "{}", refused.status());
        let accepted = namespace.http.post(&stop).header("x-stop-token", token).send().await?;
        ensure!(accepted.status() == http::StatusCode::NO_CONTENT, "{}", accepted.status());
        let status = namespace.wait_until_finished("watched", 60).await?;
        ensure!(status.known_phase() == Some(Phase::Cancelled), "{status:#?}");
        let last = loop {
            let update = updates.next().await?;
            if update["isOver"] == true {
                break update;
            }
        };
        ensure!(last["parts"]["verdict"].as_str().context("no part")?.contains("Inconclusive"));
        let result = namespace.read_result(&test).await?.context("no result")?;
        ensure!(result.runners.len() == 2, "{:?}", result.runners);
        Ok(())
    })
    .await
}

/// Starts `loadtest ui` and returns it with the address of its page. `kubeconfig` is that of the viewer.
async fn open_page(
    command: &Path,
    namespace: &str,
    test: &str,
    kubeconfig: Option<&Path>,
) -> Result<(Child, String)> {
    let mut program = Command::new(command);
    program.args(["ui", test, "-n", namespace, "--address", "127.0.0.1:0"]);
    if let Some(kubeconfig) = kubeconfig {
        program.env("KUBECONFIG", kubeconfig);
    }
    let mut page = program.stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(page.stderr.take().context("no standard error")?).lines();
    let url = loop {
        let line = lines.next_line().await?.context("the command has ended")?;
        if let Some((_, rest)) = line.split_once("live page: ") {
            break rest.split_whitespace().next().context("no address")?.to_owned();
        }
    };
    // The command must not wait for a reader of its other lines.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((page, url))
}

/// Writes a kubeconfig for a user that has only the role `view` in the namespace.
async fn write_kubeconfig_of_viewer(namespace: &TestNamespace, file: &Path) -> Result<()> {
    namespace
        .apply(
            &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "viewer"}})
                .to_string(),
        )
        .await?;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "viewer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "viewer", "namespace": namespace.name}],
    });
    let bindings: Api<RoleBinding> = Api::namespaced(namespace.client.clone(), &namespace.name);
    bindings.create(&PostParams::default(), &serde_json::from_value(binding)?).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(namespace.client.clone(), &namespace.name);
    let request: TokenRequest =
        serde_json::from_value(json!({"metadata": {}, "spec": {"audiences": []}}))?;
    let answer = accounts.create_token_request("viewer", &PostParams::default(), &request).await?;
    let token = answer.status.context("no token")?.token;
    let own = std::fs::read_to_string(std::env::var("KUBECONFIG").context("no KUBECONFIG")?)?;
    let mut config: serde_json::Value = serde_saphyr::from_str(&own)?;
    config["users"][0]["user"] = json!({"token": token});
    std::fs::write(file, config.to_string())?;
    Ok(())
}

#[tokio::test]
async fn a_viewer_who_may_only_read_sees_the_stored_result() -> Result<()> {
    let command = build_command().await?;
    TestNamespace::run("viewer", async |namespace| {
        namespace.deploy_simulator(json!({"health": {"latency": "5ms"}})).await?;
        let folder = tempfile::tempdir()?;
        let kubeconfig = folder.path().join("viewer");
        write_kubeconfig_of_viewer(&namespace, &kubeconfig).await?;
        namespace.create_test("read-only", health_spec(4, "5m", &json!([]))).await?;
        namespace.wait_for_phase("read-only", Phase::Running).await?;
        let (_page, url) =
            open_page(&command, &namespace.name, "read-only", Some(&kubeconfig)).await?;
        let client =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_mins(1)).build()?;
        let mut updates = Updates {
            response: client.get(format!("{url}events")).send().await?,
            text: String::new(),
        };
        let update = updates.next().await?;
        let verdict = update["parts"]["verdict"].as_str().context("no part")?;
        ensure!(verdict.contains("Running") && verdict.contains("up to 30 s old"), "{verdict}");
        // A viewer may not stop the test either.
        let html = namespace.http.get(&url).send().await?.text().await?;
        let (_, token) = html.split_once("data-token=\"").context("no button to stop")?;
        let token = token.split('"').next().context("no token")?;
        let stop = namespace.http.post(format!("{url}stop")).header("x-stop-token", token);
        let refused = stop.send().await?;
        ensure!(refused.status() == http::StatusCode::BAD_GATEWAY, "{}", refused.status());
        let reason = refused.text().await?;
        ensure!(reason.contains("forbidden"), "{reason}");
        let test = namespace.load_tests.get("read-only").await?;
        ensure!(!test.spec.cancel, "a viewer has cancelled the test");
        Ok(())
    })
    .await
}

/// The updates of a live page.
struct Updates {
    response: reqwest::Response,
    /// What came and is not yet read.
    text: String,
}

impl Updates {
    async fn next(&mut self) -> Result<serde_json::Value> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                // The rest keeps the connection alive.
                if let Some(data) = event.strip_prefix("data: ") {
                    return Ok(serde_json::from_str(data)?);
                }
                continue;
            }
            let chunk = self.response.chunk().await?.context("the page has ended")?;
            self.text.push_str(&String::from_utf8_lossy(&chunk));
        }
    }
}
