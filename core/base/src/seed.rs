//! Seeds: every random stream of a run is derived from the seed of the user.

/// Derives the seed of the stream `path`, for example `[step, purpose]`, with the SplitMix64 finaliser over seed and path.
pub fn derive(seed: u64, path: &[u64]) -> u64 {
    path.iter().fold(mix(seed), |state, part| mix(state ^ mix(*part)))
}

fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::derive;

    #[test]
    fn derived_seeds_depend_on_seed_path_and_order() {
        let seeds = [derive(1, &[]), derive(2, &[]), derive(1, &[1]), derive(1, &[1, 2]), derive(1, &[2, 1])];
        for (i, a) in seeds.iter().enumerate() {
            assert!(!seeds[..i].contains(a));
        }
    }

    #[test]
    fn derive_matches_splitmix64() {
        // The first output of SplitMix64 seeded with 0.
        assert_eq!(derive(0, &[]), 0xE220_A839_7B1D_CDAF);
    }
}
