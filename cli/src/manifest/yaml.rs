//! Conversion of parsed YAML to JSON values.

use saphyr::{MarkedYamlOwned, ScalarOwned, YamlDataOwned};
use serde_json::Value;

/// Converts a document to JSON. Drops null fields, as an API server does.
pub(super) fn to_json(node: &MarkedYamlOwned) -> Value {
    match &node.data {
        YamlDataOwned::Value(scalar) => scalar_to_json(scalar),
        YamlDataOwned::Sequence(items) => items.iter().map(to_json).collect(),
        YamlDataOwned::Mapping(map) => {
            let fields = map.iter().map(|(key, value)| (key_to_text(key), to_json(value)));
            Value::Object(fields.filter(|(_, value)| !value.is_null()).collect())
        }
        YamlDataOwned::Tagged(_, inner) => to_json(inner),
        YamlDataOwned::Representation(text, ..) => Value::String(text.clone()),
        YamlDataOwned::Alias(_) | YamlDataOwned::BadValue => Value::Null,
    }
}

fn scalar_to_json(scalar: &ScalarOwned) -> Value {
    match scalar {
        ScalarOwned::Null => Value::Null,
        ScalarOwned::Boolean(value) => (*value).into(),
        ScalarOwned::Integer(value) => (*value).into(),
        ScalarOwned::FloatingPoint(value) => value.into_inner().into(),
        ScalarOwned::String(value) => value.clone().into(),
    }
}

pub(super) fn key_to_text(node: &MarkedYamlOwned) -> String {
    match to_json(node) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}
