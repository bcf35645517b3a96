//! Parses settings from YAML and JSON: missing fields get their defaults, errors name the field.

use serde_json::Value;

use super::{Settings, SettingsError};

/// Fields that a patch replaces as a whole, so that the parameters of two distributions never mix.
const LATENCY_FIELDS: [&str; 3] = ["latency", "tokenGap", "connectLatency"];

impl Settings {
    /// Parses settings from YAML or JSON. Missing fields have their defaults.
    ///
    /// # Errors
    /// If the text is not YAML, or a field is unknown or invalid. The message names the field.
    pub fn from_yaml(text: &str) -> Result<Self, SettingsError> {
        let value: Value = serde_saphyr::from_str(text)
            .map_err(|error| SettingsError::Syntax(error.to_string()))?;
        // A file that is empty or has comments only is valid: it means the defaults.
        Self::from_json(if value.is_null() { Value::Object(serde_json::Map::new()) } else { value })
    }

    /// Parses settings from JSON. Fields that are missing or null have their defaults.
    ///
    /// # Errors
    /// If a field is unknown or invalid. The message names the field.
    pub fn from_json(given: Value) -> Result<Self, SettingsError> {
        Self::default().with_patch(given)
    }

    /// Returns these settings with a JSON merge patch (RFC 7396) applied.
    ///
    /// There are two differences to RFC 7396: a latency is always replaced as a whole, and null
    /// resets a field to its default.
    ///
    /// # Errors
    /// If a field is unknown or invalid. The message names the field.
    pub fn with_patch(&self, patch: Value) -> Result<Self, SettingsError> {
        if !patch.is_object() {
            let problem = format!("expected a map of settings, not {patch}");
            return Err(SettingsError::Shape { field: ".".to_owned(), problem });
        }
        let mut merged = to_value(self)?;
        merge_patch(&mut merged, patch);
        let mut complete = to_value(&Self::default())?;
        merge_patch(&mut complete, merged);
        let settings: Self =
            serde_path_to_error::deserialize(complete).map_err(|error| SettingsError::Shape {
                field: error.path().to_string(),
                problem: error.inner().to_string(),
            })?;
        settings.validate()?;
        Ok(settings)
    }
}

fn to_value(settings: &Settings) -> Result<Value, SettingsError> {
    // Serialization can't fail for these types. An error is still better than a panic.
    serde_json::to_value(settings).map_err(|error| SettingsError::Syntax(error.to_string()))
}

/// Applies a JSON merge patch (RFC 7396), but replaces [`LATENCY_FIELDS`] as a whole.
fn merge_patch(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, change) in patch {
                if change.is_null() {
                    target.remove(&name);
                } else if LATENCY_FIELDS.contains(&name.as_str()) {
                    target.insert(name, change);
                } else {
                    merge_patch(target.entry(name).or_insert(Value::Null), change);
                }
            }
        }
        (target, patch) => {
            *target = patch;
            // RFC 7396 treats a map that replaces another type as a patch, so its nulls are
            // removed.
            if let Value::Object(map) = target {
                map.retain(|_, value| !value.is_null());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::Latency, *};

    #[test]
    fn missing_fields_have_their_defaults() {
        let settings = Settings::from_yaml("health: {latency: 7ms}").unwrap();
        let mut expected = Settings::default();
        expected.health.latency = Latency::from_millis(7);
        assert_eq!(settings, expected);
        assert_eq!(Settings::from_yaml("# nothing\n").unwrap(), Settings::default());
    }

    #[test]
    fn settings_survive_a_json_round_trip() {
        let text = "
seed: 7
chat:
  latency: {uniform: {min: 10ms, max: 20ms}}
  stall: {every: 10s, for: 1s}
  errors: {rate: 1%, kinds: [{status: 503}, reset, hang, garbage, streamError, cutShort]}
  limits: {maxConcurrent: 5, maxRate: 100/s}
webSocket: {errors: {rate: 2.5%, kinds: [{closeCode: 1011}, {rejectUpgrade: 503}]}}
";
        let settings = Settings::from_yaml(text).unwrap();
        let printed = serde_json::to_value(&settings).unwrap();
        assert_eq!(Settings::from_json(printed).unwrap(), settings);
    }

    #[test]
    fn patch_changes_its_fields_and_null_resets_them() {
        let first = Settings::default()
            .with_patch(json!({"chat": {"tokens": 3, "stall": {"every": "10s", "for": "1s"}}}))
            .unwrap();
        assert_eq!((first.chat.tokens, first.chat.stall.is_some()), (3, true));
        let second = first.with_patch(json!({"chat": {"stall": null, "latency": "5ms"}})).unwrap();
        assert_eq!((second.chat.tokens, second.chat.stall), (3, None));
        assert_eq!(second.chat.latency, Latency::from_millis(5));
        assert_eq!(second.with_patch(json!({"chat": null})).unwrap(), Settings::default());
    }

    #[test]
    fn new_distribution_replaces_all_old_parameters() {
        let patch = json!({"chat": {"latency": {"uniform": {"min": "1ms", "max": "2ms"}}}});
        let settings = Settings::default().with_patch(patch).unwrap();
        assert!(matches!(settings.chat.latency, Latency::Uniform { .. }));
    }

    #[test]
    fn invalid_settings_are_refused_with_field_and_value() {
        for (text, words) in [
            ("chat: {latency: soon}", ["chat.latency", "soon"]),
            ("chat: {latency: {gamma: {}}}", ["chat.latency", "gamma"]),
            ("chat: {latency: {uniform: {min: 2s, max: 1s}}}", ["chat.latency.uniform.min", "2s"]),
            ("chat: {latency: 2h}", ["chat.latency", "2h"]),
            ("chat: {tokens: 0}", ["chat.tokens", "0"]),
            ("chat: {tokens: many}", ["chat.tokens", "many"]),
            ("chat: {tokenGap: 5}", ["chat.tokenGap", "5"]),
            ("chat: {errors: {rate: 150%}}", ["chat.errors.rate", "150%"]),
            ("chat: {errors: {rate: 1}}", ["chat.errors.rate", "1"]),
            ("chat: {errors: {kinds: [{status: 200}]}}", ["chat.errors.kinds[0]", "200"]),
            ("chat: {errors: {kinds: [reset, oops]}}", ["chat.errors.kinds[1]", "oops"]),
            ("health: {errors: {kinds: [streamError]}}", ["health.errors.kinds[0]", "streamError"]),
            ("webSocket: {errors: {kinds: [garbage]}}", ["webSocket.errors.kinds[0]", "garbage"]),
            ("webSocket: {errors: {kinds: [{closeCode: 1006}]}}", ["webSocket.errors", "1006"]),
            ("health: {stall: {every: 1s, for: 1s}}", ["health.stall.for", "1s"]),
            ("health: {limits: {maxRate: 0/s}}", ["health.limits.maxRate", "0/s"]),
            ("models: {latncy: 1s}", ["models", "latncy"]),
            ("modelIds: []", ["modelIds", "[]"]),
            ("chats: {}", ["chats", "unknown field"]),
            ("[]", ["map of settings", "[]"]),
        ] {
            let message = Settings::from_yaml(text).unwrap_err().to_string();
            for word in words {
                assert!(message.contains(word), "{text}: {message}");
            }
        }
        assert!(matches!(Settings::from_yaml("a: ["), Err(SettingsError::Syntax(_))));
    }
}
