//! Latency distributions and stalls.

use std::{f64::consts::TAU, fmt, str::FromStr};

use loadtest_core::values::Duration;
use rand::Rng;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A distribution of latencies.
///
/// In settings, a latency is a duration, `200ms`, or a map with the distribution's name:
/// `{uniform: {min: 10ms, max: 20ms}}`, `{lognormal: {median: 120ms, sigma: 0.3, max: 450ms}}`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Latency {
    /// The same latency for every request.
    Constant(Duration),
    /// A uniform distribution between two durations.
    Uniform {
        /// The shortest latency.
        min: Duration,
        /// The longest latency.
        max: Duration,
    },
    /// A log-normal distribution, which resembles the latencies of real services.
    LogNormal {
        /// Half of the latencies are shorter.
        median: Duration,
        /// Standard deviation of the logarithm; 0.3 puts the p95 at 1.64 medians.
        sigma: f64,
        /// Longer latencies are cut to this.
        max: Duration,
    },
}

/// The reason why a text is not a latency.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a latency: write a duration (200ms), {{uniform: {{min: 10ms, max: 20ms}}}} \
     or {{lognormal: {{median: 120ms, sigma: 0.3, max: 450ms}}}}: {cause}"
)]
pub struct LatencyError {
    text: String,
    cause: String,
}

/// Regular stalls, during which an endpoint sends no responses; they wait for the stall's end.
///
/// The first stall begins `every` after the simulator's start, the second one twice `every`, and
/// so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stall {
    /// Time from the beginning of one stall to the beginning of the next stall.
    pub every: Duration,
    /// The length of each stall.
    #[serde(rename = "for")]
    pub length: Duration,
}

impl Latency {
    /// Returns a constant latency.
    pub const fn from_millis(millis: u64) -> Self {
        Self::Constant(Duration::from_millis(millis))
    }

    /// Samples one latency, in nanoseconds.
    pub fn sample_nanos(&self, rng: &mut impl Rng) -> u64 {
        match *self {
            Self::Constant(value) => value.as_nanos(),
            // `Settings::validate` refuses `min > max`; `max` here keeps an unchecked value from
            // panicking.
            Self::Uniform { min, max } => {
                rng.random_range(min.as_nanos()..=max.as_nanos().max(min.as_nanos()))
            }
            Self::LogNormal { median, sigma, max } => {
                let factor = (sigma * sample_standard_normal(rng)).exp();
                Duration::from_secs_f64(median.as_secs_f64() * factor).min(max).as_nanos()
            }
        }
    }
}

/// Samples the standard normal distribution.
///
/// Uses Box and Muller's transform of two uniform samples (Ann. Math. Stat. 29, 1958).
fn sample_standard_normal(rng: &mut impl Rng) -> f64 {
    // 1 − u is in (0, 1], so its logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (TAU * rng.random::<f64>()).cos()
}

impl Stall {
    /// Returns the time at which a response that is due at `due` may be sent.
    ///
    /// Both times are nanoseconds since the start.
    pub fn send_time(&self, due: u64) -> u64 {
        let every = self.every.as_nanos().max(1);
        let into_period = due % every;
        if due >= every && into_period < self.length.as_nanos() {
            due - into_period + self.length.as_nanos()
        } else {
            due
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UniformParameters {
    min: Duration,
    max: Duration,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LogNormalParameters {
    median: Duration,
    sigma: f64,
    max: Duration,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum NamedDistribution {
    Uniform(UniformParameters),
    Lognormal(LogNormalParameters),
}

impl From<NamedDistribution> for Latency {
    fn from(named: NamedDistribution) -> Self {
        match named {
            NamedDistribution::Uniform(UniformParameters { min, max }) => {
                Self::Uniform { min, max }
            }
            NamedDistribution::Lognormal(LogNormalParameters { median, sigma, max }) => {
                Self::LogNormal { median, sigma, max }
            }
        }
    }
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Constant(value) => value.serialize(serializer),
            Self::Uniform { min, max } => {
                NamedDistribution::Uniform(UniformParameters { min, max }).serialize(serializer)
            }
            Self::LogNormal { median, sigma, max } => {
                NamedDistribution::Lognormal(LogNormalParameters { median, sigma, max })
                    .serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LatencyVisitor;

        impl<'de> Visitor<'de> for LatencyVisitor {
            type Value = Latency;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 200ms, or a map with uniform or lognormal")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Latency, E> {
                text.parse().map(Latency::Constant).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Latency, A::Error> {
                NamedDistribution::deserialize(MapAccessDeserializer::new(map)).map(Latency::from)
            }
        }

        deserializer.deserialize_any(LatencyVisitor)
    }
}

/// Parses the notation of settings files, for the command line.
impl FromStr for Latency {
    type Err = LatencyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |cause: String| LatencyError { text: text.to_owned(), cause };
        // Settings files are converted to JSON values, too: YAML's own enums would require tags.
        let value: serde_json::Value =
            serde_saphyr::from_str(text).map_err(|error| wrong(error.to_string()))?;
        serde_json::from_value(value).map_err(|error| wrong(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    fn sorted_samples(latency: Latency) -> Vec<u64> {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut samples: Vec<_> = (0..20_000).map(|_| latency.sample_nanos(&mut rng)).collect();
        samples.sort_unstable();
        samples
    }

    #[test]
    fn lognormal_latencies_have_the_median_and_the_maximum() {
        let samples =
            sorted_samples("{lognormal: {median: 120ms, sigma: 0.3, max: 200ms}}".parse().unwrap());
        assert!((118_000_000..122_000_000).contains(&samples[10_000]), "{}", samples[10_000]);
        // One standard deviation up: 120 ms · e^0.3 = 162 ms.
        assert!((159_000_000..165_000_000).contains(&samples[16_827]), "{}", samples[16_827]);
        assert_eq!(samples[19_999], 200_000_000);
    }

    #[test]
    fn uniform_latencies_stay_between_min_and_max() {
        let samples = sorted_samples("{uniform: {min: 10ms, max: 20ms}}".parse().unwrap());
        assert!(samples[0] >= 10_000_000 && samples[19_999] <= 20_000_000);
        assert!((14_800_000..15_200_000).contains(&samples[10_000]));
    }

    #[test]
    fn latencies_survive_a_json_round_trip() {
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
    fn invalid_latencies_are_refused_with_the_text() {
        for text in ["5", "soon", "{gamma: {}}", "{uniform: {min: 5ms}}", ""] {
            let error = text.parse::<Latency>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?} is not a latency")), "{error}");
        }
    }

    #[test]
    fn responses_due_in_a_stall_wait_for_its_end() {
        let stall = Stall { every: Duration::from_nanos(100), length: Duration::from_nanos(30) };
        for (due, sent) in [(0, 0), (29, 29), (99, 99), (100, 130), (129, 130), (130, 130)] {
            assert_eq!(stall.send_time(due), sent);
        }
        assert_eq!(stall.send_time(1_000_015), 1_000_030);
    }
}
