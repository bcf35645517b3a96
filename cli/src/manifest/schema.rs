//! The checks of an API server: unknown fields, the schema and the CEL rules.

use jsonschema::error::ValidationErrorKind;
use serde_json::Value;

use super::{
    position::{Step, find_position, format_path, parse_path},
    problem::Problem,
    yaml::Node,
};

/// Calls `visit` with the path of each field that the schema doesn't declare, and with the declared fields.
pub(super) fn visit_unknown_fields(
    schema: &Value,
    value: &Value,
    steps: &mut Vec<Step>,
    visit: &mut impl FnMut(&[Step], &[&str]),
) {
    match value {
        Value::Object(fields) => {
            let allows_any_field = !schema["additionalProperties"].is_null()
                || schema["x-kubernetes-preserve-unknown-fields"] == true;
            for (key, inner) in fields {
                // The API server declares these fields itself; the schema doesn't contain them.
                if steps.is_empty() && matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                    continue;
                }
                steps.push(Step::Key(key.clone()));
                match schema["properties"].get(key) {
                    Some(known) => visit_unknown_fields(known, inner, steps, visit),
                    None if allows_any_field => {
                        visit_unknown_fields(&schema["additionalProperties"], inner, steps, visit);
                    }
                    // A schema without `properties` declares nothing about fields.
                    None if schema["properties"].is_null() => {}
                    None => visit(steps, &names_of_fields(schema)),
                }
                steps.pop();
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                steps.push(Step::Index(index));
                visit_unknown_fields(&schema["items"], inner, steps, visit);
                steps.pop();
            }
        }
        _ => {}
    }
}

fn names_of_fields(schema: &Value) -> Vec<&str> {
    schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
}

/// Drops null fields, as an API server does. It keeps them only where the schema allows any field.
pub(super) fn drop_nulls(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let keeps_unknown = schema["x-kubernetes-preserve-unknown-fields"] == true;
            let known = &schema["properties"];
            fields
                .retain(|key, inner| !inner.is_null() || keeps_unknown && known.get(key).is_none());
            for (key, inner) in fields {
                drop_nulls(known.get(key).unwrap_or(&schema["additionalProperties"]), inner);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| drop_nulls(&schema["items"], item)),
        _ => {}
    }
}

/// Checks types, bounds and enums.
pub(super) fn check_schema(schema: &Value, object: &Value, document: &Node) -> Vec<Problem> {
    let validator = match jsonschema::validator_for(schema) {
        Ok(validator) => validator,
        Err(error) => {
            let message = format!("the schema is invalid: {error}");
            return vec![Problem { position: None, message }];
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
            let hint = schema_of(schema, &steps).and_then(|field| type_hint(&error, field));
            let hint = hint.map_or_else(String::new, |hint| format!("; {hint}"));
            let message = format!("{}: {}{hint}", format_path(&steps), short_message(&error));
            Problem { position: Some(find_position(document, &steps)), message }
        })
        .collect()
}

/// The schema of a field.
fn schema_of<'a>(schema: &'a Value, steps: &[Step]) -> Option<&'a Value> {
    steps.iter().try_fold(schema, |schema, step| match step {
        Step::Key(key) => schema["properties"].get(key),
        _ => schema.get("items"),
    })
}

/// Says how a value of another type is written.
fn type_hint(error: &jsonschema::ValidationError<'_>, schema: &Value) -> Option<String> {
    if !matches!(error.kind(), ValidationErrorKind::Type { .. }) {
        return None;
    }
    match schema["type"].as_str()? {
        "array" => Some(format!("write a list: [{}]", error.instance())),
        "object" => Some(format!("its fields are {}", names_of_fields(schema).join(", "))),
        // The rule about the notation ends with examples: `…: write a number with a unit, such as 500ms'`.
        "string" => {
            let rule = schema["x-kubernetes-validations"][0]["messageExpression"].as_str()?;
            let (_, hint) = rule.rsplit_once(": ")?;
            Some(hint.trim_end_matches('\'').to_owned())
        }
        _ => None,
    }
}

/// Returns the message of an error. The message quotes the value unless that makes it too long.
fn short_message(error: &jsonschema::ValidationError<'_>) -> String {
    if let ValidationErrorKind::Enum { options } = error.kind()
        && let Some(options) = options.as_array()
    {
        let options: Vec<&str> = options.iter().filter_map(Value::as_str).collect();
        return format!("{} is not one of {}", error.instance(), options.join(", "));
    }
    let text = error.to_string();
    if text.len() > 400 { error.masked_with("the value").to_string() } else { text }
}

/// Checks the CEL rules that an API server runs when an object is created.
pub(super) fn check_cel_rules(schema: &Value, object: &Value, document: &Node) -> Vec<Problem> {
    let mut object = object.clone();
    spell_microseconds(&mut object);
    let Err(errors) = kube_cel::Validator::new().validate(schema, &object, None) else {
        return Vec::new();
    };
    let to_problem = |error: kube_cel::ValidationError| {
        let steps = parse_path(&error.field_path);
        let message = match error.field_path.as_str() {
            "" => error.message,
            path => format!("{path}: {}", error.message),
        };
        Problem { position: Some(find_position(document, &steps)), message }
    };
    errors.into_vec().into_iter().map(to_problem).collect()
}

/// Writes `us` for `µs` in all texts. An API server reads both, this CEL library only the first.
fn spell_microseconds(value: &mut Value) {
    match value {
        Value::String(text) => {
            // The micro sign and the Greek letter look the same.
            *text = text.replace("µs", "us").replace("μs", "us");
        }
        Value::Array(items) => items.iter_mut().for_each(spell_microseconds),
        Value::Object(map) => map.values_mut().for_each(spell_microseconds),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nulls_stay_only_where_any_field_is_allowed() {
        let schema = loadtest_core::resource::schema();
        let task = json!({
            "name": "a", "weight": null, "chat": {"body": {"stream_options": null, "n": 2}},
        });
        let mut object = json!({"spec": {"scenario": {"tasks": [task]}}});
        drop_nulls(&schema, &mut object);
        let task = object["spec"]["scenario"]["tasks"][0].take();
        assert_eq!(task, json!({"name": "a", "chat": {"body": {"stream_options": null, "n": 2}}}));
    }
}
