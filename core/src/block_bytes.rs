//! Bytes in blocks of one length. Pure.

use std::sync::Arc;

/// Length of all blocks but the last.
const BLOCK: usize = 4096;

/// Bytes in blocks of one length. Clones share them.
///
/// An allocator keeps memory for each length. Bytes of many lengths that are kept for hours would hold memory that is
/// mostly free; blocks of one length fill it.
#[derive(Clone, Debug)]
pub(crate) struct BlockBytes {
    blocks: Arc<[Box<[u8]>]>,
}

impl BlockBytes {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { blocks: bytes.chunks(BLOCK).map(Box::from).collect() }
    }

    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.blocks.iter().map(|block| block.len()).sum()
    }

    /// All bytes, one after the other.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        self.blocks.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_all_bytes() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK] {
            let bytes: Vec<u8> = (0_u8..=250).cycle().take(length).collect();
            let blocks = BlockBytes::of(&bytes);
            assert_eq!((blocks.len(), blocks.to_vec()), (length, bytes));
        }
    }
}
