//! The generated rows: number, determinism, content, and the absence of held-out prompts in training rows.

use std::collections::HashSet;

use fpo_datasets::{
    Corruption, Dataset, FLIPPED_SHARE, Format, PreferencePair, Shares, Sizes, Task, Verdict,
    check, corrupt, generate, write_jsonl,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const SMALL: Sizes = Sizes { sft: 300, pairs: 200, held_out_pairs: 100, held_out_prompts: 50 };

fn lines<T: serde::Serialize>(rows: &[T]) -> String {
    let mut bytes = Vec::new();
    write_jsonl(rows, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn tasks(dataset: &Dataset) -> impl Iterator<Item = &Task> {
    let sft = dataset.sft.iter().map(|row| &row.task);
    let pairs = dataset.pairs.iter().chain(&dataset.held_out_pairs).map(|row| &row.task);
    sft.chain(pairs).chain(dataset.held_out_prompts.iter().map(|row| &row.task))
}

fn share(count: usize, total: usize) -> f64 {
    count as f64 / total as f64
}

#[test]
fn a_seed_gives_the_same_bytes() {
    let (first, second, other) = (generate(7, &SMALL), generate(7, &SMALL), generate(8, &SMALL));
    assert_eq!(lines(&first.sft), lines(&second.sft));
    assert_eq!(first, second);
    assert_ne!(first.sft, other.sft);
    assert_ne!(first.held_out_prompts, other.held_out_prompts);
}

#[test]
fn a_small_set_is_a_prefix_of_a_large_one() {
    let (small, large) = (generate(7, &SMALL), generate(7, &Sizes::default()));
    assert_eq!(small.sft, large.sft[..300]);
    assert_eq!(small.pairs, large.pairs[..200]);
    assert_eq!(small.held_out_pairs, large.held_out_pairs[..100]);
    assert_eq!(small.held_out_prompts, large.held_out_prompts[..50]);
}

#[test]
fn the_default_sizes() {
    let dataset = generate(0, &Sizes::default());
    assert_eq!(dataset.sft.len(), 20_000);
    assert_eq!(dataset.pairs.len(), 8_000);
    assert_eq!(dataset.held_out_pairs.len(), 1_000);
    assert_eq!(dataset.held_out_prompts.len(), 200);
}

#[test]
fn held_out_prompts_dont_occur_in_training_rows() {
    // Nor in those of another seed: the split doesn't depend on the seed.
    for seed in [0, 1] {
        let (training, evaluation) =
            (generate(seed, &Sizes::default()), generate(0, &Sizes::default()));
        let trained: HashSet<&str> = training
            .sft
            .iter()
            .map(|row| row.prompt.as_str())
            .chain(training.pairs.iter().map(|row| row.prompt.as_str()))
            .collect();
        assert!(evaluation.held_out_pairs.iter().all(|row| !trained.contains(row.prompt.as_str())));
        assert!(
            evaluation.held_out_prompts.iter().all(|row| !trained.contains(row.prompt.as_str()))
        );
    }
}

#[test]
fn prompts_rarely_repeat() {
    let dataset = generate(0, &Sizes::default());
    let different =
        |prompts: Vec<&str>| share(prompts.iter().collect::<HashSet<_>>().len(), prompts.len());
    assert!(different(dataset.sft.iter().map(|row| row.prompt.as_str()).collect()) > 0.7);
    assert!(different(dataset.pairs.iter().map(|row| row.prompt.as_str()).collect()) > 0.8);
    assert!(
        different(dataset.held_out_pairs.iter().map(|row| row.prompt.as_str()).collect()) > 0.9
    );
    assert!(
        different(dataset.held_out_prompts.iter().map(|row| row.prompt.as_str()).collect()) > 0.95
    );
}

#[test]
fn the_checker_accepts_every_right_answer_and_finds_every_fault() {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let dataset = generate(3, &Sizes { sft: 3_000, ..SMALL });
    for task in tasks(&dataset) {
        for format in Format::ALL {
            let task = Task { format, ..task.clone() };
            assert_eq!(check(&task, &task.answer()), Verdict::Right, "{task:?}");
            for kind in Corruption::ALL {
                let answer = corrupt(&task, kind, &mut rng);
                let verdict = check(&task, &answer);
                let found = match verdict {
                    Verdict::WrongContent => Some(Corruption::WrongContent),
                    Verdict::Rambling => Some(Corruption::Rambling),
                    Verdict::WrongFormat { .. } => Some(Corruption::WrongFormat),
                    Verdict::WrongLanguage => Some(Corruption::WrongLanguage),
                    Verdict::Right | Verdict::Empty | Verdict::Unreadable => None,
                };
                assert_eq!(found, Some(kind), "{task:?} {answer:?}: {verdict}");
            }
        }
    }
}

#[test]
fn rows_are_what_their_labels_say() {
    let dataset = generate(0, &SMALL);
    for row in &dataset.sft {
        assert_eq!(row.prompt, row.task.prompt());
        assert_eq!(check(&row.task, &row.response).is_right(), row.corruption.is_none(), "{row:?}");
    }
    for row in dataset.pairs.iter().chain(&dataset.held_out_pairs) {
        assert_eq!(row.prompt, row.task.prompt());
        assert_eq!(check(&row.task, &row.chosen).is_right(), !row.flipped, "{row:?}");
        assert_eq!(check(&row.task, &row.rejected).is_right(), row.flipped, "{row:?}");
    }
    for row in &dataset.held_out_prompts {
        assert_eq!(row.prompt, row.task.prompt());
    }
}

#[test]
fn the_shares_are_as_stated() {
    let dataset = generate(0, &Sizes::default());
    let close = |what: &str, actual: f64, stated: f64, tolerance: f64| {
        assert!((actual - stated).abs() < tolerance, "{what}: {actual} instead of {stated}");
    };
    let flipped =
        |rows: &[PreferencePair]| share(rows.iter().filter(|row| row.flipped).count(), rows.len());
    // Tolerances are about four standard deviations of a binomial share.
    close("flipped", flipped(&dataset.pairs), FLIPPED_SHARE, 0.011);
    close("flipped, held out", flipped(&dataset.held_out_pairs), FLIPPED_SHARE, 0.03);

    assert_eq!(Corruption::ALL.map(|kind| Shares::PAIRS.of(kind)).iter().sum::<u32>(), 100);
    for kind in Corruption::ALL {
        let sft = dataset.sft.iter().filter(|row| row.corruption == Some(kind)).count();
        close("SFT", share(sft, dataset.sft.len()), f64::from(Shares::SFT.of(kind)) / 100.0, 0.014);
        let pairs = dataset.pairs.iter().filter(|row| row.corruption == kind).count();
        close(
            "pairs",
            share(pairs, dataset.pairs.len()),
            f64::from(Shares::PAIRS.of(kind)) / 100.0,
            0.021,
        );
    }
    for format in Format::ALL {
        let count = dataset.sft.iter().filter(|row| row.task.format == format).count();
        close("format", share(count, dataset.sft.len()), 1.0 / 7.0, 0.01);
    }
}

#[test]
fn rows_are_short() {
    let dataset = generate(0, &Sizes::default());
    let mean = |lengths: Vec<usize>| lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
    let prompts = mean(dataset.sft.iter().map(|row| row.prompt.chars().count()).collect());
    let responses = mean(dataset.sft.iter().map(|row| row.response.chars().count()).collect());
    assert!((35.0..50.0).contains(&prompts), "{prompts}");
    assert!((15.0..30.0).contains(&responses), "{responses}");
    assert!(dataset.sft.iter().all(|row| row.prompt.len() < 90 && row.response.len() < 90));
}

#[test]
fn tasks_round_trip_through_json() {
    for task in tasks(&generate(0, &SMALL)) {
        let json = serde_json::to_string(task).unwrap();
        assert_eq!(&serde_json::from_str::<Task>(&json).unwrap(), task, "{json}");
    }
    let task = &generate(0, &SMALL).sft[0].task;
    let unknown = serde_json::to_string(task).unwrap().replace("\"phrasing\"", "\"phrase\"");
    assert!(serde_json::from_str::<Task>(&unknown).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0),
        ..Default::default()
    })]
    #[test]
    fn labels_are_right_for_every_seed(seed in any::<u64>()) {
        let sizes = Sizes { sft: 30, pairs: 30, held_out_pairs: 5, held_out_prompts: 5 };
        let dataset = generate(seed, &sizes);
        for row in &dataset.sft {
            prop_assert_eq!(check(&row.task, &row.response).is_right(), row.corruption.is_none());
        }
        for row in dataset.pairs.iter().chain(&dataset.held_out_pairs) {
            prop_assert_eq!(check(&row.task, &row.chosen).is_right(), !row.flipped);
            prop_assert_eq!(check(&row.task, &row.rejected).is_right(), row.flipped);
        }
    }

    /// Models may say anything.
    #[test]
    fn any_answer_gets_a_verdict(seed in any::<u64>(), answer in "[\\PC\n]{0,40}") {
        let sizes = Sizes { held_out_prompts: 7, sft: 0, pairs: 0, held_out_pairs: 0 };
        for row in generate(seed, &sizes).held_out_prompts {
            let verdict = check(&row.task, &answer);
            prop_assert_eq!(verdict == Verdict::Empty, answer.trim().is_empty());
            prop_assert!(!verdict.is_right() || verdict.in_format() && verdict.has_right_content());
        }
    }
}
