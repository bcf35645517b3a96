//! Texts with units: durations, quantities, bounds, statistics and thresholds. The text of a value must be
//! read as the same value.

use std::{fmt::Debug, str::FromStr};

use loadtest::fuzzing::read_threshold;
use loadtest_core::{
    Duration,
    metrics::Statistic,
    resource::Threshold,
    values::{Bound, Percent, Quantity, Rate},
};
use serde_json::Value;

/// Longer texts are refused by the schema of a LoadTest.
const MAX_TEXT: usize = 80;

/// Parses a text as each kind of value.
pub fn bounds(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.len() > MAX_TEXT {
        return;
    }
    check_value::<Duration>(text);
    check_value::<Quantity>(text);
    check_value::<Bound>(text);
    check_value::<Statistic>(text);
    check_json::<Rate>(text);
    check_json::<Percent>(text);
    if let Ok(duration) = text.parse::<Duration>() {
        check_value::<Duration>(&duration.rounded());
    }
    if let Ok(quantity) = text.parse::<Quantity>() {
        check_value::<Quantity>(&quantity.rounded());
    }
    if let Ok(row) = read_threshold(text) {
        check_threshold(&row);
    }
}

/// A value prints as a text that is the same value.
fn check_value<T: FromStr + ToString + PartialEq + Debug>(text: &str) {
    let Ok(value) = text.parse::<T>() else { return };
    let printed = value.to_string();
    assert_eq!(printed.parse::<T>().ok().as_ref(), Some(&value), "{printed:?}");
}

/// A value in JSON is written as JSON that is the same value.
fn check_json<T>(text: &str)
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + Debug,
{
    let Ok(value) = serde_json::from_value::<T>(Value::String(text.to_owned())) else { return };
    let json = serde_json::to_value(&value).expect("a value with a unit is a text");
    assert_eq!(serde_json::from_value::<T>(json.clone()).ok().as_ref(), Some(&value), "{json}");
}

/// A threshold of the command line is the same in our spelling.
fn check_threshold(row: &Value) {
    // The bound may still be no bound: the check of the whole LoadTest names it.
    let Ok(threshold) = serde_json::from_value::<Threshold>(row.clone()) else { return };
    let again = serde_json::to_value(&threshold).expect("a threshold has a JSON form");
    assert_eq!(serde_json::from_value::<Threshold>(again).ok(), Some(threshold), "{row}");
    let text = |name: &str| row[name].as_str().map(|part| format!("{part}:")).unwrap_or_default();
    let is_plain = row["task"].as_str().is_none_or(|task| !task.contains([':', '<', '>', '{']));
    if is_plain && row["statistic"].is_string() {
        let own =
            format!("{}{}{}{}", text("task"), text("metric"), text("statistic"), text("target"));
        let own = own.replacen(":<", "<", 1).replacen(":>", ">", 1);
        let own = own.trim_end_matches(':');
        // A task with the name of a metric needs the long form of the YAML file.
        if let Ok(same) = read_threshold(own) {
            assert!(same == *row || same["task"].is_null(), "{own:?} is {same}, not {row}");
        }
    }
}
