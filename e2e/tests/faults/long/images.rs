//! The image of the runners is missing, comes late, or is that of another program.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loadtest_core::resource::LoadTestStatus;
use loadtest_e2e::{fault::Fault, leftovers::wait_until_no_runner, node::find_component};
use serde_json::json;
use tokio::process::Command;

use crate::checks::{check_no_load, check_whole_run, short, wait_for_error, watched_spec};

#[tokio::test]
async fn image_that_does_not_exist_ends_the_test() -> Result<()> {
    let fault = Fault {
        fault: "image of the runners does not exist",
        expected: "ImagePull with the name of the image, without load",
        seconds: 120,
    };
    fault
        .check("no-image", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({})).await?;
            let mut spec = watched_spec(2, "3s");
            spec["runners"] = json!({"image": "registry.invalid/none:1"});
            row.begin();
            let test = namespace.create_test("no-image", spec).await?;
            let message = wait_for_error(namespace, "no-image", 120, "ImagePull").await?;
            ensure!(message.contains("registry.invalid/none:1"), "{message}");
            row.settle(format!("ImagePull: {}", short(&message)));
            check_no_load(&target, &test).await
        })
        .await
}

#[tokio::test]
async fn image_that_comes_late_starts_nothing_later() -> Result<()> {
    let fault = Fault {
        fault: "image of the runners there after two minutes",
        expected: "ImagePull before that; no load and no pod later",
        seconds: 120,
    };
    fault
        .check("late-image", async |namespace, row| {
            const IMAGE: &str = "registry.invalid/late:1";
            let target = namespace.deploy_simulator(json!({})).await?;
            let mut spec = watched_spec(2, "3s");
            spec["runners"] = json!({"image": IMAGE});
            row.begin();
            let test = namespace.create_test("late-image", spec).await?;
            let created = tokio::time::Instant::now();
            let message = wait_for_error(namespace, "late-image", 120, "ImagePull").await?;
            row.settle(format!("ImagePull: {}", short(&message)));
            tokio::time::sleep_until(created + Duration::from_mins(2)).await;
            tag_image("loadtest-runner:0.1.0", IMAGE).await?;
            // The kubelet tries again at the latest after this time.
            tokio::time::sleep(Duration::from_secs(20)).await;
            wait_until_no_runner(namespace, "late-image").await?;
            check_no_load(&target, &test).await
        })
        .await
}

#[tokio::test]
async fn image_that_comes_soon_starts_the_test() -> Result<()> {
    let fault = Fault {
        fault: "image of the runners there after 40 s",
        expected: "the run is whole",
        seconds: 120,
    };
    fault
        .check("soon-image", async |namespace, row| {
            const IMAGE: &str = "registry.invalid/soon:1";
            let target = namespace.deploy_simulator(json!({})).await?;
            let mut spec = watched_spec(2, "6s");
            spec["runners"] = json!({"image": IMAGE});
            row.begin();
            let test = namespace.create_test("soon-image", spec).await?;
            let words = |status: &LoadTestStatus| {
                status.condition("Started").is_some_and(|started| started.message.contains(IMAGE))
            };
            namespace.wait_for_status("soon-image", 30, words).await?;
            tokio::time::sleep(Duration::from_secs(40)).await;
            tag_image("loadtest-runner:0.1.0", IMAGE).await?;
            row.settle(check_whole_run(namespace, &target, &test, 90).await?);
            Ok(())
        })
        .await
}

/// Gives an image on this node a second name.
async fn tag_image(image: &str, name: &str) -> Result<()> {
    let image = format!("docker.io/library/{image}");
    // The socket of containerd is in its mount namespace.
    let target = find_component("containerd")?.to_string();
    let mut ctr = Command::new("nsenter");
    ctr.args(["--target", &target, "--mount", "ctr", "--namespace", "k8s.io", "images", "tag"]);
    ctr.args(["--force", &image, name]);
    let output = ctr.output().await.context("nsenter can't be run")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ctr images tag: {error}");
    Ok(())
}

#[tokio::test]
async fn image_that_is_no_runner_ends_the_test() -> Result<()> {
    let fault = Fault {
        fault: "image of the runners is another program that answers HTTP requests",
        expected: "Unreachable, and no pod left",
        seconds: 90,
    };
    fault
        .check("no-runner", async |namespace, row| {
            // Its probes are those of the simulator, on the port of a runner.
            let simulator = json!({
                "name": "runner", "args": ["--control-port=9464"], "command": ["/cell0-simulator"],
            });
            let mut spec = watched_spec(2, "20s");
            spec["runners"] = json!({
                "image": "cell0-simulator:0.1.0",
                "podTemplate": {"spec": {"containers": [simulator]}},
            });
            row.begin();
            namespace.create_test("no-runner", spec).await?;
            let message = wait_for_error(namespace, "no-runner", 120, "Unreachable").await?;
            wait_until_no_runner(namespace, "no-runner").await?;
            row.settle(format!("Unreachable: {}", short(&message)));
            Ok(())
        })
        .await
}
