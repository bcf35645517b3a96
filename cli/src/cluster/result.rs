//! The `LoadTestResult` of a LoadTest on a cluster.

use anyhow::Context;
use kube::{Api, Client, api::ListParams};
use loadtest_core::{
    resource::{LoadTest, LoadTestStatus, NAME_LABEL, UID_LABEL, name_label_of},
    result::{LoadTestResult, StoredResult},
};
use loadtest_report::RunResult;

use super::Cluster;
use crate::{
    arguments::{OutputArguments, OutputFormat},
    outputs::write_outputs,
    render,
};

/// Reads the latest result of a LoadTest, also after the LoadTest is gone. `name` is the name of the
/// LoadTest or of the result.
pub(crate) fn read_stored_result(name: &str, namespace: Option<&str>) -> anyhow::Result<RunResult> {
    super::block_on(async {
        let (client, default) = super::connect().await?;
        find_result(&client, namespace.unwrap_or(&default), name, None).await
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
    Ok(find_stored(client, namespace, name, uid).await?.result)
}

/// Reads the latest result of a LoadTest, with what the operator needs to go on.
pub(super) async fn find_stored(
    client: &Client,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
) -> anyhow::Result<StoredResult> {
    let results: Api<LoadTestResult> = Api::namespaced(client.clone(), namespace);
    let label = format!("{NAME_LABEL}={}", name_label_of(name));
    let of_test = ListParams::default().labels(&label);
    let failed = || format!("the results in namespace {namespace} can't be read");
    let mut objects = results.list(&of_test).await.with_context(failed)?.items;
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
    let first = newest.with_context(|| {
        format!(
            "no result of LoadTest {name} in namespace {namespace}: there is one from the start of the load on, and it is deleted with the LoadTest unless spec.keepResult is true"
        )
    })?;
    let stored = StoredResult::from_objects(first, &objects);
    stored.with_context(|| format!("the result of LoadTest {name} can't be read"))
}

/// Prints a finished LoadTest in the form that the user asked for, and writes the files.
pub(super) async fn write_result(
    cluster: &Cluster,
    test: &LoadTest,
    status: &LoadTestStatus,
    outputs: &OutputArguments,
    out: &mut impl std::io::Write,
) -> anyhow::Result<()> {
    let table = |status: &LoadTestStatus| render::format_result(test, status, None);
    let shortened = status.condition("StatusShortened").filter(|found| found.status == "True");
    let needs_status = matches!(outputs.format, OutputFormat::Table) && !outputs.has_files();
    if needs_status && shortened.is_none() {
        write!(out, "{}", table(status))?;
        return Ok(out.flush()?);
    }
    let name = test.metadata.name.as_deref().unwrap_or_default();
    let uid = test.metadata.uid.as_deref();
    let result = find_result(&cluster.client, &cluster.namespace, name, uid).await;
    let result = match result {
        Ok(result) => result,
        Err(error) => {
            write!(out, "{}", table(status))?;
            if let Some(shortened) = shortened.filter(|_| needs_status) {
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
