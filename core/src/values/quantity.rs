//! Rates (`10/s`), shares (`0.1%`), and the quantity that is one of them or a duration.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Duration, significant};

/// Events per second, never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Rate(f64);

/// A share of a whole: 0.01 is `1%`.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Share(f64);

/// A value with its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quantity {
    /// A length of time, such as `500ms`.
    Time(Duration),
    /// Events per second, such as `10/s`.
    Rate(Rate),
    /// A share, such as `0.1%`.
    Share(Share),
}

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} has no unit we know: write a duration (500ms), a share (0.1%) or a rate (10/s)")]
pub struct QuantityError {
    text: String,
}

impl Rate {
    /// A rate of events per second; zero for what is negative or no number.
    pub fn per_second(value: f64) -> Self {
        Self(if value.is_finite() { value.max(0.0) } else { 0.0 })
    }

    /// Events per second.
    pub const fn value(self) -> f64 {
        self.0
    }

    /// The rate as people read a measurement: four significant digits, `131.5/s`.
    pub fn rounded(self) -> String {
        format!("{}/s", significant(self.0, 4))
    }
}

impl Share {
    /// A share as a fraction of one; zero for what is negative or no number.
    pub fn of_one(value: f64) -> Self {
        Self(if value.is_finite() { value.max(0.0) } else { 0.0 })
    }

    /// The share that `part` is of `whole`; zero when there is no whole.
    pub fn of(part: u64, whole: u64) -> Self {
        if whole == 0 { Self(0.0) } else { Self(part as f64 / whole as f64) }
    }

    /// The share as a fraction of one.
    pub const fn value(self) -> f64 {
        self.0
    }

    /// The share as people read a measurement: four significant digits, `0.12%`.
    pub fn rounded(self) -> String {
        format!("{}%", significant(self.0 * 100.0, 4))
    }
}

/// Exact: a rate reads back as it was written.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

/// Exact: a share reads back as it was written.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The nearest short decimal: 0.001 * 100 is not quite 0.1 in binary.
        write!(f, "{}%", (self.0 * 100.0 * 1e9).round() / 1e9)
    }
}

impl Quantity {
    /// The quantity as people read a measurement: four significant digits.
    pub fn rounded(&self) -> String {
        match self {
            Self::Time(time) => time.rounded(),
            Self::Rate(rate) => rate.rounded(),
            Self::Share(share) => share.rounded(),
        }
    }
}

/// Exact.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => time.fmt(f),
            Self::Rate(rate) => rate.fmt(f),
            Self::Share(share) => share.fmt(f),
        }
    }
}

fn number(text: &str) -> Option<f64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let value = text.parse::<f64>().ok().filter(|v| digits && v.is_finite())?;
    Some(value)
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || QuantityError { text: text.to_owned() };
        if let Some(percent) = text.strip_suffix('%') {
            let share = number(percent.trim_end()).ok_or_else(unknown)? / 100.0;
            return Ok(Self::Share(Share(share)));
        }
        if let Some(rate) = text.strip_suffix("/s") {
            return Ok(Self::Rate(Rate(number(rate.trim_end()).ok_or_else(unknown)?)));
        }
        // A bare zero is a duration in Go, but a bound without a unit is a slip.
        if text == "0" {
            return Err(unknown());
        }
        text.parse().map(Self::Time).map_err(|_| unknown())
    }
}

macro_rules! as_text {
    ($name:ident, $unit:literal, $pattern:pat => $value:expr, $what:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                match text.parse() {
                    Ok($pattern) => Ok($value),
                    _ => Err(de::Error::custom(format!("{text:?} is not {}", $what))),
                }
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "maxLength": 32,
                    "x-kubernetes-validations": [{
                        "rule": format!("self.matches('^([0-9]+([.][0-9]*)?|[.][0-9]+){}$')", $unit),
                        "messageExpression": concat!("'\"' + self + '\" is not ", $what, "'"),
                    }, {
                        "rule": "self.matches('^0*[0-9]{0,6}([.][0-9]*)?[^0-9.]*$') || self.matches('^0*1000000[^0-9.]*$')",
                        "messageExpression": "'\"' + self + '\" is too much: at most a million'",
                    }],
                })
            }
        }
    };
}

as_text!(Rate, "/s", Quantity::Rate(rate) => rate, "a rate such as 10/s");
as_text!(Share, "%", Quantity::Share(share) => share, "a share such as 0.1%");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_known() {
        assert_eq!("10/s".parse(), Ok(Quantity::Rate(Rate(10.0))));
        assert_eq!("0.5%".parse(), Ok(Quantity::Share(Share(0.005))));
        assert_eq!("500ms".parse(), Ok(Quantity::Time(Duration::from_millis(500))));
    }

    #[test]
    fn a_number_without_unit_is_refused() {
        for text in ["500", "0", "", "%", "/s", "-1%", "1e3/s", "inf%", "NaN/s"] {
            assert!(text.parse::<Quantity>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn quantities_print_in_the_notation_of_bounds() {
        assert_eq!(Rate::per_second(131.52).rounded(), "131.5/s");
        assert_eq!(Share::of(12, 10_000).rounded(), "0.12%");
        assert_eq!(Share::of(0, 0).rounded(), "0%");
    }

    #[test]
    fn what_was_written_reads_back_the_same() {
        for text in ["33333.25/s", "0.5/s", "0.1%", "0.07%", "12.345%", "1m0.5s"] {
            assert_eq!(text.parse::<Quantity>().unwrap().to_string(), text);
        }
    }
}
