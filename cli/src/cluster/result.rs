//! The `LoadTestResult` of a LoadTest on a cluster.

use std::{io::Write, time::Instant};

use anyhow::Context;
use kube::{Api, Client, api::ListParams};
use loadtest_core::{
    resource::{LoadTest, LoadTestStatus, NAME_LABEL, Phase, UID_LABEL, name_label_of},
    result::{LoadTestResult, StoredResult, result_without_load, threshold_results},
};
use loadtest_report::RunResult;

use super::{
    Cluster, MAX_OUTAGE, POLL_INTERVAL, RESPONSE_TIMEOUT, explain_error, may_succeed_later,
};
use crate::{
    arguments::{ClusterArguments, OutputArguments, OutputFormat},
    output::eprint_line,
    outputs::write_outputs,
    render,
};

/// Reads the latest result of a LoadTest, also after the LoadTest is gone. `name` is the name of the
/// LoadTest or of the result.
pub(crate) fn read_stored_result(
    name: &str,
    cluster: &ClusterArguments,
) -> anyhow::Result<RunResult> {
    super::block_on(async {
        let (client, namespace) = super::connect(cluster).await?;
        find_result(&client, &namespace, name, None).await
    })
}

/// Reads the latest result of a LoadTest; with a UID, only that of this LoadTest.
///
/// # Errors
/// When no result is there, or when it can't be read.
pub(super) async fn find_result(
    client: &Client,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
) -> anyhow::Result<RunResult> {
    let stored = find_stored(client, namespace, name, uid).await?.with_context(|| {
        format!(
            "no result of LoadTest {name} in namespace {namespace}: the operator stores the result when the load starts, and Kubernetes deletes it with the LoadTest unless spec.keepResult is true"
        )
    })?;
    Ok(stored.result)
}

/// Reads the latest result of a LoadTest, with what the operator needs to go on. Returns `None` if there is none.
///
/// # Errors
/// When the result can't be read.
pub(super) async fn find_stored(
    client: &Client,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
) -> anyhow::Result<Option<StoredResult>> {
    let results: Api<LoadTestResult> = Api::namespaced(client.clone(), namespace);
    let label = format!("{NAME_LABEL}={}", name_label_of(name));
    let of_test = ListParams::default().labels(&label);
    let failed = || format!("the results in namespace {namespace} can't be read");
    let listed = results.list(&of_test).await.map_err(explain_error);
    let mut objects = listed.with_context(failed)?.items;
    // An earlier LoadTest of this name may have left its result.
    objects
        .retain(|object| object.test.name == name && uid.is_none_or(|uid| object.test.uid == uid));
    if objects.is_empty() && uid.is_none() {
        // The name of a result ends with the start of the UID of its LoadTest.
        let named = results.get_opt(name).await.with_context(failed)?;
        if let Some(named) = named {
            let uid = ListParams::default().labels(&format!("{UID_LABEL}={}", named.test.uid));
            objects = results.list(&uid).await.with_context(failed)?.items;
        }
    }
    let created =
        |object: &LoadTestResult| object.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let newest = objects.iter().filter(|object| object.part == 0).max_by_key(|o| created(o));
    let Some(first) = newest else { return Ok(None) };
    let stored = StoredResult::from_objects(first, &objects);
    stored.map(Some).with_context(|| format!("the result of LoadTest {name} can't be read"))
}

/// Returns the result of a test that has ended with this status. The stored result may be missing, because the test ended
/// before its load, or older than the status.
///
/// # Errors
/// When the API server does not answer for two minutes.
pub(super) async fn result_of_ended(
    cluster: &Cluster,
    test: &LoadTest,
    status: &LoadTestStatus,
) -> anyhow::Result<RunResult> {
    let name = test.metadata.name.as_deref().unwrap_or_default();
    let uid = test.metadata.uid.as_deref();
    let end = Instant::now() + MAX_OUTAGE;
    let stored = loop {
        let found = find_stored(&cluster.client, &cluster.namespace, name, uid);
        let found = tokio::time::timeout(RESPONSE_TIMEOUT, found).await;
        match found.map_err(anyhow::Error::from).and_then(|found| found) {
            Ok(stored) => break stored,
            Err(error) if may_succeed_later(&error) && Instant::now() < end => {
                tracing::warn!(error = format!("{error:#}"), "trying again");
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Err(error) => return Err(error),
        }
    };
    let Some(StoredResult { mut result, .. }) = stored else {
        if status.start_time.is_some() {
            eprint_line(
                "there is no stored result of this test: its files have only what its status says",
            );
        }
        let generator = concat!("loadtest ", env!("CARGO_PKG_VERSION")).to_owned();
        return Ok(result_without_load(generator, test, status));
    };
    if !result.status.known_phase().is_some_and(Phase::is_final) {
        eprint_line("the last result was not stored: its numbers are those of an earlier moment");
        result.thresholds = threshold_results(&test.spec.thresholds, &status.thresholds);
        result.status = status.clone();
    }
    Ok(result)
}

/// Prints a finished LoadTest in the form that the user asked for, and writes the files.
pub(super) async fn write_result(
    cluster: &Cluster,
    test: &LoadTest,
    status: &LoadTestStatus,
    outputs: &OutputArguments,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let table = |status: &LoadTestStatus| render::format_result(test, status, None);
    let shortened = status.condition("StatusShortened").filter(|found| found.status == "True");
    let status_is_enough = matches!(outputs.format, OutputFormat::Table) && !outputs.has_files();
    if status_is_enough && shortened.is_none() {
        write!(out, "{}", table(status))?;
        return Ok(out.flush()?);
    }
    let result = match result_of_ended(cluster, test, status).await {
        Ok(result) => result,
        Err(error) => {
            write!(out, "{}", table(status))?;
            if let Some(shortened) = shortened.filter(|_| status_is_enough) {
                writeln!(out, "\n{}: {error:#}", shortened.message)?;
                return Ok(out.flush()?);
            }
            out.flush()?;
            return Err(error);
        }
    };
    let whole = if shortened.is_some() { &result.status } else { status };
    // A file that can't be written does not lose the others, or the result on the terminal.
    let written = write_outputs(outputs, &result);
    write!(out, "{}", outputs.format.render(&result, || table(whole))?)?;
    out.flush()?;
    written
}
