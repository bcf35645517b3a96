//! The parts of Prometheus's protobuf exposition that are read, as `metrics.proto` of
//! <https://github.com/prometheus/client_model> numbers their fields. Texts stay in the buffer that holds the
//! message, because a copy of each label would take longer than all the rest.

use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

/// Number of labels of a metric that are read: more than any metric of a runner has.
const MAX_LABELS: usize = 16;

/// A metric family whose metrics are still encoded.
#[derive(Default)]
pub(super) struct Family<'a> {
    pub(super) name: &'a str,
    pub(super) metrics: Vec<&'a [u8]>,
}

/// A metric whose histogram is still encoded.
#[derive(Default)]
pub(super) struct Metric<'a> {
    /// Names and values.
    labels: [(&'a str, &'a str); MAX_LABELS],
    /// The value of a gauge; zero without one.
    pub(super) gauge: f64,
    /// The value of a counter; zero without one.
    pub(super) counter: f64,
    pub(super) histogram: Option<&'a [u8]>,
}

/// A gauge or a counter.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Value {
    #[prost(double, tag = "1")]
    value: f64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Histogram {
    #[prost(double, tag = "2")]
    pub(super) sample_sum: f64,
    #[prost(sint32, tag = "5")]
    pub(super) schema: i32,
    #[prost(uint64, tag = "7")]
    pub(super) zero_count: u64,
    #[prost(message, repeated, tag = "12")]
    pub(super) positive_span: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "13")]
    pub(super) positive_delta: Vec<i64>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct BucketSpan {
    #[prost(sint32, tag = "1")]
    pub(super) offset: i32,
    #[prost(uint32, tag = "2")]
    pub(super) length: u32,
}

impl<'a> Family<'a> {
    pub(super) fn read(message: &'a [u8]) -> Result<Self, DecodeError> {
        let mut family = Self::default();
        for field in Fields(message) {
            match field? {
                (1, name) => family.name = text(name),
                (4, metric) => family.metrics.push(metric),
                _ => {}
            }
        }
        Ok(family)
    }
}

impl<'a> Metric<'a> {
    pub(super) fn read(message: &'a [u8]) -> Result<Self, DecodeError> {
        let mut metric = Self::default();
        let mut labels = metric.labels.iter_mut();
        for field in Fields(message) {
            match field? {
                (1, pair) => {
                    let pair = read_label(pair)?;
                    if let Some(free) = labels.next() {
                        *free = pair;
                    }
                }
                (2, gauge) => metric.gauge = Value::decode(gauge)?.value,
                (3, counter) => metric.counter = Value::decode(counter)?.value,
                (7, histogram) => metric.histogram = Some(histogram),
                _ => {}
            }
        }
        Ok(metric)
    }

    /// The value of a label; empty without the label, or if the value is no UTF-8.
    pub(super) fn label(&self, name: &str) -> &'a str {
        self.labels.iter().find(|label| label.0 == name).map_or("", |label| label.1)
    }
}

fn read_label(message: &[u8]) -> Result<(&str, &str), DecodeError> {
    let mut label = ("", "");
    for field in Fields(message) {
        match field? {
            (1, name) => label.0 = text(name),
            (2, value) => label.1 = text(value),
            _ => {}
        }
    }
    Ok(label)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// The fields of a message that have a length, with their numbers. The other fields are left out.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next_field(&mut self) -> Result<Option<(u32, &'a [u8])>, DecodeError> {
        let (field, kind) = decode_key(&mut self.0)?;
        if kind == WireType::LengthDelimited {
            return split_message(&mut self.0).map(|message| Some((field, message)));
        }
        skip_field(kind, field, &mut self.0, DecodeContext::default())?;
        Ok(None)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, &'a [u8]), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            if let Some(field) = self.next_field().transpose() {
                return Some(field);
            }
        }
        None
    }
}

/// Splits off a message with its length before it. Fails if the message was cut off.
pub(super) fn split_message<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let mut rest = *bytes;
    // The number of the field plays no part.
    skip_field(WireType::LengthDelimited, 1, &mut rest, DecodeContext::default())?;
    decode_varint(bytes)?;
    let (message, _) = bytes.split_at(bytes.len() - rest.len());
    *bytes = rest;
    Ok(message)
}
