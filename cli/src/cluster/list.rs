//! `loadtest list`: the LoadTests of a namespace, or of all namespaces.

use std::io::Write;

use anyhow::Context;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, api::ListParams};
use loadtest_core::{Duration, resource::LoadTest};

use crate::{arguments::ListArguments, exit::Exit, output::eprint_line, render::format_table};

/// Prints one line for each LoadTest, the newest first.
pub(crate) fn list_tests(arguments: &ListArguments, out: &mut impl Write) -> anyhow::Result<Exit> {
    let ListArguments { cluster, all_namespaces } = arguments;
    super::block_on(async {
        let (client, namespace) = super::connect(cluster).await?;
        let tests: Api<LoadTest> =
            if *all_namespaces { Api::all(client) } else { Api::namespaced(client, &namespace) };
        let found = tests.list(&ListParams::default()).await;
        let found = found.map_err(super::explain_error);
        let mut found = found.context("the LoadTests can't be listed")?.items;
        if found.is_empty() {
            eprint_line("no LoadTests found");
            return Ok(Exit::Passed);
        }
        found.sort_by_key(|test| std::cmp::Reverse(creation_time(test)));
        write!(out, "{}", format_list(&found, *all_namespaces, Timestamp::now()))?;
        out.flush()?;
        Ok(Exit::Passed)
    })
}

fn creation_time(test: &LoadTest) -> Option<Timestamp> {
    test.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

fn format_list(tests: &[LoadTest], with_namespace: bool, now: Timestamp) -> String {
    let text = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let namespace = |name: String| with_namespace.then_some(name).into_iter();
    let head = ["name", "phase", "verdict", "users", "rate", "p95", "errors", "age"];
    let mut rows: Vec<Vec<String>> =
        vec![namespace("namespace".into()).chain(head.map(str::to_owned)).collect()];
    for test in tests {
        let status = test.status.clone().unwrap_or_default();
        let summary = status.summary.unwrap_or_default();
        let has_requests = summary.requests > 0;
        let age = creation_time(test).map(|created| {
            let seconds = now.as_second().saturating_sub(created.as_second());
            Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).to_string()
        });
        let columns = [
            text(test.metadata.name.clone()),
            text(status.phase.map(|phase| phase.as_str().to_owned())),
            text(status.verdict.map(|verdict| verdict.as_str().to_owned())),
            text(status.progress.map(|progress| progress.users.to_string())),
            text(has_requests.then_some(summary.throughput)),
            text(summary.p95),
            text(has_requests.then_some(summary.error_rate)),
            text(age),
        ];
        rows.push(namespace(text(test.metadata.namespace.clone())).chain(columns).collect());
    }
    let text_columns = if with_namespace { 4 } else { 3 };
    format_table(&rows, text_columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_without_status_has_dashes() {
        let test: LoadTest = serde_json::from_value(serde_json::json!({
            "apiVersion": "loadtest.cell0.io/v1alpha1",
            "kind": "LoadTest",
            "metadata": {"name": "burst", "namespace": "shop", "creationTimestamp": "2026-11-28T10:00:00Z"},
            "spec": {
                "target": {"http": "http://a"},
                "load": {"users": 1, "spawnRate": 1, "duration": "1m"},
                "scenario": {"tasks": [{"name": "a", "http": {"path": "/"}}]},
            },
        }))
        .unwrap();
        let now = "2026-11-28T10:01:30Z".parse().unwrap();
        let table = format_list(&[test], true, now);
        let words: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(words, ["shop", "burst", "-", "-", "-", "-", "-", "-", "1m30s"]);
    }
}
