//! Numbers without an order, from a seed that a failure can name.

use std::time::UNIX_EPOCH;

/// A sequence of numbers: the same one for the same seed.
#[derive(Debug, Clone)]
pub struct Chance {
    /// What the sequence began with.
    pub seed: u64,
    state: u64,
}

impl Chance {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// Another sequence each time.
    pub fn anew() -> Self {
        Self::new(UNIX_EPOCH.elapsed().map_or(1, |since| u64::from(since.subsec_nanos())))
    }

    /// The next number: SplitMix64.
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// The next number, below `bound`; 0 where that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.number() % (bound.max(1) as u64)).unwrap_or(0)
    }

    /// Bytes that no compression makes fewer.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.number().to_le_bytes()).collect();
        bytes.truncate(length);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_stands_for_one_sequence() {
        let (mut one, mut same, mut other) = (Chance::new(7), Chance::new(7), Chance::new(8));
        assert_eq!(one.bytes(13), same.bytes(13));
        assert_ne!(one.number(), other.number());
        assert!((0..1000).all(|_| one.below(10) < 10) && one.below(0) == 0);
    }
}
