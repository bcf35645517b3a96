//! Writes a stored result piece by piece, so that many of them take little memory. Pure.

use std::io;

use flate2::Compression;
use serde::ser::Error as _;

use super::{MAX_DOCUMENT_BYTES, StoredResult, StoredResultError};
use crate::{
    metrics::{Identity, PackedSteps, RunnerMetrics, RunnerState},
    result::{
        kind::{MAX_DATA_BYTES, MAX_PARTS},
        series::{PackedSeries, PointList, QUICK, Series, compress},
    },
};

/// The latest metrics of a runner, in little memory.
#[derive(Clone, Debug)]
pub struct PackedRunner {
    /// Its identity.
    pub identity: Identity,
    /// Its state.
    pub state: RunnerState,
    /// Its metrics.
    pub metrics: PackedSteps,
}

impl PackedRunner {
    fn of(runner: &RunnerMetrics) -> Self {
        let RunnerMetrics { identity, state, metrics } = runner;
        Self { identity: identity.clone(), state: *state, metrics: PackedSteps::of(metrics) }
    }

    /// The metrics.
    pub fn unpack(&self) -> RunnerMetrics {
        let Self { identity, state, metrics } = self;
        RunnerMetrics { identity: identity.clone(), state: *state, metrics: metrics.unpack() }
    }
}

/// A result that is about to be stored.
#[derive(Clone, Debug)]
pub struct ResultToStore {
    /// The document. Its series and the runners of its resume state are empty.
    pub document: StoredResult,
    /// The series.
    pub series: PackedSeries,
    /// The runners of the resume state.
    pub runners: Vec<PackedRunner>,
}

impl From<StoredResult> for ResultToStore {
    fn from(mut document: StoredResult) -> Self {
        let series = PackedSeries::of(std::mem::take(&mut document.result.series));
        let runners = document.resume.iter_mut().flat_map(|resume| resume.runners.drain(..));
        let runners = runners.map(|runner| PackedRunner::of(&runner)).collect();
        Self { document, series, runners }
    }
}

impl ResultToStore {
    /// The compressed document, in parts of at most [`MAX_DATA_BYTES`]. If one part is too small for it, the
    /// metrics of runners that may still answer are left out. If [`MAX_PARTS`] are too few, or the document is
    /// too large to be read, the series gets longer steps.
    ///
    /// The document consists of several gzip members, so that a point is compressed only once.
    ///
    /// # Errors
    /// When the document can't be written as JSON, which no value here makes happen.
    pub fn into_parts(self) -> Result<Vec<Vec<u8>>, StoredResultError> {
        self.split(MAX_DATA_BYTES, MAX_PARTS)
    }

    pub(super) fn split(
        mut self,
        part: usize,
        max_parts: u32,
    ) -> Result<Vec<Vec<u8>>, StoredResultError> {
        loop {
            let (json_length, bytes) = self.compress(part)?;
            if bytes.len() > part && !self.runners.is_empty() {
                self.runners.clear();
                continue;
            }
            let is_small =
                bytes.len() <= part * max_parts as usize && json_length <= MAX_DOCUMENT_BYTES;
            if is_small || self.series.len() <= 1 || !self.series.halve() {
                return Ok(bytes.chunks(part).map(<[u8]>::to_vec).collect());
            }
        }
    }

    /// The length of the JSON, and the JSON compressed. Stops after the first runner that does not fit into
    /// `part` bytes.
    fn compress(&mut self, part: usize) -> Result<(usize, Vec<u8>), StoredResultError> {
        let step_seconds = self.series.step_seconds();
        self.document.result.series = Series { step_seconds, points: Vec::new() };
        let json = serde_json::to_string(&self.document);
        let places = json.and_then(|json| {
            let series = serde_json::to_string(&self.document.result.series)?;
            // The points come before the last two brackets.
            let points = place_of(&json, &format!("\"series\":{series}"), 2)?;
            // The next field begins after the closing bracket and a comma.
            let runners = if self.runners.is_empty() {
                json.len()
            } else {
                place_of(&json, "\"runners\":[],\"errorExamples\":", 18)?
            };
            Ok((json, points, runners))
        });
        let (json, points, runners) = places.map_err(StoredResultError::Write)?;
        let write = || -> io::Result<(usize, Vec<u8>)> {
            let [before, between, after] = [0..points, points..runners, runners..json.len()]
                .map(|range| json.get(range).unwrap_or_default().as_bytes());
            let mut writer = MemberWriter::new()?;
            writer.add(before)?;
            for points in self.series.packed_points()? {
                writer.add_element(&points.gzip, points.json_length);
            }
            writer.end_list();
            writer.add(between)?;
            for runner in &self.runners {
                if writer.bytes.len() > part {
                    break;
                }
                let json = serde_json::to_vec(&runner.unpack())?;
                writer.add_element(&compress(&json, QUICK)?, json.len());
            }
            writer.add(after)?;
            Ok((writer.length, writer.bytes))
        };
        write().map_err(StoredResultError::Compression)
    }
}

/// The place in a text that is `from_end` bytes before the end of the last match.
fn place_of(text: &str, wanted: &str, from_end: usize) -> serde_json::Result<usize> {
    let place = text.rfind(wanted).map(|at| at + wanted.len() - from_end);
    place.ok_or_else(|| serde_json::Error::custom(format!("no {wanted}")))
}

/// Puts gzip members together.
struct MemberWriter {
    bytes: Vec<u8>,
    /// Length of the text.
    length: usize,
    comma: Vec<u8>,
    is_in_list: bool,
}

impl MemberWriter {
    fn new() -> io::Result<Self> {
        Ok(Self {
            bytes: Vec::new(),
            length: 0,
            comma: compress(b",", Compression::default())?,
            is_in_list: false,
        })
    }

    fn add(&mut self, text: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(&compress(text, Compression::default())?);
        self.length += text.len();
        Ok(())
    }

    /// Adds an element of a list, which is compressed already.
    fn add_element(&mut self, member: &[u8], length: usize) {
        if self.is_in_list {
            self.bytes.extend_from_slice(&self.comma);
            self.length += 1;
        }
        self.is_in_list = true;
        self.bytes.extend_from_slice(member);
        self.length += length;
    }

    fn end_list(&mut self) {
        self.is_in_list = false;
    }
}
