//! Which blocks of a corpus make which filling of the buffer: from seed and number alone, so that a
//! resumed training sees the same tokens, and a store serves them as the stream would.

use rand::seq::SliceRandom;
use rand::{rngs::StdRng, SeedableRng};

/// An endless sequence of rounds through the blocks, each in a new random order, cut into fillings.
#[derive(Clone, Debug)]
pub(crate) struct Rounds {
    /// Blocks of the corpus.
    pub blocks: usize,
    /// Blocks of one filling.
    pub chunk: usize,
    pub seed: u64,
    /// Uses of each filling.
    pub passes: usize,
}

impl Rounds {
    /// Fillings of about `wanted` tokens, `served` of each block.
    pub fn new(blocks: usize, served: usize, wanted: usize, seed: u64, passes: usize) -> Self {
        Rounds { blocks, chunk: wanted.div_ceil(served).min(blocks).max(1), seed, passes }
    }

    /// Whether there is a filling of this number, and one after it: whether its place can be counted.
    pub fn has(&self, index: u64) -> bool {
        index.checked_add(2).and_then(|next| next.checked_mul(self.chunk as u64)).is_some_and(|end| end < u64::MAX - self.blocks as u64)
    }

    /// The blocks of filling number `index`, in their order.
    pub fn order(&self, index: u64) -> Vec<usize> {
        let count = self.blocks as u64;
        let (start, end) = (index * self.chunk as u64, (index + 1) * self.chunk as u64);
        let mut order = Vec::with_capacity(self.chunk);
        for round in start / count..=(end - 1) / count {
            let mut blocks: Vec<usize> = (0..self.blocks).collect();
            blocks.shuffle(&mut StdRng::seed_from_u64(self.seed ^ (round + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            let (from, to) = (start.max(round * count) - round * count, end.min((round + 1) * count) - round * count);
            order.extend_from_slice(&blocks[from as usize..to as usize]);
        }
        order
    }

    /// Bytes of the buffer: of two when one is made ahead.
    pub fn bytes(&self, layers: usize, width: usize, served: usize, ahead: bool) -> u64 {
        per_token(layers, width).saturating_mul((self.chunk as u64).saturating_mul(served as u64)).saturating_mul(1 + u64::from(ahead))
    }

    /// Tokens that a filling holds when the user does not say: what 1 GiB holds, at most 65,536.
    pub fn usual_tokens(layers: usize, width: usize) -> usize {
        ((1u64 << 30) / per_token(layers, width).max(1)).clamp(1, 65_536) as usize
    }
}

/// Bytes of one token in the buffer.
pub(crate) fn per_token(layers: usize, width: usize) -> u64 {
    (layers as u64).saturating_mul(width as u64).saturating_mul(8)
}
