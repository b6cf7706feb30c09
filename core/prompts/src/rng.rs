//! The random number generator of prompts and of images of the tiles benchmark: seeded, the same on every machine.

/// `SplitMix64` (Steele, Lea and Flood, 2014): 64 bits of state; all seeds are equally good.
#[derive(Debug, Clone)]
pub struct Rng(u64);

/// The output function of `SplitMix64`, which also mixes a hash.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// Creates a generator from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Returns a number in `0..n`, or 0 if `n` is 0. The bias of the multiplication is below `n / 2^64`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Returns `true` with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        ((self.next_u64() >> 11) as f64) < p * (1_u64 << 53) as f64
    }

    /// Returns two different numbers in `0..n`; `n` must be at least 2.
    pub fn two_below(&mut self, n: usize) -> (usize, usize) {
        let first = self.below(n);
        (first, (first + 1 + self.below(n.saturating_sub(1))) % n.max(1))
    }

    /// Returns `count` different numbers in `0..n` in random order, at most `n`.
    pub fn distinct(&mut self, count: usize, n: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..n).collect();
        let count = count.min(n);
        for i in 0..count {
            let j = i + self.below(n - i);
            numbers.swap(i, j);
        }
        numbers.truncate(count);
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_u64_matches_reference_values() {
        let mut rng = Rng::new(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(expected.map(|_| rng.next_u64()), expected);
    }

    #[test]
    fn samples_are_in_range() {
        let mut rng = Rng::new(0);
        for _ in 0..1000 {
            assert!(rng.below(5) < 5);
            let (a, b) = rng.two_below(3);
            assert!(a != b && a < 3 && b < 3);
        }
        let mut all = rng.distinct(16, 16);
        all.sort_unstable();
        assert_eq!(all, (0..16).collect::<Vec<_>>());
        assert!(!rng.chance(0.0) && rng.chance(1.0));
    }
}
