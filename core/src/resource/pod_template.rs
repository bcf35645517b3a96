//! The pod template that a spec merges over the runner pod.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A partial pod template, as a Job has it.
///
/// The schema leaves all fields open: a copy of Kubernetes' own schema would be larger than the
/// rest of the CustomResourceDefinition. [`PodTemplate::parse`] checks the fields.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(transparent)]
pub struct PodTemplate(serde_json::Map<String, Value>);

impl PodTemplate {
    /// The template as Kubernetes reads it.
    ///
    /// # Errors
    /// The path from the template's root to a field that a pod template doesn't have or that has a
    /// wrong value, and what is wrong.
    pub fn parse(&self) -> Result<PodTemplateSpec, (String, String)> {
        let object = Value::Object(self.0.clone());
        let template: PodTemplateSpec = serde_path_to_error::deserialize(&object)
            .map_err(|error| (error.path().to_string(), error.inner().to_string()))?;
        // Deserializing skips unknown fields: the ones that don't come back are unknown.
        let known = serde_json::to_value(&template).unwrap_or_default();
        match first_lost_field(&object, &known) {
            Some(path) => Err((path, "pod templates have no such field".into())),
            None => Ok(template),
        }
    }
}

impl PodTemplate {
    /// Replaces the values of all variables of all containers, which may be credentials.
    pub fn hide_variables(&mut self) {
        self.0.values_mut().for_each(hide_variables);
    }
}

fn hide_variables(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let variables = value.as_array_mut().filter(|_| name == "env");
                for variable in variables.into_iter().flatten() {
                    if let Some(text) = variable.get_mut("value") {
                        *text = "***".into();
                    }
                }
                hide_variables(value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_variables),
        _ => {}
    }
}

/// The path to the first field of `given` that `kept` lacks.
fn first_lost_field(given: &Value, kept: &Value) -> Option<String> {
    let join = |name: &str, rest: String| {
        if rest.is_empty() || rest.starts_with('[') {
            format!("{name}{rest}")
        } else {
            format!("{name}.{rest}")
        }
    };
    match given {
        Value::Object(fields) => {
            fields.iter().filter(|(_, value)| !is_empty(value)).find_map(|(name, value)| match kept
                .get(name)
            {
                Some(kept) => first_lost_field(value, kept).map(|rest| join(name, rest)),
                None => Some(name.clone()),
            })
        }
        Value::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
            let kept = kept.get(index).unwrap_or(&Value::Null);
            first_lost_field(item, kept).map(|rest| join(&format!("[{index}]"), rest))
        }),
        _ => None,
    }
}

/// Kubernetes treats an empty field as an absent one.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

impl schemars::JsonSchema for PodTemplate {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PodTemplate".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<PodTemplateSpec, (String, String)> {
        serde_json::from_str::<PodTemplate>(json).unwrap().parse()
    }

    #[test]
    fn pod_templates_are_read_as_kubernetes_reads_them() {
        let template = parse(
            r#"{"spec": {"runtimeClassName": "gvisor", "containers": [{"name": "runner", "env": [], "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}}"#,
        )
        .unwrap();
        assert_eq!(template.spec.unwrap().runtime_class_name.as_deref(), Some("gvisor"));
    }

    #[test]
    fn variables_of_every_container_are_hidden() {
        let json = r#"{"spec": {
            "initContainers": [{"name": "a", "env": [{"name": "TOKEN", "value": "secret"}]}],
            "containers": [{"name": "runner", "args": ["-v"], "env": [
                {"name": "TOKEN", "value": "secret"},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}}
            ]}]
        }}"#;
        let mut template: PodTemplate = serde_json::from_str(json).unwrap();
        template.hide_variables();
        let text = serde_json::to_string(&template).unwrap();
        assert_eq!(
            (text.matches("***").count(), text.contains("\"secret\"")),
            (2, false),
            "{text}"
        );
        assert!(text.contains("keys") && text.contains("-v"), "{text}");
    }

    #[test]
    fn unknown_fields_and_wrong_types_are_named() {
        for (json, path) in [
            (r#"{"spec": {"hostNetwrk": true}}"#, "spec.hostNetwrk"),
            (
                r#"{"spec": {"containers": [{"name": "runner", "imag": "x"}]}}"#,
                "spec.containers[0].imag",
            ),
            (r#"{"spec": {"priority": "high"}}"#, "spec.priority"),
        ] {
            assert_eq!(parse(json).unwrap_err().0, path);
        }
    }
}
