//! A series in little memory: its points are compressed as stored results hold them.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};

use super::{Point, PointList, Series, is_full};

/// Number of points that are compressed together. Small ones take more bytes when each is compressed by itself.
const CHUNK: usize = 16;
/// Length of the JSON from which a point is compressed by itself, in bytes.
const LARGE_BYTES: usize = 16 << 10;

/// For what is compressed often.
pub(in crate::result) const QUICK: Compression = Compression::new(2);
/// For large points, which the default level compresses slowly.
const MEDIUM: Compression = Compression::new(4);

/// Consecutive points that do not change any more.
#[derive(Debug)]
pub(in crate::result) struct PackedPoints {
    /// Their JSON with commas between them, as a gzip member.
    pub(in crate::result) gzip: Box<[u8]>,
    /// Length of the JSON in bytes.
    pub(in crate::result) json_length: usize,
    points: usize,
    /// Number of counts in their histograms.
    counts: usize,
}

impl PackedPoints {
    fn of(point: &Point) -> io::Result<Self> {
        let json = serde_json::to_vec(point)?;
        // A small one is soon compressed again.
        let level = if json.len() < LARGE_BYTES { QUICK } else { MEDIUM };
        Ok(Self {
            gzip: compress(&json, level)?.into_boxed_slice(),
            json_length: json.len(),
            points: 1,
            counts: point.histogram_size(),
        })
    }

    fn join(all: &[Arc<Self>]) -> io::Result<Self> {
        let mut json = Vec::new();
        for packed in all {
            if !json.is_empty() {
                json.push(b',');
            }
            packed.read_json(&mut json)?;
        }
        Ok(Self {
            gzip: compress(&json, Compression::default())?.into_boxed_slice(),
            json_length: json.len(),
            points: all.iter().map(|packed| packed.points).sum(),
            counts: all.iter().map(|packed| packed.counts).sum(),
        })
    }

    fn read_json(&self, json: &mut Vec<u8>) -> io::Result<()> {
        json.reserve(self.json_length);
        GzDecoder::new(&*self.gzip).read_to_end(json).map(|_| ())
    }

    pub(in crate::result) fn unpack(&self) -> io::Result<Vec<Point>> {
        let mut json = vec![b'['];
        self.read_json(&mut json)?;
        json.push(b']');
        Ok(serde_json::from_slice(&json)?)
    }
}

/// Compresses bytes to one gzip member.
pub(in crate::result) fn compress(bytes: &[u8], level: Compression) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), level);
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// A series whose points are compressed, but for the last one. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct PackedSeries {
    step_seconds: f64,
    /// Points in chunks: up to [`CHUNK`] small ones, or a large one.
    chunks: Vec<Arc<PackedPoints>>,
    /// The points after them, one by one.
    singles: Vec<Arc<PackedPoints>>,
    last: Option<Arc<Point>>,
}

impl PackedSeries {
    /// Compresses the points of a series.
    pub fn of(series: Series) -> Self {
        let mut packed = Self::with_step(series.step_seconds);
        series.points.into_iter().for_each(|point| packed.push(point));
        packed
    }

    /// The number of points.
    pub fn len(&self) -> usize {
        let last = usize::from(self.last.is_some());
        last + self.packed().map(|packed| packed.points).sum::<usize>()
    }

    /// True without points.
    pub const fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.singles.is_empty() && self.last.is_none()
    }

    fn packed(&self) -> impl Iterator<Item = &Arc<PackedPoints>> {
        self.chunks.iter().chain(&self.singles)
    }

    /// All points, compressed.
    ///
    /// # Errors
    /// When the last point can't be written as JSON, which no value makes happen.
    pub(in crate::result) fn packed_points(&self) -> io::Result<Vec<Arc<PackedPoints>>> {
        let last = self.last.iter().map(|point| PackedPoints::of(point).map(Arc::new));
        self.packed().map(Arc::clone).map(Ok).chain(last).collect()
    }

    /// Halves the number of points, as [`Series::halve`] does. Returns false if a point can't be read, which
    /// happens to none that was packed here. Somebody may have changed the result that a series goes on from: a
    /// histogram that can't be merged is left out.
    pub(in crate::result) fn halve(&mut self) -> bool {
        let halved = || -> io::Result<Self> {
            let mut halved = Self::with_step(self.step_seconds * 2.0);
            let mut first: Option<Point> = None;
            for packed in self.packed_points()? {
                for point in packed.unpack()? {
                    let Some(mut merged) = first.take() else {
                        first = Some(point);
                        continue;
                    };
                    drop(merged.merge(&point));
                    halved.push(merged);
                }
            }
            first.into_iter().for_each(|point| halved.push(point));
            Ok(halved)
        };
        halved().map(|halved| *self = halved).is_ok()
    }

    fn push_single(&mut self, packed: PackedPoints) {
        let is_large = packed.json_length >= LARGE_BYTES;
        if is_large && self.singles.is_empty() {
            self.chunks.push(Arc::new(packed));
            return;
        }
        self.singles.push(Arc::new(packed));
        if (is_large || self.singles.len() == CHUNK)
            && let Ok(chunk) = PackedPoints::join(&self.singles)
        {
            self.chunks.push(Arc::new(chunk));
            self.singles.clear();
        }
    }
}

impl PointList for PackedSeries {
    fn with_step(step_seconds: f64) -> Self {
        Self { step_seconds, ..Self::default() }
    }

    fn step_seconds(&self) -> f64 {
        self.step_seconds
    }

    fn last(&self) -> Option<&Point> {
        self.last.as_deref()
    }

    fn last_mut(&mut self) -> Option<&mut Point> {
        self.last.as_mut().map(Arc::make_mut)
    }

    fn push(&mut self, mut point: Point) {
        if let Some(earlier) = self.last.take() {
            if let Ok(packed) = PackedPoints::of(&earlier) {
                self.push_single(packed);
            } else {
                // The two points become one. This happens to no point that a recorder has made.
                let mut merged = Arc::unwrap_or_clone(earlier);
                drop(merged.merge(&point));
                point = merged;
            }
        }
        self.last = Some(Arc::new(point));
    }

    fn limit_size(&mut self) {
        let size = |series: &Self| {
            let last = series.last.as_ref().map_or(0, |point| point.histogram_size());
            last + series.packed().map(|packed| packed.counts).sum::<usize>()
        };
        while is_full(self.len(), size(self)) && self.halve() {}
    }
}
