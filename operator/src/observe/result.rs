//! Reads the `LoadTestResult` of a run that this process has never seen.

use kube::{Api, ResourceExt};
use loadtest_core::{
    resource::LoadTest,
    result::{FORMAT_VERSION, LoadTestResult, MAX_PARTS, StoredResult, StoredResultError},
};

use super::state::Observed;
use loadtest_children::child_name;

use crate::{
    clock::now,
    context::Context,
    error::{Error, ResultError, format_error_chain},
    stored_result::{EarlierResult, note_resume_failure, part_name, restore},
};

/// Goes on from the result that an earlier process wrote.
///
/// # Errors
/// Fails if the result can't be read now and may be later. A result that can't be read at all is
/// logged, and the numbers of runners that are gone are missing.
pub(super) async fn resume_from_result(
    context: &Context,
    observed: &mut Observed,
) -> Result<(), Error> {
    let Ok(valid) = &observed.valid else { return Ok(()) };
    let (namespace, name) = (observed.test.namespace(), observed.test.name_any());
    match read_result(context, &observed.test).await {
        Ok(Some(earlier)) => {
            let revision = earlier.revision;
            if restore(&mut observed.cache, &valid.load, earlier, now()) {
                tracing::info!(namespace, name, revision, "going on from an earlier result");
            } else {
                let text =
                    "another version wrote the earlier result: numbers of lost runners are missing";
                tracing::warn!(namespace, name, revision, "{text}");
            }
        }
        Ok(None) => {}
        Err(ResultError::Document(StoredResultError::Version { found }))
            if found > u64::from(FORMAT_VERSION) =>
        {
            observed.cache.written_result.is_newer = true;
            let text = "a newer version of the operator wrote the result: it stays as it is";
            tracing::warn!(namespace, name, version = found, "{text}");
        }
        Err(error) => {
            let error = match error.into_transient() {
                // The test goes on without its earlier result rather than without an operator.
                Ok(error) if note_resume_failure(&mut observed.cache, now()) => {
                    return Err(error);
                }
                Ok(error) => format_error_chain(&error),
                Err(error) => format_error_chain(&error),
            };
            tracing::warn!(namespace, name, error, "the earlier result can't be read");
        }
    }
    Ok(())
}

/// Reads the result of a test. Returns `None` if there is none yet.
async fn read_result(
    context: &Context,
    test: &LoadTest,
) -> Result<Option<EarlierResult>, ResultError> {
    let results: Api<LoadTestResult> =
        Api::namespaced(context.client.clone(), &test.namespace().unwrap_or_default());
    let name = child_name(test);
    let read = async |name: String| {
        results.get_opt(&name).await.map_err(|error| Error::api("get loadtestresult", &name, error))
    };
    let Some(first) = read(name.clone()).await? else { return Ok(None) };
    if Some(&first.test.uid) != test.metadata.uid.as_ref() {
        return Ok(None);
    }
    let mut others = Vec::new();
    for part in 1..first.parts.min(MAX_PARTS) {
        others.extend(read(part_name(&name, first.revision, part)).await?);
    }
    let stored = tokio::task::spawn_blocking(move || {
        let stored = StoredResult::from_objects(&first, &others)?;
        let (revision, parts) = (first.revision, first.parts.min(MAX_PARTS));
        let head_version = first.metadata.resource_version;
        Ok::<_, StoredResultError>(EarlierResult { stored, revision, head_version, parts })
    });
    Ok(Some(stored.await??))
}
