//! Writes the `LoadTestResult` of a test.

use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use loadtest_core::{
    resource::LoadTest,
    result::{LoadTestResult, ResultToStore},
};

use loadtest_children::OPERATOR_NAME;

use crate::{
    context::Context,
    error::{Error, ResultError, format_error_chain},
    stored_result::{WrittenObjects, build_head, build_objects},
};

/// Writes the result of a test as a revision of its own.
pub(crate) async fn store_result(
    context: &Context,
    test: &LoadTest,
    result: ResultToStore,
    revision: u64,
    head_version: Option<&str>,
) -> Result<WrittenObjects, ResultError> {
    let head = build_head(test, &result.document);
    // Large results take a while, and the operator has one thread.
    let parts = tokio::task::spawn_blocking(move || result.into_parts()).await??;
    let results = results_of(context, test);
    let parameters = PatchParams::apply(OPERATOR_NAME).force();
    let parts_count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    let mut written = WrittenObjects { parts: parts_count, head_version: None };
    for object in build_objects(test, &head, parts, revision, head_version) {
        let name = object.name_any();
        // The answer to this request leaves out the data.
        let found = results
            .patch_metadata(&name, &parameters, &Patch::Apply(&object))
            .await
            .map_err(|error| Error::api("write loadtestresult", &name, error))?;
        // The first part is written last.
        written.head_version = found.metadata.resource_version;
    }
    Ok(written)
}

/// Deletes these objects of earlier revisions. A failure is logged: the result is stored all the same.
pub(crate) async fn delete_parts(context: &Context, test: &LoadTest, names: &[String]) {
    let results = results_of(context, test);
    for name in names {
        match results.delete(name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                let error = format_error_chain(&error);
                tracing::warn!(name, error, "an earlier part of a result can't be deleted");
            }
        }
    }
}

fn results_of(context: &Context, test: &LoadTest) -> Api<LoadTestResult> {
    Api::namespaced(context.client.clone(), &test.namespace().unwrap_or_default())
}
