//! A bound on a quantity, as a threshold states it: `< 500ms`, `> 10/s`.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Quantity, QuantityError};

/// The side of a value that a bound allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `<`
    Below,
    /// `<=`
    AtMost,
    /// `>`
    Above,
    /// `>=`
    AtLeast,
}

/// A comparison with a quantity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// The side of `quantity` that satisfies the bound.
    pub comparison: Comparison,
    /// The value to compare with.
    pub quantity: Quantity,
}

/// The error for a text that is not a bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundError {
    /// The text does not start with a comparison.
    #[error("{text:?} is not a bound: start it with <, <=, > or >=, as in \"< 500ms\"")]
    Comparison {
        /// The text.
        text: String,
    },
    /// The text after the comparison has no known unit.
    #[error(transparent)]
    Quantity(#[from] QuantityError),
}

impl Comparison {
    /// True for `<` and `<=`.
    pub const fn is_upper(self) -> bool {
        matches!(self, Self::Below | Self::AtMost)
    }

    /// The comparison as it is written.
    pub const fn as_symbol(self) -> &'static str {
        match self {
            Self::Below => "<",
            Self::AtMost => "<=",
            Self::Above => ">",
            Self::AtLeast => ">=",
        }
    }
}

impl Bound {
    /// True when `observed` satisfies the bound; `None` when the units differ.
    pub fn is_met_by(&self, observed: Quantity) -> Option<bool> {
        let order = compare_quantities(observed, self.quantity)?;
        Some(match self.comparison {
            Comparison::Below => order == Ordering::Less,
            Comparison::AtMost => order != Ordering::Greater,
            Comparison::Above => order == Ordering::Greater,
            Comparison::AtLeast => order != Ordering::Less,
        })
    }
}

/// Orders two quantities; `None` when their units differ.
pub fn compare_quantities(a: Quantity, b: Quantity) -> Option<Ordering> {
    match (a, b) {
        (Quantity::Time(a), Quantity::Time(b)) => Some(a.cmp(&b)),
        (Quantity::Rate(a), Quantity::Rate(b)) => a.partial_cmp(&b),
        (Quantity::Percent(a), Quantity::Percent(b)) => a.partial_cmp(&b),
        _ => None,
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.comparison.as_symbol(), self.quantity)
    }
}

impl FromStr for Bound {
    type Err = BoundError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        let (comparison, rest) = [
            (Comparison::AtMost, "<="),
            (Comparison::AtLeast, ">="),
            (Comparison::Below, "<"),
            (Comparison::Above, ">"),
        ]
        .into_iter()
        .find_map(|(comparison, symbol)| Some((comparison, trimmed.strip_prefix(symbol)?)))
        .ok_or_else(|| BoundError::Comparison { text: text.to_owned() })?;
        Ok(Self { comparison, quantity: rest.trim_start().parse()? })
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(feature = "crd")]
impl schemars::JsonSchema for Bound {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bound".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "maxLength": 40,
            "x-kubernetes-validations": [
                {
                    "rule": "self.matches('^(<|<=|>|>=) ?[^ <>=]')",
                    "messageExpression": "'\"' + self + '\" is not a bound: start it with <, <=, > or >=, as in \"< 500ms\"'",
                },
                {
                    "rule": "!self.matches('^(<|<=|>|>=) ?[^ <>=]') || self.matches('^[<>=]+ ?(([0-9]+([.][0-9]*)?|[.][0-9]+)(%|/s)|(([0-9]+([.][0-9]*)?|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$')",
                    "messageExpression": "'\"' + self + '\" has no known unit: write a duration (500ms), a percentage (0.1%) or a rate (10/s)'",
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::{Duration, Percent, Rate};

    fn bound(text: &str) -> Bound {
        text.parse().unwrap()
    }

    #[test]
    fn bounds_print_as_they_are_written() {
        for text in ["< 500ms", "<= 1s", "> 10/s", ">= 2.5/s", "< 0.1%", "> 5%", "< 2m", "< 0.123%"]
        {
            assert_eq!(bound(text).to_string(), text);
        }
    }

    #[test]
    fn spaces_are_optional() {
        assert_eq!(bound("<500ms"), bound(" <  500ms "));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "500ms", "= 5s", "< 500", "< ", "<> 5s", "< -5s"] {
            assert!(text.parse::<Bound>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn only_inclusive_bounds_accept_their_value() {
        let edge = Quantity::Time(Duration::from_millis(500));
        assert_eq!(bound("< 500ms").is_met_by(edge), Some(false));
        assert_eq!(bound("<= 500ms").is_met_by(edge), Some(true));
        assert_eq!(bound("> 500ms").is_met_by(edge), Some(false));
        assert_eq!(bound(">= 500ms").is_met_by(edge), Some(true));
    }

    #[test]
    fn quantities_of_other_units_are_not_compared() {
        assert_eq!(bound("< 1s").is_met_by(Quantity::Rate(Rate::per_second(1.0))), None);
        assert_eq!(
            bound("< 1%").is_met_by(Quantity::Percent(Percent::from_fraction(0.005))),
            Some(true)
        );
    }
}
