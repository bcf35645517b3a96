//! The JSON Schema of the result document.

use serde_json::Value;

use super::document::{FORMAT_VERSION, RunResult};

/// The JSON Schema (draft 2020-12) of [`RunResult`].
pub fn result_schema() -> Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    let mut schema = settings.into_generator().into_root_schema_for::<RunResult>().to_value();
    remove_kubernetes_rules(&mut schema);
    schema["title"] = format!("Result of a load test, version {FORMAT_VERSION}").into();
    schema["$id"] =
        format!("https://loadtest.cell0.io/schemas/result-v{FORMAT_VERSION}.json").into();
    schema
}

/// Removes the rules in CEL: they are about a spec before it runs, and JSON Schema knows no CEL.
fn remove_kubernetes_rules(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|name, _| !name.starts_with("x-kubernetes-"));
            fields.values_mut().for_each(remove_kubernetes_rules);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_kubernetes_rules),
        _ => {}
    }
}
