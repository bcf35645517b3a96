//! A bound on a quantity, as a threshold states it: `< 500ms`, `> 10/s`.

use std::{cmp::Ordering, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Quantity, QuantityError};

/// Which side of its value a bound allows.
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
    /// The side that holds.
    pub comparison: Comparison,
    /// The value compared with.
    pub quantity: Quantity,
}

/// Why a text is no bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundError {
    /// It does not start with a comparison.
    #[error("{text:?} is not a bound: start it with <, <=, > or >=, as in \"< 500ms\"")]
    Comparison {
        /// The text as it was given.
        text: String,
    },
    /// What follows the comparison has no known unit.
    #[error(transparent)]
    Quantity(#[from] QuantityError),
}

impl Comparison {
    /// True for `<` and `<=`.
    pub const fn is_upper(self) -> bool {
        matches!(self, Self::Below | Self::AtMost)
    }

    const fn symbol(self) -> &'static str {
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
    pub fn holds(&self, observed: Quantity) -> Option<bool> {
        let order = compare(observed, self.quantity)?;
        Some(match self.comparison {
            Comparison::Below => order == Ordering::Less,
            Comparison::AtMost => order != Ordering::Greater,
            Comparison::Above => order == Ordering::Greater,
            Comparison::AtLeast => order != Ordering::Less,
        })
    }
}

/// Orders two quantities of the same unit.
pub fn compare(a: Quantity, b: Quantity) -> Option<Ordering> {
    match (a, b) {
        (Quantity::Time(a), Quantity::Time(b)) => Some(a.cmp(&b)),
        (Quantity::Rate(a), Quantity::Rate(b)) => a.partial_cmp(&b),
        (Quantity::Share(a), Quantity::Share(b)) => a.partial_cmp(&b),
        _ => None,
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.comparison.symbol(), self.quantity)
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

impl JsonSchema for Bound {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bound".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 40,
            "x-kubernetes-validations": [
                {
                    "rule": "self.matches('^(<|<=|>|>=) ?[^ <>=]')",
                    "messageExpression": "'\"' + self + '\" is not a bound: start it with <, <=, > or >=, as in \"< 500ms\"'",
                },
                {
                    "rule": "!self.matches('^(<|<=|>|>=) ?[^ <>=]') || self.matches('^[<>=]+ ?(([0-9]+([.][0-9]*)?|[.][0-9]+)(%|/s)|(([0-9]+([.][0-9]*)?|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$')",
                    "messageExpression": "'\"' + self + '\" has no unit we know: write a duration (500ms), a share (0.1%) or a rate (10/s)'",
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::{Duration, Rate, Share};

    fn bound(text: &str) -> Bound {
        text.parse().unwrap()
    }

    #[test]
    fn a_bound_prints_as_it_is_written() {
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
    fn what_is_no_bound_is_refused() {
        for text in ["", "500ms", "= 5s", "< 500", "< ", "<> 5s", "< -5s"] {
            assert!(text.parse::<Bound>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_edge_belongs_to_the_inclusive_bounds_only() {
        let edge = Quantity::Time(Duration::from_millis(500));
        assert_eq!(bound("< 500ms").holds(edge), Some(false));
        assert_eq!(bound("<= 500ms").holds(edge), Some(true));
        assert_eq!(bound("> 500ms").holds(edge), Some(false));
        assert_eq!(bound(">= 500ms").holds(edge), Some(true));
    }

    #[test]
    fn units_are_never_mixed() {
        assert_eq!(bound("< 1s").holds(Quantity::Rate(Rate::per_second(1.0))), None);
        assert_eq!(bound("< 1%").holds(Quantity::Share(Share::of_one(0.005))), Some(true));
    }
}
