//! Latency distributions and stalls.

use std::{f64::consts::TAU, fmt, str::FromStr};

use loadtest_core::values::Duration;
use rand::Rng;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A distribution that latencies are drawn from.
///
/// Written as a duration, `200ms`, or as a map with the distribution's name:
/// `{uniform: {min: 10ms, max: 20ms}}`, `{lognormal: {median: 120ms, sigma: 0.3, max: 450ms}}`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Latency {
    /// Always the same.
    Constant(Duration),
    /// Anything between two durations, each as likely.
    Uniform {
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
    /// Log-normal, as the latencies of real services roughly are.
    LogNormal {
        /// Half of all are shorter.
        median: Duration,
        /// Standard deviation of the logarithm; 0.3 puts the p95 at 1.64 medians.
        sigma: f64,
        /// Longer ones are cut to this.
        max: Duration,
    },
}

/// Why a text is no latency.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a latency: write a duration (200ms), {{uniform: {{min: 10ms, max: 20ms}}}} \
     or {{lognormal: {{median: 120ms, sigma: 0.3, max: 450ms}}}}: {cause}"
)]
pub struct LatencyError {
    text: String,
    cause: String,
}

/// Times at which an endpoint answers nothing: what would have gone out waits for the end.
///
/// Counted from the simulator's start: stalls begin at `every`, twice `every`, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stall {
    /// From one stall's beginning to the next one's.
    pub every: Duration,
    /// How long each takes.
    #[serde(rename = "for")]
    pub length: Duration,
}

impl Latency {
    /// Always this many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self::Constant(Duration::from_millis(millis))
    }

    /// Draws one latency, in nanoseconds.
    pub fn draw(&self, rng: &mut impl Rng) -> u64 {
        match *self {
            Self::Constant(value) => value.as_nanos(),
            // Settings are checked when read; the maximum here keeps a hand-made one from panicking.
            Self::Uniform { min, max } => {
                rng.random_range(min.as_nanos()..=max.as_nanos().max(min.as_nanos()))
            }
            Self::LogNormal { median, sigma, max } => {
                let factor = (sigma * standard_normal(rng)).exp();
                Duration::from_secs_f64(median.as_secs_f64() * factor).min(max).as_nanos()
            }
        }
    }
}

/// Box and Muller's transform of two uniform draws (Ann. Math. Stat. 29, 1958).
fn standard_normal(rng: &mut impl Rng) -> f64 {
    // 1 − u is in (0, 1], where the logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (TAU * rng.random::<f64>()).cos()
}

impl Stall {
    /// When an answer that is due at `due` may go out; both in nanoseconds since the start.
    pub fn release(&self, due: u64) -> u64 {
        let every = self.every.as_nanos().max(1);
        let into = due % every;
        if due >= every && into < self.length.as_nanos() {
            due - into + self.length.as_nanos()
        } else {
            due
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Range {
    min: Duration,
    max: Duration,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LogNormal {
    median: Duration,
    sigma: f64,
    max: Duration,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Named {
    Uniform(Range),
    Lognormal(LogNormal),
}

impl From<Named> for Latency {
    fn from(named: Named) -> Self {
        match named {
            Named::Uniform(Range { min, max }) => Self::Uniform { min, max },
            Named::Lognormal(LogNormal { median, sigma, max }) => {
                Self::LogNormal { median, sigma, max }
            }
        }
    }
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Constant(value) => value.serialize(serializer),
            Self::Uniform { min, max } => Named::Uniform(Range { min, max }).serialize(serializer),
            Self::LogNormal { median, sigma, max } => {
                Named::Lognormal(LogNormal { median, sigma, max }).serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Latency;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 200ms, or a map with uniform or lognormal")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Latency, E> {
                text.parse().map(Latency::Constant).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Latency, A::Error> {
                Named::deserialize(MapAccessDeserializer::new(map)).map(Latency::from)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Reads what settings may say, for the command line.
impl FromStr for Latency {
    type Err = LatencyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |cause: String| LatencyError { text: text.to_owned(), cause };
        // Through JSON values, as settings files are: YAML's own enums would want tags.
        let value: serde_json::Value =
            serde_yaml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        serde_json::from_value(value).map_err(|error| wrong(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    fn sorted(latency: Latency) -> Vec<u64> {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut drawn: Vec<_> = (0..20_000).map(|_| latency.draw(&mut rng)).collect();
        drawn.sort_unstable();
        drawn
    }

    #[test]
    fn a_lognormal_has_its_median_and_never_exceeds_its_maximum() {
        let drawn = sorted("{lognormal: {median: 120ms, sigma: 0.3, max: 200ms}}".parse().unwrap());
        assert!((118_000_000..122_000_000).contains(&drawn[10_000]), "{}", drawn[10_000]);
        // One standard deviation up: 120 ms · e^0.3 = 162 ms.
        assert!((159_000_000..165_000_000).contains(&drawn[16_827]), "{}", drawn[16_827]);
        assert_eq!(drawn[19_999], 200_000_000);
    }

    #[test]
    fn a_uniform_latency_stays_between_its_ends() {
        let drawn = sorted("{uniform: {min: 10ms, max: 20ms}}".parse().unwrap());
        assert!(drawn[0] >= 10_000_000 && drawn[19_999] <= 20_000_000);
        assert!((14_800_000..15_200_000).contains(&drawn[10_000]));
    }

    #[test]
    fn latencies_print_as_they_are_read() {
        for text in [
            r#""200ms""#,
            r#"{"uniform":{"min":"10ms","max":"20ms"}}"#,
            r#"{"lognormal":{"median":"120ms","sigma":0.3,"max":"450ms"}}"#,
        ] {
            let latency: Latency = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&latency).unwrap(), text);
        }
    }

    #[test]
    fn what_is_no_latency_is_refused_with_the_text() {
        for text in ["5", "soon", "{gamma: {}}", "{uniform: {min: 5ms}}", ""] {
            let error = text.parse::<Latency>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?} is not a latency")), "{error}");
        }
    }

    #[test]
    fn answers_due_in_a_stall_wait_for_its_end() {
        let stall = Stall { every: Duration::from_nanos(100), length: Duration::from_nanos(30) };
        for (due, out) in [(0, 0), (29, 29), (99, 99), (100, 130), (129, 130), (130, 130)] {
            assert_eq!(stall.release(due), out);
        }
        assert_eq!(stall.release(1_000_015), 1_000_030);
    }
}
