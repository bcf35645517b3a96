//! A series in little memory: each point is compressed as stored results hold it.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};

use super::{Point, PointList, Series, is_full};

/// A point that does not change any more.
#[derive(Debug)]
pub(in crate::result) struct PackedPoint {
    /// Its JSON, as a gzip member.
    pub(in crate::result) gzip: Box<[u8]>,
    /// Length of the JSON in bytes.
    pub(in crate::result) json_length: usize,
    /// Number of counts in its histograms.
    counts: usize,
}

impl PackedPoint {
    fn of(point: &Point) -> io::Result<Self> {
        let json = serde_json::to_vec(point)?;
        let gzip = compress(&json)?.into_boxed_slice();
        Ok(Self { gzip, json_length: json.len(), counts: point.histogram_size() })
    }

    fn unpack(&self) -> io::Result<Point> {
        let mut json = Vec::with_capacity(self.json_length);
        GzDecoder::new(&*self.gzip).read_to_end(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }
}

/// Compresses bytes to one gzip member.
pub(in crate::result) fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// A series whose points are compressed, but for the last one. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct PackedSeries {
    step_seconds: f64,
    /// All points but the last one.
    earlier: Vec<Arc<PackedPoint>>,
    last: Option<Point>,
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
        self.earlier.len() + usize::from(self.last.is_some())
    }

    /// True without points.
    pub const fn is_empty(&self) -> bool {
        self.earlier.is_empty() && self.last.is_none()
    }

    /// All points, compressed.
    ///
    /// # Errors
    /// When the last point can't be written as JSON, which no value makes happen.
    pub(in crate::result) fn packed_points(&self) -> io::Result<Vec<Arc<PackedPoint>>> {
        let last = self.last.iter().map(|point| PackedPoint::of(point).map(Arc::new));
        self.earlier.iter().map(Arc::clone).map(Ok).chain(last).collect()
    }

    /// Halves the number of points, as [`Series::halve`] does. Returns false if that is not possible.
    pub(in crate::result) fn halve(&mut self) -> bool {
        let halved = |points: &[Arc<PackedPoint>]| -> io::Result<Vec<Arc<PackedPoint>>> {
            let merge = |pair: &[Arc<PackedPoint>]| match pair {
                [first, second] => {
                    let mut merged = first.unpack()?;
                    merged.merge(&second.unpack()?).map_err(io::Error::other)?;
                    PackedPoint::of(&merged).map(Arc::new)
                }
                _ => pair.first().cloned().ok_or_else(|| io::Error::other("no point")),
            };
            points.chunks(2).map(merge).collect()
        };
        let merged = self.packed_points().and_then(|points| {
            let mut merged = halved(&points)?;
            let last = merged.pop().map(|point| point.unpack()).transpose()?;
            Ok((merged, last))
        });
        let Ok((earlier, last)) = merged else { return false };
        *self = Self { step_seconds: self.step_seconds * 2.0, earlier, last };
        true
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
        self.last.as_ref()
    }

    fn last_mut(&mut self) -> Option<&mut Point> {
        self.last.as_mut()
    }

    fn push(&mut self, mut point: Point) {
        if let Some(mut earlier) = self.last.take() {
            match PackedPoint::of(&earlier) {
                Ok(packed) => self.earlier.push(Arc::new(packed)),
                // No number is lost: the two points become one.
                Err(_) if earlier.merge(&point).is_ok() => point = earlier,
                Err(_) => {}
            }
        }
        self.last = Some(point);
    }

    fn limit_size(&mut self) {
        let size = |series: &Self| {
            let last = series.last.as_ref().map_or(0, Point::histogram_size);
            last + series.earlier.iter().map(|point| point.counts).sum::<usize>()
        };
        while is_full(self.len(), size(self)) && self.halve() {}
    }
}
