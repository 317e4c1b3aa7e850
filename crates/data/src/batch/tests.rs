use super::*;
use crate::tokens::{TokenizedExample, TokenizedPair, TokenizedResponse};
use std::collections::BTreeSet;
use std::num::NonZeroUsize;

fn response(tokens: &[u32], prompt_len: usize) -> TokenizedResponse {
    TokenizedResponse { tokens: tokens.to_vec(), prompt_len }
}

fn pair(id: u64, chosen: (&[u32], usize), rejected: (&[u32], usize)) -> TokenizedPair {
    TokenizedPair {
        id,
        chosen: response(chosen.0, chosen.1),
        rejected: response(rejected.0, rejected.1),
    }
}

/// Two pairs: rows of 4, 3, 5 and 2 tokens. Token 2 is BOS, 1 EOS, 0 padding.
fn two_pairs() -> PairBatch {
    let pairs = [
        pair(7, (&[2, 10, 11, 1], 2), (&[2, 10, 12, 13, 1], 2)),
        pair(3, (&[2, 20, 1], 2), (&[2, 21], 1)),
    ];
    PairBatch::new(&pairs.each_ref().map(TokenizedPair::view)).unwrap()
}

#[test]
fn chosen_rows_come_first_and_what_a_pair_begins_with_is_there_once() {
    let PairBatch { ids, batch } = two_pairs();
    assert_eq!(ids, [7, 3]);
    assert_eq!(batch.rows(), 4);
    #[rustfmt::skip]
    assert_eq!(batch.tokens, [
        2, 10, 11, 1,
        2, 20, 1,
        12, 13, 1,
        21,
    ]);
    assert_eq!(batch.places, [[0..2, 2..4], [4..5, 5..7], [0..2, 7..10], [4..5, 10..11]]);
    assert_eq!(batch.lens, [4, 3, 5, 2]);
    assert_eq!(batch.prompt_lens, [2, 2, 2, 1]);
    assert_eq!(batch.response_counts(), [2, 1, 3, 1]);
    assert_eq!((batch.response_tokens(), batch.real_tokens()), (7, 14));
}

/// Oracle: the rows themselves, whatever a pair has in common: nothing, different prompts, a prompt, more, a whole row, everything.
#[test]
fn rows_are_the_pairs_own() {
    let pairs = [
        pair(1, (&[5, 6], 1), (&[7, 8, 9], 2)),
        pair(2, (&[5, 6, 7], 2), (&[5, 7, 7], 2)),
        pair(3, (&[5, 6, 7], 2), (&[5, 6, 8, 9], 2)),
        pair(4, (&[5, 6, 7, 8], 1), (&[5, 6, 7, 9], 1)),
        pair(5, (&[5, 6, 7], 1), (&[5, 6, 7, 8], 1)),
        pair(6, (&[5, 6, 7], 1), (&[5, 6, 7], 1)),
    ];
    let views: Vec<_> = pairs.iter().map(TokenizedPair::view).collect();
    assert_eq!(views.iter().map(PairView::shared).collect::<Vec<_>>(), [0, 1, 2, 3, 3, 3]);
    let pairs_batch = PairBatch::new(&views).unwrap();
    let batch = &pairs_batch.batch;
    assert_eq!(batch.tokens.len(), 5 + 5 + 5 + 5 + 4 + 3);
    let rows = views.iter().map(|pair| pair.chosen).chain(views.iter().map(|pair| pair.rejected));
    for ((row, place), key) in rows.clone().zip(&batch.places).zip(0..) {
        let found: Vec<u32> =
            place.iter().cloned().flatten().map(|at| batch.tokens[at] as u32).collect();
        assert_eq!(found, row.tokens, "row {key}");
    }
    let targets = rows.clone().flat_map(|row| &row.tokens[row.prompt_len..]).map(|&t| t as i32);
    assert_eq!(batch.targets(), targets.collect::<Vec<_>>());
    let before = rows.flat_map(|row| &row.tokens[row.prompt_len - 1..row.tokens.len() - 1]);
    let found = batch.predicting_positions().into_iter().map(|at| batch.tokens[at as usize] as u32);
    assert_eq!(found.collect::<Vec<_>>(), before.copied().collect::<Vec<_>>());
    // A shared token is the chosen row's, and every token has a key of its own.
    let keys = pairs_batch.token_keys();
    assert_eq!(keys[2..7], [(4, 0), (4, 1), (4, 2), (6, 0), (6, 1)]);
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), batch.tokens.len());
    assert_eq!(keys.last(), Some(&(11, 3)));
}

#[test]
fn predicting_positions_are_one_before_their_targets() {
    let batch = two_pairs().batch;
    let positions = batch.predicting_positions();
    assert_eq!(positions, [1, 2, 5, 1, 7, 8, 4]);
    assert_eq!(batch.row_of_position(), [0, 0, 1, 2, 2, 2, 3]);
    assert_eq!(batch.targets(), [11, 1, 1, 12, 13, 1, 21]);
}

#[test]
fn pooled_positions() {
    type Case = (Pooling, &'static [u32], &'static [i32], &'static [usize]);
    let cases: [Case; 5] = [
        (Pooling::Predicting, &[], &[1, 2, 5, 1, 7, 8, 4], &[2, 1, 3, 1]),
        (Pooling::Response, &[], &[2, 3, 6, 7, 8, 9, 10], &[2, 1, 3, 1]),
        // The last row has no position between the first and the last, so it keeps its predicting one.
        (Pooling::Sequence, &[], &[1, 2, 5, 1, 7, 8, 4], &[2, 1, 3, 1]),
        // Without EOS, row 1 has no response position left and keeps its predicting one.
        (Pooling::Response, &[2, 1], &[2, 5, 7, 8, 10], &[1, 1, 2, 1]),
        (Pooling::Predicting, &[2, 1], &[1, 2, 5, 1, 7, 8, 4], &[2, 1, 3, 1]),
    ];
    for (pooling, excluded, flat, counts) in cases {
        let positions = two_pairs().batch.positions(pooling, excluded);
        assert_eq!(positions.flat, flat, "{pooling:?} without {excluded:?}");
        assert_eq!(positions.counts, counts, "{pooling:?} without {excluded:?}");
        assert_eq!(positions.row.len(), flat.len());
    }
}

#[test]
fn sequence_pooling_includes_the_prompt() {
    let example =
        TokenizedExample { id: 0, response: response(&[2, 5, 6, 7, 8, 1], 4), context: Vec::new() };
    let batch = SequenceBatch::new(&[example.view()]).unwrap().batch;
    assert_eq!(batch.positions(Pooling::Sequence, &[]).flat, [1, 2, 3, 4]);
    assert_eq!(batch.positions(Pooling::Predicting, &[]).flat, [3, 4]);
}

#[test]
fn positions_are_in_their_rows() {
    let batch = two_pairs().batch;
    for pooling in [Pooling::Predicting, Pooling::Response, Pooling::Sequence] {
        let positions = batch.positions(pooling, &[]);
        for (&at, &row) in positions.flat.iter().zip(&positions.row) {
            let places = &batch.places[row as usize];
            assert!(places.iter().any(|place| place.contains(&(at as usize))), "{pooling:?}: {at}");
        }
    }
}

#[test]
fn unsound_batches_are_refused() {
    let cases: [(&str, Vec<TokenizedPair>); 4] = [
        ("at least one item", vec![]),
        ("0 prompt tokens of 2", vec![pair(1, (&[5, 6], 0), (&[5, 6], 1))]),
        ("2 prompt tokens of 2", vec![pair(1, (&[5, 6], 1), (&[5, 6], 2))]),
        ("token id 4294967295", vec![pair(1, (&[5, u32::MAX], 1), (&[5, 6], 1))]),
    ];
    for (message, pairs) in cases {
        let views: Vec<_> = pairs.iter().map(TokenizedPair::view).collect();
        let error = PairBatch::new(&views).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

fn size(size: usize) -> NonZeroUsize {
    NonZeroUsize::new(size).unwrap()
}

#[test]
fn every_item_occurs_once_and_only_the_last_batch_is_partial() {
    for (items, batch) in
        [(0, 4), (1, 4), (4, 4), (5, 4), (64, 4), (67, 4), (1000, 8), (1001, 7), (3, usize::MAX)]
    {
        let lengths: Vec<usize> = (0..items).map(|item| item * 7919 % 101).collect();
        for plan in [
            Batches::shuffled(&lengths, size(batch), 1, 0),
            Batches::sequential(items, size(batch)),
            Batches::by_length(&lengths, size(batch)),
        ] {
            let seen: Vec<usize> = plan.iter().flatten().copied().collect();
            assert_eq!(seen.len(), items);
            assert_eq!(seen.iter().copied().collect::<BTreeSet<_>>(), (0..items).collect());
            assert_eq!(plan.len(), items.div_ceil(batch));
            assert_eq!(plan.is_empty(), items == 0);
            assert!(plan.iter().rev().skip(1).all(|full| full.len() == batch));
            assert_eq!(plan.get(0), plan.iter().next());
            assert_eq!(plan.get(plan.len()), None);
        }
    }
}

#[test]
fn a_plan_depends_only_on_seed_and_epoch() {
    let lengths: Vec<usize> = (0..500).map(|item| item * 31 % 97).collect();
    let plan = |seed, epoch| Batches::shuffled(&lengths, size(8), seed, epoch);
    assert_eq!(plan(1, 2), plan(1, 2));
    assert_ne!(plan(1, 2), plan(1, 3));
    assert_ne!(plan(1, 2), plan(2, 2));
    // A run that resumes after five batches continues with the sixth.
    assert_eq!(plan(1, 2).iter().nth(5), plan(1, 2).get(5));
}

/// The definition: in every epoch another partition, in which rows of any lengths may meet, and the last, partial batch is a draw from
/// all rows.
#[test]
fn small_sets_are_permuted_anew_in_every_epoch() {
    const EPOCHS: u64 = 400;
    for (items, batch) in [(37, 8), (67, 16), (100, 25), (130, 8), (511, 32)] {
        let lengths: Vec<usize> = (0..items).collect();
        let full = items / batch;
        let mut partitions = BTreeSet::new();
        let (mut last, mut widest) = (vec![0u32; items], 0);
        for epoch in 0..EPOCHS {
            let plan = Batches::shuffled(&lengths, size(batch), 3, epoch);
            let batches: Vec<BTreeSet<usize>> =
                plan.iter().map(|batch| batch.iter().copied().collect()).collect();
            if let Some(rest) = batches.get(full) {
                rest.iter().for_each(|&item| last[item] += 1);
            }
            let spread = |batch: &BTreeSet<usize>| batch.last().unwrap() - batch.first().unwrap();
            widest = widest.max(batches[..full].iter().map(spread).max().unwrap());
            partitions.insert(batches.into_iter().collect::<BTreeSet<_>>());
        }
        assert_eq!(partitions.len() as u64, EPOCHS, "{items} rows in batches of {batch}");
        // Sorted whole, the rows of a batch would be neighbours.
        assert!(widest > 2 * batch, "{items} rows in batches of {batch}: {widest}");
        let rest = items % batch;
        let expected = (EPOCHS as usize * rest) as f64 / items as f64;
        // Six standard deviations of a binomial.
        let most = 6.0 * expected.sqrt();
        let fair = |&count: &u32| (f64::from(count) - expected).abs() <= most;
        assert!(last.iter().all(fair), "{items} rows in batches of {batch}: {last:?}");
    }
}

/// Oracle: a quarter of the set.
#[test]
fn lengths_are_grouped_within_a_quarter_of_the_set() {
    for (items, batch) in [(64, 4), (130, 8), (512, 32), (8000, 32)] {
        let lengths: Vec<usize> = (0..items).map(|item| item * 7919 % items).collect();
        let plan = Batches::shuffled(&lengths, size(batch), 0, 0);
        let window = batch * (items / batch / 4).clamp(1, 16);
        assert!(4 * window <= items && window <= 16 * batch);
        // The batches of a window, in order of their lengths, don't overlap.
        let order: Vec<usize> = plan.iter().flatten().copied().collect();
        for window in order[..items / batch * batch].chunks(window) {
            let mut ranges: Vec<[usize; 2]> = window
                .chunks(batch)
                .map(|batch| {
                    let lengths = || batch.iter().map(|&item| lengths[item]);
                    [lengths().min().unwrap(), lengths().max().unwrap()]
                })
                .collect();
            ranges.sort_unstable();
            assert!(ranges.windows(2).all(|pair| pair[0][1] < pair[1][0]), "{ranges:?}");
        }
    }
}

#[test]
fn batches_hold_similar_lengths() {
    let lengths: Vec<usize> = (0..1024).map(|item| item * 7919 % 512).collect();
    let padded = |plan: &Batches| -> usize {
        plan.iter()
            .map(|batch| batch.iter().map(|&item| lengths[item]).max().unwrap() * batch.len())
            .sum()
    };
    let real: usize = lengths.iter().sum();
    let shuffled = padded(&Batches::shuffled(&lengths, size(8), 0, 0));
    let sequential = padded(&Batches::sequential(lengths.len(), size(8)));
    assert!(shuffled as f64 / (real as f64) < 1.1, "{shuffled} cells for {real} tokens");
    assert!(shuffled < sequential);
}

#[test]
fn by_length_the_longest_come_first() {
    let plan = Batches::by_length(&[3, 9, 3, 7, 9], size(2));
    assert_eq!(plan.iter().collect::<Vec<_>>(), [&[1, 4][..], &[3, 0], &[2]]);
}
