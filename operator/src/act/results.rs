//! Writes the `LoadTestResult` of a test.

use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use loadtest_core::{
    resource::LoadTest,
    result::{LoadTestResult, StoredResult},
};

use crate::{
    children::{OPERATOR_NAME, child_name},
    context::Context,
    error::{Error, ResultError, format_error_chain},
    stored_result::{build_head, build_objects, part_name},
};

/// Writes the result of a test as a revision of its own.
pub(crate) async fn store_result(
    context: &Context,
    test: &LoadTest,
    stored: StoredResult,
    revision: u64,
    is_last: bool,
) -> Result<(), ResultError> {
    let head = build_head(test, &stored);
    // Large results take a while, and the operator has one thread.
    let parts = tokio::task::spawn_blocking(move || stored.into_parts()).await??;
    let results: Api<LoadTestResult> =
        Api::namespaced(context.client.clone(), &test.namespace().unwrap_or_default());
    let parameters = PatchParams::apply(OPERATOR_NAME).force();
    let count = parts.len();
    for object in build_objects(test, &head, parts, revision) {
        let name = object.name_any();
        results
            .patch(&name, &parameters, &Patch::Apply(&object))
            .await
            .map_err(|error| Error::api("write loadtestresult", &name, error))?;
    }
    if is_last {
        // The result is stored, whatever becomes of earlier parts.
        let name = child_name(test);
        if let Err(error) = delete_earlier_parts(&results, &name, revision, count).await {
            let error = format_error_chain(&error);
            tracing::warn!(name, error, "earlier parts of the result can't be deleted");
        }
    }
    Ok(())
}

/// Deletes the objects of the revision before the last one.
async fn delete_earlier_parts(
    results: &Api<LoadTestResult>,
    name: &str,
    revision: u64,
    count: usize,
) -> Result<(), Error> {
    // A result grows, so the revision before had no more parts.
    for part in (1..).take(count.saturating_sub(1)) {
        let name = part_name(name, revision + 1, part);
        match results.delete(&name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(Error::api("delete loadtestresult", &name, error)),
        }
    }
    Ok(())
}
