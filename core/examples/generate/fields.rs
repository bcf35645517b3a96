//! The page with every field of a LoadTest, written from its schema.

use std::fmt::Write;

use loadtest_core::resource::schema;
use serde_json::Value;

const INTRODUCTION: &str = "# All fields

This page is generated from the schema of the resource. [The LoadTest resource](loadtest.md) explains how the fields work
together. `loadtest schema loadtest` prints the schema for editors, and `kubectl explain loadtest.spec` shows it on a cluster.

In the column *type*, `[]` is a list, and a text in the notation of a duration (`500ms`, `2m`), of a rate (`50/s`) or of a
bound (`< 500ms`) is a string.
";
/// Fields of a pod, which the API of Kubernetes describes.
const OF_PODS: [&str; 9] = [
    "affinity",
    "env",
    "topologySpreadConstraints",
    "resources",
    "tolerations",
    "imagePullSecrets",
    "hostAliases",
    "securityContext",
    "podTemplate",
];

/// The page as Markdown.
pub(super) fn fields_page() -> String {
    let schema = schema();
    let mut out = INTRODUCTION.to_owned();
    for part in ["spec", "status"] {
        let part_schema = &schema["properties"][part];
        let _ = writeln!(out, "\n## {part}\n");
        push_table(&mut out, part_schema, false);
        push_nested(&mut out, part, part_schema);
    }
    out
}

/// The objects in a schema, each with a section of its own.
fn push_nested(out: &mut String, path: &str, schema: &Value) {
    for (name, field) in properties(schema) {
        let (items, suffix) = match field.get("items") {
            Some(items) => (items, "[]"),
            None => (field, ""),
        };
        let path = format!("{path}.{name}{suffix}");
        if OF_PODS.contains(&name.as_str()) || properties(items).next().is_none() {
            continue;
        }
        let _ = writeln!(out, "\n### {path}\n");
        push_table(out, items, true);
        push_nested(out, &path, items);
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

fn push_table(out: &mut String, schema: &Value, with_required: bool) {
    out.push_str("| field | type | default | meaning |\n|---|---|---|---|\n");
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in properties(schema) {
        let is_required = with_required && required.contains(&name.as_str());
        let default = match &field["default"] {
            Value::Null if is_required => "required".to_owned(),
            Value::Null => String::new(),
            value => format!("`{value}`"),
        };
        let meaning = field["description"].as_str().unwrap_or_default();
        let meaning: Vec<&str> = meaning.split_whitespace().collect();
        let _ = writeln!(
            out,
            "| `{name}` | {} | {default} | {} |",
            type_of(name, field),
            meaning.join(" ").replace('|', "\\|").replace('<', "&lt;")
        );
    }
}

/// The type of a field in words, with its limits.
fn type_of(name: &str, field: &Value) -> String {
    if OF_PODS.contains(&name) {
        return "as in a pod".to_owned();
    }
    if let Some(items) = field.get("items") {
        return format!("{}[]", type_of("", items));
    }
    if let Some(values) = field["enum"].as_array() {
        let values: Vec<String> =
            values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
        return values.join(", ");
    }
    if field["x-kubernetes-int-or-string"] == true {
        return "integer or string".to_owned();
    }
    let kind = field["type"].as_str().unwrap_or("any value");
    let limit = |name: &str| field[name].as_f64();
    match (limit("minimum"), limit("maximum")) {
        (Some(least), Some(most)) => format!("{kind}, {least} to {most}"),
        (Some(least), None) if least > 0.0 => format!("{kind}, at least {least}"),
        _ if field.get("additionalProperties").is_some() => "map".to_owned(),
        _ => kind.to_owned(),
    }
}
