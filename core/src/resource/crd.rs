//! The CustomResourceDefinition, generated from the types of the resource.

use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::LoadTest;

/// The rule that the spec can't change once the test has a plan. Only a rule on the whole object
/// sees both the spec and the plan. `cancel` and `ttlSecondsAfterFinished` can still change.
const FROZEN: &str = "!has(oldSelf.status) || !has(oldSelf.status.plan) || \
    (self.spec.target == oldSelf.spec.target && self.spec.load == oldSelf.spec.load && \
    self.spec.scenario == oldSelf.spec.scenario && self.spec.thresholds == oldSelf.spec.thresholds && \
    self.spec.runners == oldSelf.spec.runners && \
    self.spec.suspend == oldSelf.spec.suspend)";

/// Limits for texts and lists without their own limits, so that CEL's cost estimate is finite.
const MAX_STRING: u64 = 8192;
const MAX_ITEMS: u64 = 256;

/// The CustomResourceDefinition as JSON.
pub fn crd() -> Value {
    let mut crd = json!(LoadTest::crd());
    let version = &mut crd["spec"]["versions"][0];
    let schema = &mut version["schema"]["openAPIV3Schema"];
    schema["description"] =
        json!("One load test. One LoadTest is one run; the status holds its result.");
    add_limits(schema);
    schema["x-kubernetes-validations"] = json!([
        {
            "rule": FROZEN,
            "message": "a test that has a plan can't change, except cancel and ttlSecondsAfterFinished: run it again with kubectl replace --force -f",
        },
        {
            "rule": "!oldSelf.spec.cancel || self.spec.cancel",
            "message": "spec.cancel can't be set back to false, because the runners are stopped: run the test again with kubectl replace --force -f",
        },
    ]);
    crd
}

/// The CustomResourceDefinition as YAML: the content of `crds/loadtests.yaml`.
///
/// # Errors
/// Never in practice: the value is plain JSON.
pub fn crd_yaml() -> Result<String, serde_saphyr::ser::Error> {
    let yaml = serde_saphyr::to_string(&crd())?;
    Ok(format!("# Generated from core/src/resource by `make generate`. Don't edit.\n{yaml}"))
}

/// The OpenAPI schema of the resource, to check objects without a cluster.
pub fn schema() -> Value {
    crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()
}

/// Adds a limit to every string, list and map, and removes what API servers warn about.
fn add_limits(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    let kind = map.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    // Kubernetes does not know the formats of Rust's unsigned integers.
    if map.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
        map.remove("format");
    }
    // For a field that is not nullable, the API server drops an explicit null.
    map.remove("nullable");
    let unlimited = !map.contains_key("enum") && !map.contains_key("format");
    match kind.as_str() {
        "string" if unlimited => {
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
            add_limits(inner);
        }
    }
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(add_limits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visit_all(schema: &Value, path: &str, visit: &mut dyn FnMut(&Value, &str)) {
        visit(schema, path);
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            visit_all(inner, &format!("{path}.{name}"), visit);
        }
        for key in ["items", "additionalProperties"] {
            if schema[key].is_object() {
                visit_all(&schema[key], &format!("{path}[]"), visit);
            }
        }
    }

    #[test]
    fn every_list_map_and_string_has_a_limit() {
        visit_all(&schema(), "", &mut |schema, path| {
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
            assert!(bounded, "{path} has no limit");
        });
    }

    #[test]
    fn every_format_is_known_to_kubernetes() {
        visit_all(&schema(), "", &mut |schema, path| {
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
