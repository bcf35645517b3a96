//! A test with as many tasks and thresholds as a spec may have.

use anyhow::{Context, Result, ensure};
use kube::{
    Api, ResourceExt,
    api::{ListParams, ObjectList},
};
use loadtest_core::{
    resource::{LoadTest, Verdict},
    result::LoadTestResult,
};
use loadtest_e2e::test_namespace::{TestNamespace, wait_for};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::command_line::build_command;

const TASKS: usize = 64;

fn task_name(index: usize) -> String {
    format!("{:-<60}-{index:02}", "chat")
}

fn large_spec() -> Value {
    let tasks: Vec<Value> = (0..TASKS)
        .map(|index| {
            json!({
                "name": task_name(index),
                "chat": {"models": ["cell0-small"], "messages": ["Hello"], "stream": true},
            })
        })
        .collect();
    let thresholds: Vec<Value> = (0..TASKS)
        .map(|index| {
            json!({
                "task": task_name(index), "metric": "timeToFirstToken", "statistic": "p99",
                "target": "< 100s", "warning": "< 200s", "critical": "> 500s",
            })
        })
        .collect();
    json!({
        "target": {"http": "http://cell0:18800"},
        "load": {"users": 200, "spawnRate": 200, "duration": "35s"},
        "scenario": {"pause": {"min": "300ms", "max": "600ms"}, "tasks": tasks},
        "thresholds": thresholds,
    })
}

async fn list_results(
    namespace: &TestNamespace,
    test: &LoadTest,
) -> Result<ObjectList<LoadTestResult>> {
    let results: Api<LoadTestResult> = Api::namespaced(namespace.client.clone(), &namespace.name);
    let labels = format!("loadtest.cell0.io/uid={}", test.uid().context("no UID")?);
    Ok(results.list(&ListParams::default().labels(&labels)).await?)
}

#[tokio::test]
async fn largest_test_has_a_small_status_and_a_whole_result() -> Result<()> {
    let command = build_command().await?;
    TestNamespace::run("large", async |namespace| {
        // The wider the latencies, the larger the histograms.
        let wide = |median: &str| json!({"lognormal": {"median": median, "sigma": 1, "max": "2s"}});
        let settings = json!({"chat": {"latency": wide("100ms"), "tokenGap": wide("5ms")}});
        namespace.deploy_simulator(settings).await?;
        let test = namespace.create_test("large", large_spec()).await?;
        let status = namespace.wait_until_finished("large", 120).await?;
        // Too few samples for p99: each row has advice.
        ensure!(status.known_verdict() == Some(Verdict::Inconclusive), "{status:#?}");
        let size = serde_json::to_vec(&status)?.len();
        ensure!(size < 64_000, "{size} bytes");
        let shortened = status.condition("StatusShortened").context("the status is whole")?;
        ensure!(shortened.status == "True", "{shortened:?}");

        // Parts of earlier revisions are deleted.
        let objects = wait_for(20, "the parts of the last revision alone", async || {
            let objects = list_results(&namespace, &test).await?.items;
            let parts = objects.first().context("no result")?.parts as usize;
            Ok(Some(objects).filter(|objects| objects.len() == parts))
        })
        .await?;
        ensure!(objects.len() > 1, "the result fits into one object");
        let result = namespace.read_result(&test).await?.context("no result")?;
        let task = &result.status.tasks[0];
        ensure!(task.latencies != status.tasks[0].latencies, "the status has every latency");

        let run = async |arguments: [&str; 2]| -> Result<String> {
            let mut program = Command::new(&command);
            let output = program.args(arguments).args(["-n", &namespace.name]).output().await?;
            ensure!(output.status.code() == Some(3), "{arguments:?}: {output:?}");
            Ok(String::from_utf8(output.stdout)?)
        };
        let report = run(["report", "large"]).await?;
        for index in 0..TASKS {
            ensure!(report.contains(&task_name(index)), "no task {index}: {report}");
        }
        // The command reads what the status lacks.
        let watched = run(["watch", "large"]).await?;
        ensure!(watched.contains(&report), "{watched}\nreport: {report}");
        Ok(())
    })
    .await
}
