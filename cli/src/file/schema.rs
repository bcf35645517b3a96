//! What the API server checks: unknown fields, the schema, the CEL rules.

use saphyr::MarkedYamlOwned;
use serde_json::Value;

use super::{
    Problem,
    place::{Step, dotted, parse, position},
};

/// Visits every field that the schema doesn't know.
pub(super) fn unknown(
    schema: &Value,
    value: &Value,
    steps: &mut Vec<Step>,
    found: &mut impl FnMut(&[Step]),
) {
    match value {
        Value::Object(fields) => {
            let open = !schema["additionalProperties"].is_null()
                || schema["x-kubernetes-preserve-unknown-fields"] == true;
            for (key, inner) in fields {
                // The API server's own part of the schema.
                if steps.is_empty() && matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                    continue;
                }
                steps.push(Step::Key(key.clone()));
                match schema["properties"].get(key) {
                    Some(known) => unknown(known, inner, steps, found),
                    None if open => unknown(&schema["additionalProperties"], inner, steps, found),
                    // What has no properties listed says nothing about them.
                    None if schema["properties"].is_null() => {}
                    None => found(steps),
                }
                steps.pop();
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                steps.push(Step::Index(index));
                unknown(&schema["items"], inner, steps, found);
                steps.pop();
            }
        }
        _ => {}
    }
}

/// Types, bounds and enums.
pub(super) fn structure(schema: &Value, object: &Value, marked: &MarkedYamlOwned) -> Vec<Problem> {
    let validator = match jsonschema::validator_for(schema) {
        Ok(validator) => validator,
        Err(error) => {
            return vec![Problem { at: None, message: format!("the schema is broken: {error}") }];
        }
    };
    validator
        .iter_errors(object)
        .map(|error| {
            let pointer = error.instance_path().to_string();
            let steps: Vec<Step> = pointer
                .split('/')
                .skip(1)
                .map(|part| part.parse().map_or_else(|_| Step::Key(part.to_owned()), Step::Index))
                .collect();
            let message = format!("{}: {}", dotted(&steps), error.masked_long());
            Problem { at: Some(position(marked, &steps)), message }
        })
        .collect()
}

/// Messages quote the value; a megabyte of it helps nobody.
trait MaskedLong {
    fn masked_long(&self) -> String;
}

impl MaskedLong for jsonschema::ValidationError<'_> {
    fn masked_long(&self) -> String {
        let text = self.to_string();
        if text.len() > 400 { self.masked_with("the value").to_string() } else { text }
    }
}

/// CEL rules, as the API server runs them when an object is created.
pub(super) fn rules(schema: &Value, object: &Value, marked: &MarkedYamlOwned) -> Vec<Problem> {
    let Err(errors) = kube_cel::Validator::new().validate(schema, object, None) else {
        return Vec::new();
    };
    let placed = |error: kube_cel::ValidationError| {
        let steps = parse(&error.field_path);
        let message = match error.field_path.as_str() {
            "" => error.message,
            path => format!("{path}: {}", error.message),
        };
        Problem { at: Some(position(marked, &steps)), message }
    };
    errors.into_vec().into_iter().map(placed).collect()
}
