//! The CustomResourceDefinition, generated from the types of the resource.

use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::LoadTest;

/// The rule that the spec can't change once the test has a plan. Only a rule on the whole object
/// sees both the spec and the plan. `cancel`, `keepResult`, `ttl` and `ttlSecondsAfterFinished` can
/// still change.
const FROZEN: &str = "!has(oldSelf.status) || !has(oldSelf.status.plan) || \
    (self.spec.target == oldSelf.spec.target && self.spec.load == oldSelf.spec.load && \
    self.spec.scenario == oldSelf.spec.scenario && self.spec.thresholds == oldSelf.spec.thresholds && \
    self.spec.runners == oldSelf.spec.runners && self.spec.preflight == oldSelf.spec.preflight && \
    self.spec.onRunnerLoss == oldSelf.spec.onRunnerLoss && \
    has(self.spec.minRunners) == has(oldSelf.spec.minRunners) && \
    (!has(self.spec.minRunners) || self.spec.minRunners == oldSelf.spec.minRunners) && \
    has(self.spec.startTimeout) == has(oldSelf.spec.startTimeout) && \
    (!has(self.spec.startTimeout) || self.spec.startTimeout == oldSelf.spec.startTimeout) && \
    self.spec.suspend == oldSelf.spec.suspend)";

/// A rate of at most a million, for API servers that can't run the rules.
const RATE_PATTERN: &str = "^(0*[0-9]{1,6}([.][0-9]*)?|0*[.][0-9]+|0*1000000)(/s)?$";

/// What a rule contains that reads the rate of each stage.
const READS_STAGE_RATES: &str = "string(s.rate)";

/// Limits for texts and lists without their own limits, so that CEL's cost estimate is finite.
const MAX_STRING: u64 = 8192;
const MAX_ITEMS: u64 = 256;

/// An edition of the CustomResourceDefinition. API servers before 1.34 refuse some of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrdEdition {
    /// For Kubernetes 1.34 and later: every rule.
    Current,
    /// For Kubernetes 1.29 to 1.33: without the rules that these versions refuse. A pattern checks the
    /// rate of a stage instead, and [`crate::plan::validate`] refuses stages that all end at 0.
    Older,
}

/// The CustomResourceDefinition as JSON.
pub fn crd(edition: CrdEdition) -> Value {
    let mut crd = current_crd();
    if edition == CrdEdition::Older {
        let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        remove_refused_rules(schema, false);
    }
    crd
}

fn current_crd() -> Value {
    let mut crd = json!(LoadTest::crd());
    let version = &mut crd["spec"]["versions"][0];
    let schema = &mut version["schema"]["openAPIV3Schema"];
    schema["description"] =
        json!("One load test. One LoadTest is one run; the status holds its result.");
    add_limits(schema);
    schema["x-kubernetes-validations"] = json!([
        {
            "rule": FROZEN,
            "message": "a test that has a plan can't change, except cancel, keepResult, ttl and ttlSecondsAfterFinished: run it again with kubectl replace --force -f",
        },
        {
            "rule": "!oldSelf.spec.cancel || self.spec.cancel",
            "message": "spec.cancel can't be set back to false, because the runners are stopped: run the test again with kubectl replace --force -f",
        },
    ]);
    crd
}

/// The CustomResourceDefinition as YAML: the content of a file in `crds/`.
///
/// # Errors
/// Never in practice: the value is plain JSON.
pub fn crd_yaml(edition: CrdEdition) -> Result<String, serde_saphyr::ser::Error> {
    let yaml = serde_saphyr::to_string(&crd(edition))?;
    Ok(format!("# Generated from core/src/resource by `make generate`. Don't edit.\n{yaml}"))
}

/// The OpenAPI schema of the resource, to check objects without a cluster.
pub fn schema() -> Value {
    current_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()
}

/// Adds a limit to every string, list and map, and removes what API servers warn about.
pub(crate) fn add_limits(schema: &mut Value) {
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

/// Removes the rules that API servers before 1.34 refuse.
///
/// Their CEL has no `format`. To estimate the cost of a rule, they ignore the `maxLength` of an
/// `x-kubernetes-int-or-string` and take it for a text as long as a request can be. A rule that reads
/// one for each item of a list is then too costly for them.
fn remove_refused_rules(schema: &mut Value, is_in_list: bool) {
    let Some(map) = schema.as_object_mut() else { return };
    let is_rate = map.contains_key("x-kubernetes-int-or-string")
        && map.contains_key("x-kubernetes-validations");
    if is_in_list && is_rate {
        map.remove("x-kubernetes-validations");
        map.insert("pattern".into(), RATE_PATTERN.into());
        map.insert("minimum".into(), 0.into());
        map.insert("maximum".into(), 1_000_000.into());
    }
    if let Some(rules) = map.get_mut("x-kubernetes-validations").and_then(Value::as_array_mut) {
        rules.retain(|rule| {
            !rule["rule"].as_str().is_some_and(|rule| rule.contains(READS_STAGE_RATES))
        });
        for rule in rules {
            let uses_format =
                rule["messageExpression"].as_str().is_some_and(|text| text.contains(".format("));
            if let Some(rule) = rule.as_object_mut().filter(|_| uses_format) {
                rule.remove("messageExpression");
            }
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            remove_refused_rules(inner, true);
        }
    }
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|inner| remove_refused_rules(inner, is_in_list));
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
    fn the_committed_crds_are_fresh() {
        for (edition, committed) in [
            (CrdEdition::Current, include_str!("../../../crds/loadtests.yaml")),
            (CrdEdition::Older, include_str!("../../../crds/loadtests-1.29-to-1.33.yaml")),
        ] {
            assert!(committed == crd_yaml(edition).unwrap(), "{edition:?}: run make generate");
        }
    }

    #[test]
    fn the_older_edition_lacks_only_what_older_servers_refuse() {
        let mut older = crd(CrdEdition::Older)["spec"]["versions"][0]["schema"].take();
        let older = &mut older["openAPIV3Schema"];
        let count_rules = |schema: &Value| {
            let (mut rules, mut without_message) = (0, 0);
            visit_all(schema, "", &mut |schema, _| {
                for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                    rules += 1;
                    let message = rule.get("messageExpression").or_else(|| rule.get("message"));
                    without_message += usize::from(message.is_none());
                }
            });
            (rules, without_message)
        };
        let (rules, without_message) = count_rules(older);
        // Two rules of the rate of a stage, and the rule that a stage ends above 0.
        assert_eq!((count_rules(&schema()).0 - rules, without_message), (3, 0));
        assert!(!older.to_string().contains(".format("));
        let load = &older["properties"]["spec"]["properties"]["load"]["properties"];
        let rate = &load["stages"]["items"]["properties"]["rate"];
        assert_eq!(rate["pattern"], RATE_PATTERN);
        assert!(load["arrivalRate"]["pattern"].is_null());
        assert_eq!(older.to_string().matches(RATE_PATTERN).count(), 1);
    }
}
