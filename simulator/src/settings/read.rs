//! From text to valid settings: what is left out is filled, what is wrong is named.

use std::fmt::Display;

use loadtest_core::values::Duration;
use serde_json::Value;

use super::{Failure, Failures, Latency, Limits, Settings, Stall};

/// Latencies are whole values: a patch that gives one replaces all of the old one, so that a
/// distribution never mixes with another one's parameters.
const WHOLE: [&str; 3] = ["latency", "tokenGap", "connectLatency"];

/// The longest latency and stall: beyond it a slip is likelier than a wish.
const LONGEST: Duration = Duration::from_secs(3600);

/// Why settings are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The text is not YAML.
    #[error("settings are not YAML: {0}")]
    Syntax(String),
    /// A field has the wrong type, or does not exist.
    #[error("settings field {field}: {problem}")]
    Shape {
        /// The field's path, such as `chat.errors.rate`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A field's value is out of its bounds.
    #[error("settings field {field} is {value}: {expected}")]
    Value {
        /// The field's path.
        field: String,
        /// The value as it was given.
        value: String,
        /// What would be right.
        expected: String,
    },
}

impl Settings {
    /// Reads settings from YAML (or JSON); what is left out has its default.
    ///
    /// # Errors
    /// When the text is no YAML, or a field is unknown or wrong; the message names it.
    pub fn from_yaml(text: &str) -> Result<Self, SettingsError> {
        let value: Value =
            serde_yaml::from_str(text).map_err(|error| SettingsError::Syntax(error.to_string()))?;
        // An empty file, or one of comments only, is a file that changes nothing.
        Self::from_json(if value.is_null() { Value::Object(serde_json::Map::new()) } else { value })
    }

    /// Reads settings from JSON; what is left out, or null, has its default.
    ///
    /// # Errors
    /// When a field is unknown or wrong; the message names it.
    pub fn from_json(given: Value) -> Result<Self, SettingsError> {
        Self::default().patched(given)
    }

    /// These settings with a JSON merge patch (RFC 7396) applied, except that a latency is always
    /// replaced whole. A null gives a field its default.
    ///
    /// # Errors
    /// When a field is unknown or wrong; the message names it.
    pub fn patched(&self, patch: Value) -> Result<Self, SettingsError> {
        if !patch.is_object() {
            let problem = format!("expected a map of settings, not {patch}");
            return Err(SettingsError::Shape { field: ".".to_owned(), problem });
        }
        let mut merged = to_value(self)?;
        merge(&mut merged, patch);
        let mut whole = to_value(&Self::default())?;
        merge(&mut whole, merged);
        let settings: Self =
            serde_path_to_error::deserialize(whole).map_err(|error| SettingsError::Shape {
                field: error.path().to_string(),
                problem: error.inner().to_string(),
            })?;
        settings.validate()?;
        Ok(settings)
    }

    /// Checks what types alone can't say.
    ///
    /// # Errors
    /// For the first value that is out of bounds.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let Self { seed: _, model_ids, chat, health, models, web_socket } = self;
        if model_ids.is_empty() {
            return Err(wrong("modelIds", "[]", "list at least one model id"));
        }
        if let Some(model) = model_ids.iter().find(|m| m.is_empty() || m.len() > 128) {
            return Err(wrong("modelIds", format!("{model:?}"), "a model id has 1 to 128 bytes"));
        }
        latency("chat.latency", &chat.latency)?;
        latency("chat.tokenGap", &chat.token_gap)?;
        if !(1..=100_000).contains(&chat.tokens) {
            return Err(wrong("chat.tokens", chat.tokens, "it must be 1 to 100000"));
        }
        stall("chat", chat.stall)?;
        failures("chat", &chat.errors, Failure::fits_chat)?;
        limits("chat", chat.limits)?;
        for (name, endpoint) in [("health", health), ("models", models)] {
            latency(&format!("{name}.latency"), &endpoint.latency)?;
            stall(name, endpoint.stall)?;
            failures(name, &endpoint.errors, Failure::fits_http)?;
            limits(name, endpoint.limits)?;
        }
        latency("webSocket.connectLatency", &web_socket.connect_latency)?;
        latency("webSocket.latency", &web_socket.latency)?;
        stall("webSocket", web_socket.stall)?;
        failures("webSocket", &web_socket.errors, Failure::fits_web_socket)?;
        limits("webSocket", web_socket.limits)
    }
}

fn to_value(settings: &Settings) -> Result<Value, SettingsError> {
    // Can't fail for these types; an error rather than a panic all the same.
    serde_json::to_value(settings).map_err(|error| SettingsError::Syntax(error.to_string()))
}

/// RFC 7396, except for [`WHOLE`].
fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, change) in patch {
                if change.is_null() {
                    target.remove(&name);
                } else if WHOLE.contains(&name.as_str()) {
                    target.insert(name, change);
                } else {
                    merge(target.entry(name).or_insert(Value::Null), change);
                }
            }
        }
        (target, patch) => {
            *target = patch;
            // A map that replaces something else is itself a patch: its nulls mean "not there".
            if let Value::Object(map) = target {
                map.retain(|_, value| !value.is_null());
            }
        }
    }
}

fn wrong(field: impl Into<String>, value: impl Display, expected: &str) -> SettingsError {
    SettingsError::Value {
        field: field.into(),
        value: value.to_string(),
        expected: expected.to_owned(),
    }
}

fn latency(field: &str, latency: &Latency) -> Result<(), SettingsError> {
    let longest = match *latency {
        Latency::Constant(value) => value,
        Latency::Uniform { min, max } if min > max => {
            return Err(wrong(format!("{field}.uniform.min"), min, "it exceeds max"));
        }
        Latency::LogNormal { sigma, .. } if !(0.0..=10.0).contains(&sigma) => {
            return Err(wrong(format!("{field}.lognormal.sigma"), sigma, "it must be 0 to 10"));
        }
        Latency::LogNormal { median, max, .. } if median > max => {
            return Err(wrong(format!("{field}.lognormal.median"), median, "it exceeds max"));
        }
        Latency::Uniform { max, .. } | Latency::LogNormal { max, .. } => max,
    };
    if longest > LONGEST {
        return Err(wrong(field, longest, "the longest latency is 1h"));
    }
    Ok(())
}

fn stall(endpoint: &str, stall: Option<Stall>) -> Result<(), SettingsError> {
    let Some(Stall { every, length }) = stall else { return Ok(()) };
    if length >= every {
        let field = format!("{endpoint}.stall.for");
        return Err(wrong(field, length, "it must be shorter than stall.every"));
    }
    if every > LONGEST {
        return Err(wrong(format!("{endpoint}.stall.every"), every, "the longest is 1h"));
    }
    Ok(())
}

fn failures(
    endpoint: &str,
    failures: &Failures,
    fits: fn(Failure) -> bool,
) -> Result<(), SettingsError> {
    let Failures { rate, kinds } = failures;
    if rate.value() > 1.0 {
        return Err(wrong(format!("{endpoint}.errors.rate"), rate, "it must be 0% to 100%"));
    }
    if kinds.is_empty() {
        let field = format!("{endpoint}.errors.kinds");
        return Err(wrong(field, "[]", "list at least one kind; for no errors set rate to 0%"));
    }
    for (index, &kind) in kinds.iter().enumerate() {
        let field = || format!("{endpoint}.errors.kinds[{index}]");
        if !fits(kind) {
            return Err(wrong(field(), kind.name(), "this endpoint has no such error"));
        }
        match kind {
            Failure::Status(code) | Failure::RejectUpgrade(code) if !(400..600).contains(&code) => {
                return Err(wrong(field(), code, "the status of an error is 400 to 599"));
            }
            // What RFC 6455 lets an endpoint send: 1004 to 1006 and 1015 never go over the wire.
            Failure::CloseCode(code) if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) => {
                let expected = "a close code that may be sent is 1000-1003, 1007-1014 or 3000-4999";
                return Err(wrong(field(), code, expected));
            }
            _ => {}
        }
    }
    Ok(())
}

fn limits(endpoint: &str, limits: Limits) -> Result<(), SettingsError> {
    let Limits { max_concurrent: _, max_rate } = limits;
    if let Some(rate) = max_rate.filter(|rate| !(0.001..=1e9).contains(&rate.value())) {
        let field = format!("{endpoint}.limits.maxRate");
        return Err(wrong(field, rate, "it must be 0.001/s to 1000000000/s"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_out_has_its_default() {
        let settings = Settings::from_yaml("health: {latency: 7ms}").unwrap();
        let mut expected = Settings::default();
        expected.health.latency = Latency::millis(7);
        assert_eq!(settings, expected);
        assert_eq!(Settings::from_yaml("# nothing\n").unwrap(), Settings::default());
    }

    #[test]
    fn settings_read_back_as_they_print() {
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
    fn a_patch_changes_what_it_names_and_null_resets() {
        let first = Settings::default()
            .patched(json!({"chat": {"tokens": 3, "stall": {"every": "10s", "for": "1s"}}}))
            .unwrap();
        assert_eq!((first.chat.tokens, first.chat.stall.is_some()), (3, true));
        let second = first.patched(json!({"chat": {"stall": null, "latency": "5ms"}})).unwrap();
        assert_eq!((second.chat.tokens, second.chat.stall), (3, None));
        assert_eq!(second.chat.latency, Latency::millis(5));
        assert_eq!(second.patched(json!({"chat": null})).unwrap(), Settings::default());
    }

    #[test]
    fn a_new_distribution_never_mixes_with_the_old_one() {
        let patch = json!({"chat": {"latency": {"uniform": {"min": "1ms", "max": "2ms"}}}});
        let settings = Settings::default().patched(patch).unwrap();
        assert!(matches!(settings.chat.latency, Latency::Uniform { .. }));
    }

    #[test]
    fn bad_settings_are_refused_with_field_and_value() {
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
