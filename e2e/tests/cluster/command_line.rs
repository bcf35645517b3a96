//! The commands of `loadtest` that work on a cluster.

use std::{path::PathBuf, process::Output};

use anyhow::{Context, Result, ensure};
use loadtest_core::resource::Phase;
use serde_json::json;
use tokio::process::Command;

use crate::test_namespace::{TestNamespace, health_spec, wait_for};

/// Builds the command, and returns its path: beside the folder of the test's own program.
async fn build_command() -> Result<PathBuf> {
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
        let (code, text) = run(&["report", "never-ran"]).await?;
        ensure!(code == Some(4) && text.contains("no result of LoadTest"), "{code:?}: {text}");
        // An object that the API server refuses is bad input, before it is sent.
        let (code, text) = run(&["apply", &file, "--set", "load.users=0"]).await?;
        ensure!(code == Some(2) && text.contains("spec.load.users"), "{code:?}: {text}");
        Ok(())
    })
    .await
}
