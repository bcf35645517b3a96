//! What a test under load costs the API server, by its audit log.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use loadtest_e2e::{fault::Fault, operator_pods::wait_for_leader};
use serde::Deserialize;
use serde_json::json;

use crate::checks::{check_whole_run, has_requests, watched_spec};

const OPERATOR: &str = "system:serviceaccount:loadtest-system:loadtest-operator";
/// Minimum time between two writes about a test under load. The API server takes them with some delay.
const MIN_INTERVAL: SignedDuration = SignedDuration::from_millis(4500);

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

/// A request: its time, and its verb and resource.
type Request = (Timestamp, String);

/// Returns what the operator asked of the API server from one time to another, about the objects of a namespace and
/// those of all namespaces. Watches, which last, are left out.
fn read_requests(namespace: &str, from: Timestamp, until: Timestamp) -> Result<Vec<Request>> {
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
            requests.push((at, format!("{} {}", event.verb, object.resource)));
        }
    }
    requests.sort();
    Ok(requests)
}

#[tokio::test]
async fn a_test_under_load_costs_one_write_in_five_seconds() -> Result<()> {
    let fault = Fault {
        fault: "no fault: 35 s of load with two runners",
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
            let leads = wait_for_leader(namespace).await?;
            ensure!(leads.metadata.uid == leader.metadata.uid, "another replica leads");
            let is_write = |(_, request): &&Request| {
                let verbs = ["patch ", "update ", "create ", "delete "];
                verbs.iter().any(|verb| request.starts_with(verb))
            };
            let writes = requests.iter().filter(is_write).count();
            ensure!(writes == requests.len(), "the operator reads: {requests:?}");
            ensure!(writes >= 4, "{requests:?}");
            let is_spaced = requests.windows(2).all(|pair| match pair {
                [(first, _), (second, _)] => second.duration_since(*first) >= MIN_INTERVAL,
                _ => true,
            });
            ensure!(is_spaced, "two writes within {MIN_INTERVAL:#}: {requests:?}");
            row.settle(format!("{writes} writes and no reads in 35 s"));
            Ok(())
        })
        .await
}
