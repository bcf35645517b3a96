//! Durations in Go's notation, as Kubernetes uses it: `500ms`, `2m`, `1h30m`.
//!
//! `kube_core::Duration` reads the same notation, but by floating-point arithmetic, so that not
//! every duration prints as it was written. This type reads and prints exactly, also rounds
//! measurements, and keeps Kubernetes crates out of the runner.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::round_significant;

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// A length of time in whole nanoseconds. Never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(u64);

/// The error for a text that is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration: write a number with a unit, such as 500ms, 30s, 2m or 1h30m")]
pub struct DurationError {
    text: String,
}

impl Duration {
    /// Zero nanoseconds.
    pub const ZERO: Self = Self(0);

    /// A duration of whole nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// A duration of whole milliseconds. Saturates at the largest duration.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(MILLISECOND))
    }

    /// A duration of whole seconds. Saturates at the largest duration.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(SECOND))
    }

    /// The nearest duration to a number of seconds; zero for negative numbers and NaN.
    pub fn from_secs_f64(secs: f64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "float casts saturate, and negatives become zero as documented"
        )]
        Self((secs * SECOND as f64).round() as u64)
    }

    /// Whole nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Seconds, with a fraction.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / SECOND as f64
    }

    /// Milliseconds, with a fraction.
    pub fn as_millis_f64(self) -> f64 {
        self.0 as f64 / MILLISECOND as f64
    }

    /// This duration as a [`std::time::Duration`].
    pub const fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0)
    }

    /// The sum. Saturates at the largest duration.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference. Saturates at zero.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The duration as the text of a measurement: four significant digits, `523.4ms`, `1.25s`.
    ///
    /// From one minute on, minutes and hours are written separately (`1m23.4s`), as in Go.
    pub fn rounded(self) -> String {
        let nanos = self.0;
        if nanos >= MINUTE {
            let tenth = SECOND / 10;
            return Self(nanos.saturating_add(tenth / 2) / tenth * tenth).to_string();
        }
        // The unit is chosen after rounding, so that 999.96 ms prints as `1s`.
        for (unit, name) in [(1, "ns"), (MICROSECOND, "µs"), (MILLISECOND, "ms")] {
            let text = round_significant(nanos as f64 / unit as f64, 4);
            if text.parse::<f64>().is_ok_and(|value| value < 1000.0) {
                return if text == "0" { "0s".to_owned() } else { format!("{text}{name}") };
            }
        }
        format!("{}s", round_significant(self.as_secs_f64(), 4))
    }
}

impl From<std::time::Duration> for Duration {
    fn from(value: std::time::Duration) -> Self {
        Self(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// Writes the exact value in the fewest units: `2m`, `1h30m`, `1.5s`, `250ms`.
impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let (hours, rest) = (self.0 / HOUR, self.0 % HOUR);
        let (minutes, rest) = (rest / MINUTE, rest % MINUTE);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        if rest == 0 {
            return Ok(());
        }
        let (unit, name) = match rest {
            r if r >= SECOND || hours + minutes > 0 => (SECOND, "s"),
            r if r >= MILLISECOND => (MILLISECOND, "ms"),
            r if r >= MICROSECOND => (MICROSECOND, "µs"),
            _ => (1, "ns"),
        };
        write!(f, "{}", rest / unit)?;
        let fraction = rest % unit;
        if fraction > 0 {
            let width = unit.ilog10() as usize;
            let digits = format!("{fraction:0width$}");
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str(name)
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_nanos(text).map(Self).ok_or_else(|| DurationError { text: text.to_owned() })
    }
}

/// Parses Go's grammar: decimal numbers, each with a unit, in any order.
fn parse_nanos(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    if text.is_empty() {
        return None;
    }
    let mut total = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, tail) = after.split_at(unit_len);
        let unit = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => MICROSECOND,
            "ms" => MILLISECOND,
            "s" => SECOND,
            "m" => MINUTE,
            "h" => HOUR,
            _ => return None,
        };
        total = total.checked_add(scale_number(number, unit)?)?;
        rest = tail;
    }
    Some(total)
}

/// `number` × `unit` by integer arithmetic. Digits below a nanosecond are cut off.
fn scale_number(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    let fraction = &fraction[..fraction.len().min(18)];
    let part = if fraction.is_empty() {
        0
    } else {
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        u64::try_from(fraction.parse::<u128>().ok()? * u128::from(unit) / scale).ok()?
    };
    whole.checked_mul(unit)?.checked_add(part)
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(feature = "crd")]
impl schemars::JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schema_between("0s", "87600h")
    }
}

/// The schema of a duration within two bounds, both included, with a message that names them.
#[cfg(feature = "crd")]
pub(crate) fn schema_between(min: &str, max: &str) -> schemars::Schema {
    schema_with_grammar(
        r"self.matches('^(0|(([0-9]+([.][0-9]*)?|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$')",
        min,
        max,
    )
}

/// Like [`schema_between`], but an empty text is valid too.
#[cfg(feature = "crd")]
pub(crate) fn optional_schema_between(min: &str, max: &str) -> schemars::Schema {
    let mut schema = schema_with_grammar(
        r"(self == '' || self.matches('^(0|(([0-9]+([.][0-9]*)?|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$'))",
        min,
        max,
    );
    if let Some(rule) = schema.pointer_mut("/x-kubernetes-validations/1/rule") {
        *rule = format!("self == '' || {}", rule.as_str().unwrap_or_default()).into();
    }
    schema
}

#[cfg(feature = "crd")]
fn schema_with_grammar(grammar: &str, min: &str, max: &str) -> schemars::Schema {
    // Not every CEL library reads `µs`.
    let spell = |limit: &str| limit.replace('µ', "u");
    let (cel_min, cel_max) = (spell(min), spell(max));
    schemars::json_schema!({
        "type": "string",
        "maxLength": 32,
        "x-kubernetes-validations": [
            {
                "rule": grammar,
                "messageExpression": "'\"' + self + '\" is not a duration: write a number with a unit, such as 500ms, 30s, 2m or 1h30m'",
            },
            {
                "rule": format!("!{grammar} || (duration(self) >= duration('{cel_min}') && duration(self) <= duration('{cel_max}'))"),
                "messageExpression": format!("'\"' + self + '\" is out of range: at least {min} and at most {max}'"),
            },
        ],
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Duration;

    fn nanos(text: &str) -> Option<u64> {
        text.parse::<Duration>().ok().map(Duration::as_nanos)
    }

    #[test]
    fn go_durations_are_parsed() {
        assert_eq!(nanos("500ms"), Some(500_000_000));
        assert_eq!(nanos("2m"), Some(120_000_000_000));
        assert_eq!(nanos("1h30m"), Some(5_400_000_000_000));
        assert_eq!(nanos("1.5s"), Some(1_500_000_000));
        assert_eq!(nanos(".5s"), Some(500_000_000));
        assert_eq!(nanos("250us"), Some(250_000));
        assert_eq!(nanos("250µs"), Some(250_000));
        assert_eq!(nanos("0"), Some(0));
        assert_eq!(nanos("0s"), Some(0));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "5", "-1s", "s", ".s", "1.2.3s", "1 s", "1d", "abc", "1s ", "99999999999h"]
        {
            assert_eq!(nanos(text), None, "{text:?}");
        }
    }

    #[test]
    fn measurements_print_with_four_digits() {
        for (nanos, text) in [
            (0, "0s"),
            (999, "999ns"),
            (523_440_000, "523.4ms"),
            (1_250_000_000, "1.25s"),
            (999_960_000, "1s"),
            (83_449_000_000, "1m23.4s"),
            (12_345, "12.35µs"),
        ] {
            assert_eq!(Duration::from_nanos(nanos).rounded(), text);
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(nanos in 0_u64..=u64::MAX / 2) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(duration.to_string().parse::<Duration>(), Ok(duration));
        }

        #[test]
        fn rounding_is_within_0_06_percent_and_parses(nanos in 1_u64..60_000_000_000) {
            let read: Duration = Duration::from_nanos(nanos).rounded().parse().unwrap();
            let error = (read.as_secs_f64() / (nanos as f64 / 1e9) - 1.0).abs();
            prop_assert!(error <= 0.0006, "{nanos} → {read}");
        }

        #[test]
        fn no_text_makes_parsing_panic(text in ".{0,24}") {
            let _ = text.parse::<Duration>();
        }
    }
}
