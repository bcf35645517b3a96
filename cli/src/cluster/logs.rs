//! `loadtest logs`: the logs of all runners of a test, merged.

use std::io::Write;

use anyhow::Context;
use futures_util::{AsyncBufReadExt, StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, LogParams},
};
use loadtest_core::{
    control::{CONTAINER, INDEX_LABEL, LAST_METRICS},
    resource::UID_LABEL,
};

use super::{Cluster, explain_error};
use crate::{arguments::LogsArguments, exit::Exit, output::eprint_line};

/// Prints the logs of the runners, each line after the index of its runner. The lines that carry a
/// runner's last metrics are left out: they are for the operator.
pub(crate) fn print_logs(arguments: &LogsArguments, out: &mut impl Write) -> anyhow::Result<Exit> {
    let LogsArguments { name, cluster, follow, tail } = arguments;
    super::block_on(async {
        let cluster = Cluster::connect(cluster).await?;
        let test = cluster.tests.get(name).await.map_err(explain_error).with_context(|| {
            format!("LoadTest {name} in namespace {} can't be read", cluster.namespace)
        })?;
        let uid = test.uid().unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let selector = ListParams::default().labels(&format!("{UID_LABEL}={uid}"));
        let mut found = pods.list(&selector).await.context("the pods can't be listed")?.items;
        if found.is_empty() {
            eprint_line(
                "the test has no pods: it has not started, or they were deleted after its end",
            );
            return Ok(Exit::Passed);
        }
        let index_of =
            |pod: &Pod| pod.labels().get(INDEX_LABEL).and_then(|i| i.parse::<u32>().ok());
        found.sort_by_key(|pod| (index_of(pod), pod.name_any()));
        let parameters = LogParams {
            container: Some(CONTAINER.into()),
            follow: *follow,
            tail_lines: *tail,
            ..LogParams::default()
        };
        let mut streams = Vec::new();
        for pod in &found {
            let pod_name = pod.name_any();
            let index = index_of(pod).map_or_else(|| pod_name.clone(), |index| index.to_string());
            match pods.log_stream(&pod_name, &parameters).await {
                Ok(log) => streams.push(log.lines().map(move |line| (index.clone(), line)).boxed()),
                // A container that does not run yet has no log.
                Err(error) => eprint_line(&format!("{pod_name}: no log: {error}")),
            }
        }
        let mut lines = stream::select_all(streams);
        let is_for_people = |line: &str| !line.contains(&format!("\"message\":\"{LAST_METRICS}\""));
        loop {
            let next = tokio::select! {
                next = lines.next() => next,
                _ = tokio::signal::ctrl_c() => None,
            };
            match next {
                None => break,
                Some((index, Ok(line))) if is_for_people(&line) => {
                    writeln!(out, "[{index}] {line}")?;
                }
                Some((_, Ok(_))) => {}
                Some((index, Err(error))) => {
                    eprint_line(&format!("[{index}] the log ends: {error}"));
                }
            }
        }
        out.flush()?;
        Ok(Exit::Passed)
    })
}
