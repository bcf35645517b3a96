//! The API server accepts every example unchanged, and a shortened version of it passes.

use std::num::NonZeroU32;

use anyhow::{Result, ensure};
use kube::api::PostParams;
use loadtest_core::{
    Duration,
    resource::{LoadTest, Phase, Ramp, Verdict},
    values::Rate,
};
use serde_json::json;

use loadtest_e2e::test_namespace::{MAX_ATTEMPTS, TestNamespace};

const EXAMPLES: [&str; 5] = [
    include_str!("../../../examples/loadtest-standard.yaml"),
    include_str!("../../../examples/loadtest-sustained.yaml"),
    include_str!("../../../examples/loadtest-burst.yaml"),
    include_str!("../../../examples/loadtest-stress.yaml"),
    include_str!("../../../examples/loadtest-benchmark.yaml"),
];

#[tokio::test]
async fn all_examples_pass_against_a_healthy_simulator() -> Result<()> {
    TestNamespace::run_alone("examples", async |namespace| {
        namespace.deploy_simulator(json!({})).await?;
        for text in EXAMPLES {
            let mut test: LoadTest = serde_saphyr::from_str(text)?;
            let name = test.metadata.name.clone().unwrap_or_default();
            let dry_run = PostParams { dry_run: true, ..Default::default() };
            namespace.load_tests.create(&dry_run, &test).await?;
            // A shorter test has fewer samples. The lower `minSamples` below allows a verdict
            // after 12 s.
            let load = &mut test.spec.load;
            load.duration = load.duration.map(|_| Duration::from_secs(12));
            load.stages.truncate(4);
            for stage in &mut load.stages {
                // In a stage of 3 s, a step of 50 users would dominate the latencies.
                (stage.duration, stage.ramp) = (Duration::from_secs(3), Ramp::Linear);
            }
            load.spawn_rate = load.spawn_rate.map(|rate| Rate::per_second(rate.value().max(10.0)));
            for threshold in &mut test.spec.thresholds {
                threshold.min_samples = NonZeroU32::new(20);
            }
            // A stall of one second is a large share of 12 s, so the test gets several attempts.
            let mut attempts = 0;
            let status = loop {
                namespace.load_tests.create(&PostParams::default(), &test).await?;
                let status = namespace.wait_until_finished(&name, 120).await?;
                attempts += 1;
                ensure!(status.known_phase() == Some(Phase::Finished), "{name}: {status:#?}");
                if status.known_verdict() == Some(Verdict::Pass) {
                    break status;
                }
                ensure!(attempts < MAX_ATTEMPTS, "{name}: {status:#?}");
                namespace.delete_test(&name).await?;
            };
            let size = serde_json::to_string(&status)?.len();
            ensure!(size < 8192, "{name}: a status of {size} bytes");
        }
        Ok(())
    })
    .await
}
