//! What a test under load costs the API server, by its audit log.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use loadtest_e2e::{fault::Fault, operator_pods::wait_for_leader};
use serde::Deserialize;
use serde_json::json;

use crate::checks::{check_whole_run, has_requests, watched_spec};

const OPERATOR: &str = "system:serviceaccount:loadtest-system:loadtest-operator";
/// Seconds between two writes about a test under load.
const INTERVAL: usize = 5;

/// A line of the audit log.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuditEvent {
    verb: String,
    user: User,
    object_ref: Option<ObjectRef>,
    request_received_timestamp: Timestamp,
}

#[derive(Debug, Deserialize)]
struct User {
    username: String,
}

#[derive(Debug, Deserialize)]
struct ObjectRef {
    resource: String,
    namespace: Option<String>,
}

/// Returns what the operator asked of the API server from one time to another, about the objects of a namespace and
/// those of all namespaces: verbs and resources. Watches, which last, are left out.
fn read_requests(namespace: &str, from: Timestamp, until: Timestamp) -> Result<Vec<String>> {
    let kubeconfig = std::env::var_os("KUBECONFIG").context("no KUBECONFIG")?;
    let folder = Path::new(&kubeconfig).parent().and_then(Path::parent).context("no testbed")?;
    let path = folder.join("logs/audit.log");
    let log = fs::read_to_string(&path)
        .with_context(|| format!("{} can't be read: this test needs a testbed", path.display()))?;
    let mut requests = Vec::new();
    for line in log.lines().filter(|line| line.contains(OPERATOR)) {
        let event: AuditEvent = serde_json::from_str(line)?;
        let at = event.request_received_timestamp;
        let Some(object) = event.object_ref else { continue };
        let is_meant = object.namespace.as_deref().is_none_or(|found| found == namespace);
        if event.user.username == OPERATOR
            && event.verb != "watch"
            && is_meant
            && (from..until).contains(&at)
        {
            requests.push(format!("{} {}", event.verb, object.resource));
        }
    }
    Ok(requests)
}

#[tokio::test]
async fn a_test_under_load_costs_one_write_in_five_seconds() -> Result<()> {
    let fault = Fault {
        fault: "none: a test of two runners is 35 s under load",
        expected: "the operator writes once in 5 s at most, and reads nothing; the run is whole",
        seconds: 90,
    };
    fault
        .check("cost", async |namespace, row| {
            let target = namespace.deploy_simulator(json!({"health": {"latency": "20ms"}})).await?;
            let mut spec = watched_spec(10, "50s");
            spec["runners"] = json!({"usersPerRunner": 5});
            row.begin();
            let test = namespace.create_test("cost", spec).await?;
            namespace.wait_for_status("cost", 60, has_requests).await?;
            let leader = wait_for_leader(namespace).await?;
            // The start is over then.
            let from = Timestamp::now() + SignedDuration::from_secs(3);
            tokio::time::sleep(Duration::from_secs(38)).await;
            let until = Timestamp::now();
            check_whole_run(namespace, &target, &test, 60).await?;
            let requests = read_requests(&namespace.name, from, until)?;
            let is_write = |request: &&String| {
                ["patch ", "update ", "create ", "delete "]
                    .iter()
                    .any(|verb| request.starts_with(verb))
            };
            let writes = requests.iter().filter(is_write).count();
            ensure!(
                wait_for_leader(namespace).await?.metadata.uid == leader.metadata.uid,
                "another replica leads"
            );
            ensure!(writes == requests.len(), "the operator reads: {requests:?}");
            ensure!((5..=35 / INTERVAL + 1).contains(&writes), "{writes} writes: {requests:?}");
            row.settle(format!("{writes} writes and no reads in 35 s"));
            Ok(())
        })
        .await
}
