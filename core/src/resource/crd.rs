//! The CustomResourceDefinition, generated from the types.

use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::LoadTest;

/// A rule on the whole object: it alone sees both the spec and whether the test has a plan.
/// `cancel` and `ttlSecondsAfterFinished` steer a test and stay free.
const FROZEN: &str = "!has(oldSelf.status) || !has(oldSelf.status.plan) || \
    (self.spec.target == oldSelf.spec.target && self.spec.load == oldSelf.spec.load && \
    self.spec.scenario == oldSelf.spec.scenario && self.spec.thresholds == oldSelf.spec.thresholds && \
    self.spec.runners == oldSelf.spec.runners)";

/// Bounds for what the types leave open, so that CEL's cost estimate stays finite.
const MAX_STRING: u64 = 8192;
const MAX_ITEMS: u64 = 256;

/// The CustomResourceDefinition as JSON.
pub fn crd() -> Value {
    let mut crd = json!(LoadTest::crd());
    let version = &mut crd["spec"]["versions"][0];
    let schema = &mut version["schema"]["openAPIV3Schema"];
    schema["description"] = json!("One load test and, since one LoadTest is one run, its result.");
    bound(schema);
    schema["x-kubernetes-validations"] = json!([
        {
            "rule": FROZEN,
            "message": "a test that has started can't change, except cancel and ttlSecondsAfterFinished: run it anew with kubectl replace --force -f",
        },
        {
            "rule": "!oldSelf.spec.cancel || self.spec.cancel",
            "message": "spec.cancel can't be taken back, its runners are stopped: run the test anew with kubectl replace --force -f",
        },
    ]);
    crd
}

/// The CustomResourceDefinition as it is committed and installed.
///
/// # Errors
/// Never in practice: the value is plain JSON.
pub fn crd_yaml() -> Result<String, serde_yaml::Error> {
    let yaml = serde_yaml::to_string(&crd())?;
    Ok(format!("# Generated from core/src/resource by `make generate`. Don't edit.\n{yaml}"))
}

/// The OpenAPI schema of the resource, for checks without a cluster.
pub fn schema() -> Value {
    crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()
}

/// Gives every string, list and map a bound and takes out what API servers warn about.
fn bound(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    let kind = map.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    // Rust's unsigned formats are unknown to Kubernetes.
    if map.get("format").and_then(Value::as_str).is_some_and(|f| f.starts_with("uint")) {
        map.remove("format");
    }
    // Without it the API server drops an explicit null, as if the field were absent.
    map.remove("nullable");
    let open = !map.contains_key("enum") && !map.contains_key("format");
    match kind.as_str() {
        "string" if open => {
            map.entry("maxLength").or_insert_with(|| MAX_STRING.into());
        }
        "array" => {
            map.entry("maxItems").or_insert_with(|| MAX_ITEMS.into());
        }
        "object" if map.contains_key("additionalProperties") => {
            map.entry("maxProperties").or_insert_with(|| 64.into());
        }
        _ => {}
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            bound(inner);
        }
    }
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(bound);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(schema: &Value, path: &str, visit: &mut dyn FnMut(&Value, &str)) {
        visit(schema, path);
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            walk(inner, &format!("{path}.{name}"), visit);
        }
        for key in ["items", "additionalProperties"] {
            if schema[key].is_object() {
                walk(&schema[key], &format!("{path}[]"), visit);
            }
        }
    }

    #[test]
    fn every_list_map_and_string_is_bounded() {
        walk(&schema(), "", &mut |schema, path| {
            let bounded = match schema["type"].as_str() {
                Some("string") => {
                    ["maxLength", "enum", "format"].iter().any(|k| !schema[k].is_null())
                }
                Some("array") => !schema["maxItems"].is_null(),
                Some("object") if !schema["additionalProperties"].is_null() => {
                    !schema["maxProperties"].is_null()
                }
                _ => true,
            };
            assert!(bounded, "{path} is not bounded");
        });
    }

    #[test]
    fn no_format_is_unknown_to_kubernetes() {
        walk(&schema(), "", &mut |schema, path| {
            let format = schema["format"].as_str().unwrap_or_default();
            assert!(!format.starts_with("uint"), "{path} has format {format}");
        });
    }

    #[test]
    fn the_committed_crd_is_fresh() {
        let committed = include_str!("../../../crds/loadtests.yaml");
        assert!(
            committed == crd_yaml().unwrap(),
            "crds/loadtests.yaml is stale: run make generate"
        );
    }
}
