//! Ways to cut an input into pieces, as reads of a connection may do.

/// Random cuts of an input.
const RANDOM_CUTS: u64 = 6;

/// A small generator of random numbers: `SplitMix64` (<https://doi.org/10.1145/2660193.2660195>).
struct Random(u64);

impl Random {
    /// Starts from a hash of the input (FNV-1a), so that an input is always cut at the same places.
    fn of(data: &[u8]) -> Self {
        let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self(data.iter().fold(0xcbf2_9ce4_8422_2325, mix))
    }

    /// Returns a number from 1 to `max`.
    fn next_up_to(&mut self, max: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let number = usize::try_from((mixed ^ (mixed >> 31)) >> 33).unwrap_or(0);
        1 + number % max.max(1)
    }
}

/// Cuts an input in several ways: into single bytes, into two parts, and into pieces of random lengths.
/// Cuts only where `may_cut` allows it, and calls `check` with the pieces of each way.
pub(crate) fn for_each_cut(
    data: &[u8],
    may_cut: impl Fn(usize) -> bool,
    mut check: impl FnMut(&[&[u8]]),
) {
    let mut random = Random::of(data);
    let single_bytes = (1..data.len()).collect();
    let mut ways: Vec<Vec<usize>> = vec![single_bytes];
    for way in 0..RANDOM_CUTS {
        let max = [data.len(), data.len(), 4, 16, 64, 1024][usize::try_from(way).unwrap_or(0)];
        let first = random.next_up_to(max);
        let next = |at: &usize| (max < data.len()).then(|| at + random.next_up_to(max));
        ways.push(
            std::iter::successors(Some(first), next).take_while(|at| *at < data.len()).collect(),
        );
    }
    for cuts in ways {
        let (mut pieces, mut start) = (Vec::with_capacity(cuts.len() + 1), 0);
        for at in cuts.into_iter().filter(|at| may_cut(*at)) {
            pieces.push(&data[start..at]);
            start = at;
        }
        pieces.push(&data[start..]);
        check(&pieces);
    }
}
