//! The statistics of a latency that thresholds can judge.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// One number of a distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistic {
    /// The smallest value.
    Min,
    /// The arithmetic mean.
    Mean,
    /// The quantile at a fraction of one: `p95` is 0.95.
    Quantile(f64),
    /// The largest value.
    Max,
}

/// The error for a text that is not a statistic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a statistic: use min, mean, max or a percentile such as p50, p95 or p99.9"
)]
pub struct StatisticError {
    text: String,
}

impl FromStr for Statistic {
    type Err = StatisticError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The grammar of the schema: one or two digits, and at most three decimals.
        let percentile = |digits: &str| {
            let (whole, decimals) = digits.split_once('.').unwrap_or((digits, "0"));
            let is_number = |text: &str, max: usize| {
                (1..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
            };
            let value = digits.parse::<f64>().ok()?;
            let is_valid = is_number(whole, 2) && is_number(decimals, 3) && value > 0.0;
            is_valid.then_some(Self::Quantile(value / 100.0))
        };
        match text {
            "min" => Some(Self::Min),
            "mean" => Some(Self::Mean),
            "max" => Some(Self::Max),
            _ => text.strip_prefix('p').and_then(percentile),
        }
        .ok_or_else(|| StatisticError { text: text.to_owned() })
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Min => f.write_str("min"),
            Self::Mean => f.write_str("mean"),
            Self::Max => f.write_str("max"),
            Self::Quantile(p) => write!(f, "p{}", (p * 1e5).round() / 1e3),
        }
    }
}

impl Serialize for Statistic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Statistic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_print_as_they_are_written() {
        for text in ["min", "mean", "max", "p50", "p95", "p99", "p99.9", "p99.999", "p1", "p0.001"]
        {
            assert_eq!(text.parse::<Statistic>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "", "p", "p0", "p100", "p-1", "p1e1", "median", "95", "P95", "pNaN", "p.5", "p5.",
            "p1.2345",
        ] {
            assert!(text.parse::<Statistic>().is_err(), "{text:?}");
        }
    }
}
