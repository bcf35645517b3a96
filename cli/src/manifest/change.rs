//! Changes of a LoadTest by the command line, before it is validated.

use serde_json::{Map, Value};

use super::position::{Step, parse_path};

/// A change of a LoadTest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// Sets a field, given as a path such as `spec.load.users` or `spec.scenario.tasks[chat].weight`.
    Set(String, Value),
    /// Sets a field of a load without stages, for an option of the command line.
    SetLoad {
        /// The option, for messages.
        option: &'static str,
        /// The field in `spec.load`: `users` is `maxUsers` where requests arrive at a rate.
        field: &'static str,
        /// The value.
        value: Value,
    },
    /// Adds a threshold.
    AddThreshold(Value),
}

impl Change {
    /// Reads `path=value`, as in `load.users=50`. The value is YAML. A path that starts with neither
    /// `spec` nor `metadata` is one in the spec.
    ///
    /// # Errors
    /// When there is no `=`, or when the value is no YAML.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (path, value) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?} is not path=value, such as load.users=50"))?;
        let is_absolute =
            ["spec", "metadata"].contains(&path.split(['.', '[']).next().unwrap_or(""));
        let path = if is_absolute { path.to_owned() } else { format!("spec.{path}") };
        let value = if value.trim().is_empty() {
            Value::String(value.to_owned())
        } else {
            serde_saphyr::from_str(value).map_err(|error| format!("{path}: {error}"))?
        };
        Ok(Self::Set(path, value))
    }

    /// Makes the change.
    ///
    /// # Errors
    /// When the path leads into a list at a place that does not exist.
    pub(super) fn apply(&self, object: &mut Value) -> Result<(), String> {
        match self {
            Self::Set(path, value) => set_field(object, path, value.clone()),
            Self::SetLoad { option, field, value } => {
                let load = &object["spec"]["load"];
                if !load["stages"].is_null() {
                    return Err(format!(
                        "{option} can't change a load in stages: change spec.load.stages in the file, or set it with --set"
                    ));
                }
                let field = match (*field, load["arrivalRate"].is_null()) {
                    ("users", false) => "maxUsers",
                    ("spawnRate", false) => {
                        return Err(format!(
                            "{option} sets how fast users start, but the load in the file is an arrival rate: remove {option}"
                        ));
                    }
                    (field, _) => field,
                };
                set_field(object, &format!("spec.load.{field}"), value.clone())
            }
            Self::AddThreshold(threshold) => {
                // A spec or a list of another type is left to the check of the schema.
                let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
                    return Ok(());
                };
                let rows = spec.entry("thresholds").or_insert(Value::Null);
                match rows {
                    Value::Null => *rows = Value::Array(vec![threshold.clone()]),
                    Value::Array(rows) => rows.push(threshold.clone()),
                    _ => {}
                }
                Ok(())
            }
        }
    }
}

/// Sets a field. Creates missing objects on the way, but no items of lists.
fn set_field(object: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let mut target = object;
    for step in parse_path(path) {
        target = match step {
            Step::Key(key) => {
                if !target.is_object() {
                    *target = Value::Object(Map::new());
                }
                &mut target[key]
            }
            Step::Index(index) => {
                let length = target.as_array().map_or(0, Vec::len);
                target.get_mut(index).ok_or_else(|| {
                    format!("{path}: there is no item {index}, the list has {length}")
                })?
            }
            Step::Name(name) => {
                let items = target.as_array_mut().map_or(&mut [][..], |items| items.as_mut_slice());
                let names: Vec<String> = items
                    .iter()
                    .filter_map(|item| Some(item["name"].as_str()?.to_owned()))
                    .collect();
                items.iter_mut().find(|item| item["name"] == name).ok_or_else(|| {
                    format!("{path}: no item is named {name}, only: {}", names.join(", "))
                })?
            }
        };
    }
    *target = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changed(text: &str) -> Result<Value, String> {
        let mut object = json!({"spec": {"load": {"users": 5}, "scenario": {"tasks": [
            {"name": "chat", "weight": 1}, {"name": "health", "weight": 1},
        ]}}});
        Change::parse(text)?.apply(&mut object)?;
        Ok(object["spec"].take())
    }

    #[test]
    fn options_of_the_load_fit_its_kind() {
        let change = |load: &str, field| {
            let mut object = json!({"spec": {"load": yaml(load)}});
            let option = "-u";
            Change::SetLoad { option, field, value: 7.into() }.apply(&mut object)?;
            Ok::<Value, String>(object["spec"]["load"].take())
        };
        assert_eq!(change("{users: 5}", "users").unwrap(), json!({"users": 7}));
        let arrivals = "{arrivalRate: 5, maxUsers: 5}";
        assert_eq!(change(arrivals, "users").unwrap(), json!({"arrivalRate": 5, "maxUsers": 7}));
        assert!(
            change(arrivals, "spawnRate").unwrap_err().starts_with("-u sets how fast users start")
        );
        let stages = change("{stages: [{users: 5, duration: 1m}]}", "users").unwrap_err();
        assert!(stages.starts_with("-u can't change a load in stages"), "{stages}");
    }

    fn yaml(text: &str) -> Value {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn fields_are_set_by_path() {
        let spec = changed("load.users=50").unwrap();
        assert_eq!(spec["load"]["users"], 50);
        let spec = changed("spec.target.headers={x-a: b}").unwrap();
        assert_eq!(spec["target"]["headers"], json!({"x-a": "b"}));
        for path in ["scenario.tasks[1].weight=7", "scenario.tasks[health].weight=7"] {
            let spec = changed(path).unwrap();
            assert_eq!(spec["scenario"]["tasks"][1]["weight"], 7, "{path}");
        }
        assert_eq!(changed("load.duration=30s").unwrap()["load"]["duration"], "30s");
    }

    #[test]
    fn names_of_tasks_may_have_dots() {
        let mut object = json!({"spec": {"scenario": {"tasks": [{"name": "v1.chat"}]}}});
        Change::parse("scenario.tasks[v1.chat].weight=3").unwrap().apply(&mut object).unwrap();
        assert_eq!(object["spec"]["scenario"]["tasks"][0]["weight"], 3);
    }

    #[test]
    fn wrong_paths_are_named() {
        for (text, message) in [
            ("load.users", "is not path=value"),
            ("load.users=[", "spec.load.users"),
            ("scenario.tasks[7].weight=1", "no item 7, the list has 2"),
            ("scenario.tasks[ws].weight=1", "no item is named ws, only: chat, health"),
        ] {
            let error = changed(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn thresholds_are_added() {
        let mut object = json!({"spec": {}});
        for _ in 0..2 {
            Change::AddThreshold(json!({"metric": "errorRate"})).apply(&mut object).unwrap();
        }
        assert_eq!(object["spec"]["thresholds"].as_array().unwrap().len(), 2);
        for mut other in [json!({"spec": []}), json!({"spec": {"thresholds": "x"}}), json!(5)] {
            let before = other.clone();
            Change::AddThreshold(json!({"metric": "errorRate"})).apply(&mut other).unwrap();
            assert_eq!(other, before);
        }
    }
}
