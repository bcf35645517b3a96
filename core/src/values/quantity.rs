//! Rates (`10/s`), percentages (`0.1%`), and the quantity that is one of these or a duration.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Duration, round_significant};

/// A number of events per second. Never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Rate(f64);

/// A part of a whole. Never negative; the fraction 0.01 is `1%`.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Percent(f64);

/// A value with its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quantity {
    /// A duration, such as `500ms`.
    Time(Duration),
    /// A rate, such as `10/s`.
    Rate(Rate),
    /// A percentage, such as `0.1%`.
    Percent(Percent),
}

/// The error for a text that is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} has no known unit: write a duration (500ms), a percentage (0.1%) or a rate (10/s)"
)]
pub struct QuantityError {
    text: String,
}

impl Rate {
    /// A rate of events per second; zero for negative numbers, NaN and infinity.
    pub fn per_second(value: f64) -> Self {
        Self(if value.is_finite() { value.max(0.0) } else { 0.0 })
    }

    /// Events per second.
    pub const fn value(self) -> f64 {
        self.0
    }

    /// The rate as the text of a measurement: four significant digits, `131.5/s`.
    pub fn rounded(self) -> String {
        format!("{}/s", round_significant(self.0, 4))
    }
}

impl Percent {
    /// The percentage of a fraction of one; zero for negative numbers, NaN and infinity.
    pub fn from_fraction(value: f64) -> Self {
        Self(if value.is_finite() { value.max(0.0) } else { 0.0 })
    }

    /// `part` as a percentage of `whole`; zero when `whole` is zero.
    pub fn of(part: u64, whole: u64) -> Self {
        if whole == 0 { Self(0.0) } else { Self(part as f64 / whole as f64) }
    }

    /// The percentage as a fraction of one.
    pub const fn as_fraction(self) -> f64 {
        self.0
    }

    /// The percentage as the text of a measurement: four significant digits, `0.12%`. Near 100 %, two significant digits
    /// of what is missing: `99.996%`.
    pub fn rounded(self) -> String {
        let missing = 1.0 - self.0;
        if missing <= 0.0 || missing >= 0.5 {
            return format!("{}%", round_significant(self.0 * 100.0, 4));
        }
        // For 0.004 % missing, 4 decimals.
        let first_digit = -(missing * 100.0).log10().floor();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "2 to 16")]
        let decimals = (first_digit + 1.0).clamp(2.0, 16.0) as usize;
        let text = format!("{:.decimals$}", self.0 * 100.0);
        format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// Writes the exact rate, so that it parses to the same value.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

/// Writes the exact percentage, so that it parses to the same value.
impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not by a multiplication: 0.001 * 100 is not exactly 0.1 in binary.
        write!(f, "{}%", hundredfold_of(&self.0.to_string()))
    }
}

impl Quantity {
    /// The quantity as the text of a measurement: four significant digits.
    pub fn rounded(&self) -> String {
        match self {
            Self::Time(time) => time.rounded(),
            Self::Rate(rate) => rate.rounded(),
            Self::Percent(percent) => percent.rounded(),
        }
    }
}

/// Writes the exact quantity.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => time.fmt(f),
            Self::Rate(rate) => rate.fmt(f),
            Self::Percent(percent) => percent.fmt(f),
        }
    }
}

/// A hundred times a decimal number without an exponent, in the same notation.
fn hundredfold_of(decimal: &str) -> String {
    let (whole, fraction) = decimal.split_once('.').unwrap_or((decimal, ""));
    let (moved, rest) = fraction.split_at(fraction.len().min(2));
    let whole = format!("{whole}{moved:0<2}");
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    };
    if rest.is_empty() { whole.to_owned() } else { format!("{whole}.{rest}") }
}

/// Parses a percentage without its sign to a fraction of one. The result is the number nearest to the exact fraction, as
/// that of a division of two counts is: 99.9 gives 0.999, and 99.9 / 100.0 would give a larger number.
fn parse_fraction(text: &str) -> Option<f64> {
    parse_decimal(text)?;
    format!("{text}e-2").parse().ok()
}

/// Parses digits with an optional decimal point: no sign, no exponent.
fn parse_decimal(text: &str) -> Option<f64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.parse::<f64>().ok().filter(|value| digits && value.is_finite())
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || QuantityError { text: text.to_owned() };
        if let Some(percent) = text.strip_suffix('%') {
            let fraction = parse_fraction(percent.trim_end()).ok_or_else(unknown)?;
            return Ok(Self::Percent(Percent(fraction)));
        }
        if let Some(rate) = text.strip_suffix("/s") {
            return Ok(Self::Rate(Rate(parse_decimal(rate.trim_end()).ok_or_else(unknown)?)));
        }
        // A bare zero is a duration in Go, but in a bound a missing unit is more likely a mistake.
        if text == "0" {
            return Err(unknown());
        }
        text.parse().map(Self::Time).map_err(|_| unknown())
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.parse() {
            Ok(Quantity::Percent(percent)) => Ok(percent),
            _ => Err(de::Error::custom(format!("{text:?} is not a percentage such as 0.1%"))),
        }
    }
}

/// Reads `50`, `"50"` and `"0.5/s"`.
impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rate such as 50 or 0.5/s")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Rate, E> {
                Ok(Rate(value as f64))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Rate, E> {
                let value = u64::try_from(value);
                value
                    .map_err(|_| E::custom("a rate is never negative"))
                    .and_then(|v| self.visit_u64(v))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
                let digits = text.strip_suffix("/s").unwrap_or(text).trim_end();
                parse_decimal(digits)
                    .map(Rate)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// An integer or a text, as the API server's `x-kubernetes-int-or-string` takes it.
#[cfg(feature = "crd")]
impl schemars::JsonSchema for Rate {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        const GRAMMAR: &str = "string(self).matches('^([0-9]+([.][0-9]*)?|[.][0-9]+)(/s)?$')";
        schemars::json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": GRAMMAR,
                "messageExpression": "'\"' + string(self) + '\" is not a rate: write a number of events per second, such as 50 or 0.5/s'",
            }, {
                "rule": format!("!{GRAMMAR} || string(self).matches('^0*[0-9]{{0,6}}([.][0-9]*)?(/s)?$') || string(self).matches('^0*1000000(/s)?$')"),
                "messageExpression": "'\"' + string(self) + '\" is too much: at most a million'",
            }],
        })
    }
}

/// A rate above zero.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, PartialOrd)]
#[serde(try_from = "Rate", into = "Rate")]
pub struct PositiveRate(Rate);

impl PositiveRate {
    /// A rate; `None` for zero.
    pub fn new(rate: Rate) -> Option<Self> {
        (rate.value() > 0.0).then_some(Self(rate))
    }

    /// The rate.
    pub const fn get(self) -> Rate {
        self.0
    }
}

impl TryFrom<Rate> for PositiveRate {
    type Error = &'static str;

    fn try_from(rate: Rate) -> Result<Self, Self::Error> {
        Self::new(rate).ok_or("the rate must be above 0")
    }
}

impl From<PositiveRate> for Rate {
    fn from(rate: PositiveRate) -> Self {
        rate.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_parsed() {
        assert_eq!("10/s".parse(), Ok(Quantity::Rate(Rate(10.0))));
        assert_eq!("0.5%".parse(), Ok(Quantity::Percent(Percent(0.005))));
        assert_eq!("500ms".parse(), Ok(Quantity::Time(Duration::from_millis(500))));
    }

    #[test]
    fn quantities_without_a_unit_are_refused() {
        for text in ["500", "0", "", "%", "/s", "-1%", "1e3/s", "inf%", "NaN/s"] {
            assert!(text.parse::<Quantity>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn quantities_print_in_the_notation_of_bounds() {
        assert_eq!(Rate::per_second(131.52).rounded(), "131.5/s");
        assert_eq!(Percent::of(12, 10_000).rounded(), "0.12%");
        assert_eq!(Percent::of(0, 0).rounded(), "0%");
        for (part, text) in [
            (99_996, "99.996%"),
            (99_990, "99.99%"),
            (99_500, "99.5%"),
            (99_877, "99.88%"),
            (66_667, "66.67%"),
            (33_333, "33.33%"),
            (100_000, "100%"),
            (200_000, "200%"),
        ] {
            assert_eq!(Percent::of(part, 100_000).rounded(), text);
        }
    }

    #[test]
    fn quantities_print_as_they_were_written() {
        for text in ["33333.25/s", "0.5/s", "0.1%", "0.07%", "12.345%", "1m0.5s", "0.00000000001%"]
        {
            assert_eq!(text.parse::<Quantity>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn percentages_are_equal_to_the_same_share_of_counts() {
        for (text, part, whole) in [("99.9%", 9_990, 10_000), ("0.7%", 7, 1_000), (".1%", 1, 1_000)]
        {
            assert_eq!(text.parse(), Ok(Quantity::Percent(Percent::of(part, whole))), "{text}");
        }
    }

    #[test]
    fn any_percentage_prints_so_that_it_parses_to_itself() {
        let largest = format!("{}%", f64::MAX);
        for text in ["0.12345678901234567%", "33.333333333333336%", &largest] {
            let value: Quantity = text.parse().unwrap();
            assert_eq!(value.to_string().parse(), Ok(value), "{text}");
        }
    }

    #[test]
    fn rates_are_numbers_or_texts() {
        let rate = |json: &str| serde_json::from_str::<Rate>(json).map(Rate::value).ok();
        for (json, value) in [
            ("50", Some(50.0)),
            ("\"50\"", Some(50.0)),
            ("\"50/s\"", Some(50.0)),
            ("\"0.5/s\"", Some(0.5)),
            ("\"\"", None),
            ("\"50/m\"", None),
            ("-1", None),
            ("0.5", None),
        ] {
            assert_eq!(rate(json), value, "{json}");
        }
        assert_eq!(PositiveRate::new(Rate::per_second(0.0)), None);
        assert!(serde_json::from_str::<PositiveRate>("0").is_err());
    }
}
