//! Every example is accepted as it stands and runs to a verdict, shortened.

use anyhow::{Result, ensure};
use kube::api::PostParams;
use loadtest_core::{
    Duration,
    resource::{LoadTest, Phase, Ramp, Verdict},
};
use serde_json::json;

use crate::story::{ATTEMPTS, Story};

const EXAMPLES: [&str; 5] = [
    include_str!("../../../examples/loadtest-standard.yaml"),
    include_str!("../../../examples/loadtest-sustained.yaml"),
    include_str!("../../../examples/loadtest-burst.yaml"),
    include_str!("../../../examples/loadtest-stress.yaml"),
    include_str!("../../../examples/loadtest-benchmark.yaml"),
];

#[tokio::test]
async fn all_five_examples_pass_against_a_healthy_simulator() -> Result<()> {
    Story::tell_alone("examples", async |story| {
        story.simulator(json!({})).await?;
        for text in EXAMPLES {
            let mut test: LoadTest = serde_yaml::from_str(text)?;
            let name = test.metadata.name.clone().unwrap_or_default();
            let dry = kube::api::PostParams { dry_run: true, ..Default::default() };
            story.tests.create(&dry, &test).await?;
            // A shorter test has fewer samples: enough for a verdict, not for a promise.
            let load = &mut test.spec.load;
            load.duration = load.duration.map(|_| Duration::from_secs(12));
            load.stages.truncate(4);
            for stage in &mut load.stages {
                // Fifty users at one moment are most of what happens in three seconds.
                (stage.duration, stage.ramp) = (Duration::from_secs(3), Ramp::Linear);
            }
            load.spawn_rate = load.spawn_rate.map(|rate| rate.max(10.0));
            for threshold in &mut test.spec.thresholds {
                threshold.min_samples = Some(20);
            }
            // Twelve seconds are few: one in which the machine stands still is a large share.
            let mut attempts = 0;
            let status = loop {
                story.tests.create(&PostParams::default(), &test).await?;
                let status = story.finished(&name, 120).await?;
                attempts += 1;
                ensure!(status.phase == Some(Phase::Finished), "{name}: {status:#?}");
                if status.verdict == Some(Verdict::Pass) {
                    break status;
                }
                ensure!(attempts < ATTEMPTS, "{name}: {status:#?}");
                story.gone(&name).await?;
            };
            let size = serde_json::to_string(&status)?.len();
            ensure!(size < 8192, "{name}: a status of {size} bytes");
        }
        Ok(())
    })
    .await
}
