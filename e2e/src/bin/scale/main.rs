//! Measures the operator with many tests and many runners. Their pods and numbers are pretended.
//!
//! `bench/scale/run` starts what this program needs: a testbed with the operator, and kwok.

mod operator;
mod runner;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use loadtest_core::resource::{LoadTest, LoadTestStatus};
use loadtest_e2e::test_namespace::wait_for;
use serde_json::json;

use crate::{
    operator::{Usage, find_leader, watch},
    runner::{Runners, TASKS},
};

const NAMESPACE: &str = "scale";
/// Requests to the API server at the same time.
const CONCURRENCY: usize = 16;
/// Time between two lists of all tests.
const LIST_INTERVAL: Duration = Duration::from_secs(2);
/// Runners of each of the running tests.
const RUNNERS: u32 = 20;

#[tokio::main]
async fn main() -> Result<()> {
    let scale = Scale::prepare().await?;
    let only = std::env::args().nth(1);
    let wants = |part: &str| only.as_deref().is_none_or(|only| only == part);
    if wants("curve") {
        scale.measure_curve().await?;
    }
    if wants("burst") {
        scale.measure_burst().await?;
    }
    if wants("large") {
        scale.measure_large(0).await?;
        scale.measure_large(50).await?;
    }
    scale.end().await
}

struct Scale {
    client: Client,
    tests: Api<LoadTest>,
    runners: Runners,
}

/// A row of figures.
struct Row<'a> {
    what: &'a str,
    usage: Usage,
    /// Goals: MiB, and a share of a core.
    usage_goals: Option<(u32, f64)>,
    /// Another figure if it is known, its goal and their unit.
    figure: Option<(&'static str, Option<f64>, f64, &'static str)>,
    note: &'a str,
    running: Option<usize>,
}

impl<'a> Row<'a> {
    fn new(what: &'a str, usage: Usage) -> Self {
        Self { what, usage, usage_goals: None, figure: None, note: "", running: None }
    }

    /// Prints the row as a line of JSON.
    fn print(&self) {
        let Self { what, usage, usage_goals, figure, note, running } = self;
        let row = json!({
            "what": what,
            "memory_mib": usage.memory,
            "cores": usage.cores,
            "memory_goal": usage_goals.map(|(memory, _)| memory),
            "cores_goal": usage_goals.map(|(_, cores)| cores),
            "figure": figure.map(|(what, value, goal, unit)| {
                json!({"what": what, "value": value, "goal": goal, "unit": unit})
            }),
            "note": note,
            "running_tests": running,
        });
        println!("{row}");
    }
}

/// Builds a test with its runners on the pretended node.
fn test(name: &str, runners: u32, duration: &str, suspend: bool) -> Result<LoadTest> {
    let tasks = TASKS.map(|task| {
        json!({"name": task, "chat": {"models": ["a"], "messages": ["Hello"], "stream": true}})
    });
    let threshold = |task: &str| json!({"task": task, "metric": "timeToFirstToken", "statistic": "p95", "target": "< 2s", "window": "30s"});
    let test = json!({
        "apiVersion": "loadtest.cell0.io/v1alpha1", "kind": "LoadTest", "metadata": {"name": name},
        "spec": {
            "suspend": suspend,
            "target": {"http": "http://192.0.2.1"},
            "load": {"users": runners * 10, "duration": duration},
            "scenario": {"tasks": tasks},
            "thresholds": TASKS.map(threshold),
            "runners": {
                "count": runners,
                "nodeSelector": {"scale": "pretended"},
                "tolerations": [{"key": "scale", "operator": "Exists"}],
            },
        },
    });
    Ok(serde_json::from_value(test)?)
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

impl Scale {
    async fn prepare() -> Result<Self> {
        let client = Client::try_default().await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = json!({"metadata": {"name": NAMESPACE}});
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
        let runners = Runners::serve(client.clone()).await?;
        Ok(Self { tests: Api::namespaced(client.clone(), NAMESPACE), client, runners })
    }

    async fn end(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
        Ok(())
    }

    async fn create(&self, tests: Vec<LoadTest>) -> Result<()> {
        let created = stream::iter(tests).map(|test| async move {
            let parameters = PostParams::default();
            match self.tests.create(&parameters, &test).await {
                // The API server closes connections that were not used for 90 s, which a measurement may take.
                Err(kube::Error::Service(_) | kube::Error::HyperError(_)) => {
                    let again = self.tests.create(&parameters, &test).await;
                    again
                        .map(drop)
                        .or_else(|error| if is_conflict(&error) { Ok(()) } else { Err(error) })
                }
                created => created.map(drop),
            }
        });
        created.buffer_unordered(CONCURRENCY).try_collect::<Vec<_>>().await?;
        Ok(())
    }

    /// Waits until so many tests have a status as wanted. Lists of a thousand tests are work for the API server, which
    /// shares its cores with the operator, so it is asked rarely.
    async fn wait(
        &self,
        seconds: u64,
        count: usize,
        goal: &str,
        is_wanted: impl Fn(&LoadTestStatus) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let listed = self.tests.list(&ListParams::default()).await.map(|tests| {
                let found = tests.items.iter().filter_map(|test| test.status.as_ref());
                found.filter(|status| is_wanted(status)).count()
            });
            match listed {
                Ok(found) if found >= count => return Ok(()),
                // A busy API server may refuse a list.
                _ if Instant::now() < deadline => tokio::time::sleep(LIST_INTERVAL).await,
                Ok(found) => anyhow::bail!("{goal}: {found} of {count} within {seconds} s"),
                Err(error) => return Err(error).context(format!("{goal}: not within {seconds} s")),
            }
        }
    }

    /// Deletes all tests with this prefix, and waits until they are gone.
    async fn delete(&self, prefix: &str) -> Result<()> {
        let tests = self.tests.list(&ListParams::default()).await?.items;
        let names = tests.iter().map(ResourceExt::name_any).filter(|name| name.starts_with(prefix));
        let deleted = stream::iter(names)
            .map(|name| async move { self.tests.delete(&name, &DeleteParams::background()).await });
        deleted.buffer_unordered(CONCURRENCY).try_collect::<Vec<_>>().await?;
        wait_for(180, "deleted tests", async || {
            let left = self.tests.list(&ListParams::default()).await?.items;
            Ok((!left.iter().any(|test| test.name_any().starts_with(prefix))).then_some(()))
        })
        .await?;
        self.runners.forget_all();
        Ok(())
    }

    /// Idle tests, and a growing number of running ones.
    async fn measure_curve(&self) -> Result<()> {
        let leader = find_leader(&self.client).await?;
        Row::new("nothing", watch(leader, Duration::from_secs(20)).await?).print();
        let idle = (0..1000).map(|n| test(&format!("idle-{n}"), RUNNERS, "1m", true));
        self.create(idle.collect::<Result<_>>()?).await?;
        self.wait(120, 1000, "idle tests", |status| status.phase.is_some()).await?;
        tokio::time::sleep(Duration::from_secs(20)).await;
        let usage = watch(leader, Duration::from_secs(30)).await?;
        Row { running: Some(0), ..Row::new("1,000 idle tests", usage) }.print();
        let mut running = 0;
        for goal in [10, 25, 50] {
            let new = (running..goal).map(|n| test(&format!("run-{n}"), RUNNERS, "30m", false));
            self.create(new.collect::<Result<_>>()?).await?;
            running = goal;
            let has_numbers = |status: &LoadTestStatus| {
                status.summary.as_ref().is_some_and(|summary| summary.requests > 0)
            };
            self.wait(240, goal, "running tests", has_numbers).await?;
            tokio::time::sleep(Duration::from_secs(20)).await;
            let usage = watch(leader, Duration::from_mins(1)).await?;
            let note = format!("{:.2} % for each running test", usage.cores * 100.0 / goal as f64);
            let usage_goals = (goal == 50).then_some((150, 0.25));
            let what = format!("1,000 idle and {goal} running tests of {RUNNERS} runners");
            let row = Row::new(&what, usage);
            Row { usage_goals, note: &note, running: Some(goal), ..row }.print();
        }
        ensure!(find_leader(&self.client).await? == leader, "another replica leads");
        self.delete("run-").await?;
        self.delete("idle-").await
    }

    /// Many tests at once.
    async fn measure_burst(&self) -> Result<()> {
        let leader = find_leader(&self.client).await?;
        let began = Instant::now();
        let new = (0..200).map(|n| test(&format!("burst-{n}"), 1, "5s", false));
        self.create(new.collect::<Result<_>>()?).await?;
        self.wait(120, 200, "accepted tests", |status| status.plan.is_some()).await?;
        let accepted = ("all accepted after", Some(began.elapsed().as_secs_f64()), 30.0, "s");
        let usage = watch(leader, Duration::from_secs(20)).await?;
        Row { figure: Some(accepted), ..Row::new("200 tests created at once", usage) }.print();
        self.wait(300, 200, "finished tests", |status| {
            status.known_phase().is_some_and(loadtest_core::resource::Phase::is_final)
        })
        .await?;
        self.delete("burst-").await
    }

    /// One test of 1,000 runners, some of which die.
    async fn measure_large(&self, dead: usize) -> Result<()> {
        let leader = find_leader(&self.client).await?;
        let name = format!("large-{dead}");
        self.create(vec![test(&name, 1000, "3m", false)?]).await?;
        let has_numbers = |status: &LoadTestStatus| {
            status.summary.as_ref().is_some_and(|summary| summary.requests > 0)
        };
        self.wait(300, 1, "the large test", has_numbers).await?;
        let created = self.tests.get(&name).await?;
        let run_uid = created.uid().context("no UID")?;
        self.runners.kill(&run_uid, dead);
        tokio::time::sleep(Duration::from_secs(20)).await;
        let usage = watch(leader, Duration::from_mins(1)).await?;
        if dead > 0 {
            let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
            self.tests.patch(&name, &PatchParams::default(), &cancel).await?;
        }
        self.wait(400, 1, "the end of the large test", |status| {
            status.known_phase().is_some_and(loadtest_core::resource::Phase::is_final)
        })
        .await?;
        let ended = self.tests.get(&name).await?;
        let size = serde_json::to_vec(&ended.status)?.len();
        let status = ended.status.context("no status")?;
        let measured = status.measurement.context("no measurement")?;
        let skew = self.runners.start_skew(&run_uid).map(|skew| skew.as_secs_f64() * 1e3);
        let skew = ("start skew", skew, 50.0, "ms");
        // A runner that dies before its first answer has no start time.
        let estimate = measured.start_skew.as_deref().unwrap_or("unknown");
        let note = format!(
            "estimated by the operator: {estimate}; {:.2} s of a core in a round of 2 s; status {:.1} KB; {} requests; {} lost",
            usage.cores * 2.0,
            size as f64 / 1e3,
            status.summary.map_or(0, |summary| summary.requests),
            measured.runners_lost,
        );
        let what =
            if dead == 0 { String::new() } else { format!(", of which {dead} never answer") };
        // A round of 2 s may take 1 s of a core.
        let what = format!("one test of 1,000 runners{what}");
        let row = Row::new(&what, usage);
        let usage_goals = Some((256, 0.5));
        Row { usage_goals, figure: Some(skew), note: &note, ..row }.print();
        self.delete("large-").await
    }
}
