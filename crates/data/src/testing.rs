//! Helpers for property tests.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// A configuration with the same cases in every run, unless `PROPTEST_RNG_SEED` is set: builds must not fail at random.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    let config = ProptestConfig { cases, failure_persistence: None, ..Default::default() };
    match config.rng_seed {
        RngSeed::Random => ProptestConfig { rng_seed: RngSeed::Fixed(0), ..config },
        RngSeed::Fixed(_) => config,
    }
}

/// `whole` with one to five bytes changed and, one time in ten, its end cut off. Half of the changes are within the last `tail`
/// bytes, where file formats keep their footer.
pub(crate) fn damaged(whole: Vec<u8>, tail: usize) -> impl Strategy<Value = Vec<u8>> {
    let len = whole.len();
    let place = prop_oneof![0..len, len - tail.clamp(1, len)..len];
    // Set a byte, or flip one of its bits.
    let change = prop_oneof![
        any::<u8>().prop_map(|byte| (0, byte)),
        Just((0, 0xff)),
        (0u8..8).prop_map(|bit| (0xff, 1 << bit)),
    ];
    let changes = prop::collection::vec((place, change), 1..6);
    let end = prop_oneof![9 => Just(len), 1 => 0..len];
    (changes, end).prop_map(move |(changes, end)| {
        let mut bytes = whole.clone();
        for (at, (mask, value)) in changes {
            bytes[at] = (bytes[at] & mask) ^ value;
        }
        bytes.truncate(end);
        bytes
    })
}
