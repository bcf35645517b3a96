//! Compares the fields of the installed CustomResourceDefinition with those of this operator.
//!
//! The API server drops fields that its definition lacks. A test would then run without them, so the
//! operator says which ones. It reads the published OpenAPI document, which every client may read.

use std::{collections::BTreeSet, time::Duration};

use loadtest_core::{
    resource::{GROUP, schema},
    text::truncate,
};
use serde_json::Value;

use crate::{context::Context, error::format_error_chain};

/// Interval between two comparisons. The definition may be upgraded after the operator.
const CHECK_INTERVAL: Duration = Duration::from_mins(1);

/// Compares again and again, and logs each change of the result.
pub(crate) async fn watch_crd(context: &Context) {
    let own = schema();
    let mut last = Some(BTreeSet::new());
    let mut ticks = tokio::time::interval(CHECK_INTERVAL);
    loop {
        ticks.tick().await;
        let fields = match read_installed_schema(context).await {
            Ok(Some(installed)) => Some(find_different_fields(&installed, &own)),
            Ok(None) => None,
            Err(error) => {
                let error = format_error_chain(&error);
                tracing::debug!(error, "the installed CRD can't be read");
                continue;
            }
        };
        context.metrics.set_crd_differences(fields.as_ref().map_or(0, BTreeSet::len));
        if fields != last {
            log_result(fields.as_ref());
            last = fields;
        }
    }
}

fn log_result(fields: Option<&BTreeSet<String>>) {
    match fields {
        None => tracing::warn!("the CRD loadtests.{GROUP} is not installed"),
        Some(fields) if fields.is_empty() => {
            tracing::info!("the installed CRD has the fields of this operator");
        }
        Some(fields) => {
            let list: Vec<&str> = fields.iter().map(String::as_str).collect();
            let fields = truncate(&list.join(", "), 900);
            tracing::warn!(
                fields,
                "the installed CRD is not the one of this operator: these fields are only in one of them; the API server drops fields that its CRD lacks, so upgrade the CRD with the operator"
            );
        }
    }
}

/// Returns the installed schema of a LoadTest, or `None` if there is none.
async fn read_installed_schema(context: &Context) -> Result<Option<Value>, kube::Error> {
    let request = http::Request::get(format!("/openapi/v3/apis/{GROUP}/v1alpha1"));
    let request = request.body(Vec::new()).map_err(kube::Error::HttpError)?;
    let mut document: Value = match context.client.request(request).await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        document => document?,
    };
    let schemas = document["components"]["schemas"].as_object_mut();
    let found = schemas.and_then(|schemas| {
        schemas.values_mut().find(|schema| {
            schema["x-kubernetes-group-version-kind"][0]["kind"].as_str() == Some("LoadTest")
        })
    });
    Ok(found.map(Value::take))
}

/// Returns the paths of the fields of spec and status that only one of two schemas has.
fn find_different_fields(installed: &Value, own: &Value) -> BTreeSet<String> {
    let paths = |schema: &Value| {
        let mut paths = BTreeSet::new();
        for root in ["spec", "status"] {
            add_paths(&schema["properties"][root], root, &mut paths);
        }
        paths
    };
    paths(installed).symmetric_difference(&paths(own)).cloned().collect()
}

fn add_paths(schema: &Value, path: &str, paths: &mut BTreeSet<String>) {
    paths.insert(path.to_owned());
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        add_paths(property, &format!("{path}.{name}"), paths);
    }
    if schema["items"].is_object() {
        add_paths(&schema["items"], &format!("{path}[]"), paths);
    }
    if schema["additionalProperties"].is_object() {
        add_paths(&schema["additionalProperties"], &format!("{path}.*"), paths);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_only_one_schema_are_found() {
        let own = schema();
        assert_eq!(find_different_fields(&own, &own), BTreeSet::new());
        let mut older = own.clone();
        let spec = &mut older["properties"]["spec"]["properties"];
        spec["load"]["properties"].as_object_mut().unwrap().remove("precision");
        let tasks = &mut spec["scenario"]["properties"]["tasks"]["items"]["properties"];
        tasks["old"] = serde_json::json!({"type": "string"});
        let expected = ["spec.load.precision", "spec.scenario.tasks[].old"];
        assert_eq!(find_different_fields(&older, &own), expected.map(str::to_owned).into());
    }
}
