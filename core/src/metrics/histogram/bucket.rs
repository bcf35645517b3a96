//! A bucket of a latency histogram in eight bytes.

use std::fmt;

/// Number of bits of a count.
const COUNT_BITS: u32 = 48;
/// Added to the index, which may be negative.
const INDEX_OFFSET: i32 = 1 << 15;

/// The index of a bucket and its number of samples. The index is in the upper 16 bits, so that buckets are in the order of
/// their indices.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::metrics) struct Bucket(u64);

impl Bucket {
    /// Maximum number of samples. Larger numbers are not plausible: a billion samples in each second reach it after three
    /// days.
    pub(in crate::metrics) const MAX_COUNT: u64 = (1 << COUNT_BITS) - 1;

    /// Creates a bucket. The index must fit into 16 bits; a larger count than [`Self::MAX_COUNT`] is replaced by it.
    pub(in crate::metrics) fn new(index: i32, count: u64) -> Self {
        let index = u64::from(index.wrapping_add(INDEX_OFFSET).cast_unsigned());
        Self(index << COUNT_BITS | count.min(Self::MAX_COUNT))
    }

    pub(in crate::metrics) fn index(self) -> i32 {
        // 16 bits are left.
        (self.0 >> COUNT_BITS) as i32 - INDEX_OFFSET
    }

    pub(in crate::metrics) const fn count(self) -> u64 {
        self.0 & Self::MAX_COUNT
    }

    /// Adds samples. Counts come from runner pods, which are not trusted: saturates instead of overflowing.
    pub(in crate::metrics) fn add(&mut self, count: u64) {
        let room = Self::MAX_COUNT - self.count();
        self.0 += count.min(room);
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Bucket").field(&self.index()).field(&self.count()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::histogram::MAX_BUCKET;

    #[test]
    fn index_and_count_are_those_that_were_stored() {
        for index in [-MAX_BUCKET, -1, 0, 1, MAX_BUCKET] {
            for count in [0, 1, Bucket::MAX_COUNT] {
                let bucket = Bucket::new(index, count);
                assert_eq!((bucket.index(), bucket.count()), (index, count));
            }
        }
    }

    #[test]
    fn counts_saturate() {
        let mut bucket = Bucket::new(7, Bucket::MAX_COUNT - 1);
        bucket.add(1);
        assert_eq!(bucket, Bucket::new(7, Bucket::MAX_COUNT));
        bucket.add(u64::MAX);
        assert_eq!(bucket, Bucket::new(7, u64::MAX));
    }
}
