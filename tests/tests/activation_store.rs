//! The store of activations: its memory is bounded by its setting, its order depends on its settings alone,
//! and shards on disk give what the model gives.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::HashSet,
    num::NonZeroUsize,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use burn::tensor::Device;
use fpo_data::{Fingerprint, SequenceStore, TokenizedExample, TokenizedResponse};
use fpo_device::progress::Reporter;
use fpo_interp::activations::{ActivationStore, Source, StoreSettings, Stored};
use fpo_transformer::{LanguageModel, ModelConfig, Site, weights};

/// Counts what is allocated, and the most of it at once.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
/// One test at a time, since all share the counts.
static TURN: Mutex<()> = Mutex::new(());

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WIDTH: usize = 32;

fn model() -> LanguageModel {
    let config = ModelConfig::from_json(
        r#"{"model_type": "gemma2", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 8, "query_pre_attn_scalar": 8}"#,
    );
    weights::random(&config.unwrap(), 0, &Device::flex()).unwrap()
}

/// A number that tells nothing of its neighbours' (the finaliser of MurmurHash3).
fn scattered(n: usize) -> u32 {
    let n = (n as u32 ^ (n as u32 >> 16)).wrapping_mul(0x85eb_ca6b);
    let n = (n ^ (n >> 13)).wrapping_mul(0xc2b2_ae35);
    n ^ (n >> 16)
}

/// Rows of 20 tokens: BOS (2), 18 others, EOS (1).
fn data(folder: &Path, rows: usize) -> SequenceStore {
    let path = folder.join("rows.arrow");
    let row = |id: usize| {
        let token = |t: usize| match t {
            0 => 2,
            19 => 1,
            t => 3 + scattered(id * 20 + t) % 61,
        };
        TokenizedExample {
            id: id as u64,
            response: TokenizedResponse { tokens: (0..20).map(token).collect(), prompt_len: 1 },
            context: Vec::new(),
        }
    };
    SequenceStore::write(&path, &Fingerprint::default(), (0..rows).map(row).collect::<Vec<_>>())
        .unwrap();
    SequenceStore::open(&path).unwrap()
}

fn source<'a>(model: &'a LanguageModel, data: &'a SequenceStore) -> Source<'a> {
    let sites = vec![Site::resid_post(1), "attn_z:0".parse().unwrap()];
    Source { model, data, excluded: vec![1, 2], sites, reporter: Reporter::silent() }
}

fn settings(buffer_tokens: usize) -> StoreSettings {
    StoreSettings {
        tokens: usize::MAX,
        held_out: 100,
        buffer_tokens,
        max_norm: None,
        batch_size: NonZeroUsize::new(8).unwrap(),
        seed: 3,
    }
}

/// The next batches of both sites as numbers.
fn batches(store: &mut ActivationStore<'_>, count: usize, tokens: usize) -> Vec<Vec<f32>> {
    let device = Device::flex();
    let mut found = Vec::new();
    for _ in 0..count {
        for x in store.next_batch(tokens, &device).unwrap() {
            found.push(x.into_data().iter::<f32>().collect());
        }
    }
    found
}

#[test]
fn memory_is_bounded_by_the_setting() {
    let _turn = TURN.lock().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (model(), data(folder.path(), 10_000));
    let most_of = |buffer_tokens: usize, batches: usize| {
        let mut store =
            ActivationStore::new(source(&model, &data), settings(buffer_tokens)).unwrap();
        let before = NOW.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        for _ in 0..batches {
            store.next_batch(256, &Device::flex()).unwrap();
        }
        (store.buffers(), MOST.load(Ordering::Relaxed) - before)
    };
    // 180,000 tokens, both sites together 48 numbers of 4 bytes each.
    let bytes = |tokens: usize| tokens * (WIDTH + 16) * 4;
    let (one, whole) = most_of(180_000, 700);
    assert_eq!(one, 1);
    assert!(whole > bytes(175_000), "{whole} bytes: the whole set is not what was counted");
    for least in [10_000, 40_000] {
        // More than an epoch, so that every buffer was there once.
        let (buffers, most) = most_of(least, 800);
        let largest = (180_000 / buffers) + 8 * 18;
        println!("{buffers} buffers: {most} bytes, {} for a buffer", bytes(largest));
        assert!(buffers == 180_000 / least || buffers == 180_000 / least - 1, "{buffers}");
        // Beside the buffer, its order, a batch and a forward pass of 8 rows.
        assert!(most < bytes(largest) + 8 * largest + (2 << 20), "{least}: {most} bytes");
    }
}

#[test]
fn an_epoch_serves_every_position_once_and_no_special_token() {
    let _turn = TURN.lock().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (model(), data(folder.path(), 200));
    for buffer_tokens in [500, 100_000] {
        let mut store =
            ActivationStore::new(source(&model, &data), settings(buffer_tokens)).unwrap();
        // The first batches of rows are held out until 100 tokens are.
        let training = store.training_tokens();
        let held_out = store.measuring_blocks().unwrap();
        assert_eq!(training + held_out[0].tokens(), 200 * 18);
        assert!((100..100 + 8 * 18).contains(&held_out[0].tokens()));
        let row = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let mut seen = HashSet::new();
        for _ in 0..training {
            seen.insert(row(&batches(&mut store, 1, 1)[0]));
        }
        let unseen: HashSet<_> = held_out[0].values.chunks_exact(WIDTH).map(row).collect();
        // Positions with the same past have the same activation, so that a few may coincide.
        assert!(seen.len() * 10 > training * 9, "{} of {training}", seen.len());
        assert!(seen.intersection(&unseen).count() * 10 < unseen.len());
    }
}

/// Fewer rows than a forward pass takes.
#[test]
fn few_rows_are_trained_and_measured_on() {
    let _turn = TURN.lock().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let model = model();
    for rows in [2, 7, 37, 63] {
        let data = data(folder.path(), rows);
        let settings =
            StoreSettings { batch_size: NonZeroUsize::new(64).unwrap(), ..settings(400) };
        let mut store = ActivationStore::new(source(&model, &data), settings).unwrap();
        let held_out = store.measuring_blocks().unwrap()[0].tokens();
        assert_eq!(store.training_tokens() + held_out, rows * 18);
        assert!(held_out >= 18 && held_out <= 18.max(rows * 18 / 4), "{rows} rows: {held_out}");
        let served = batches(&mut store, 1, 18);
        assert_eq!(served[0].len(), 18 * WIDTH);
    }
    // With a single one there is nothing to train on, but something to measure on.
    let data = data(folder.path(), 1);
    let mut store = ActivationStore::new(source(&model, &data), settings(400)).unwrap();
    assert_eq!(store.measuring_blocks().unwrap()[0].tokens(), 18);
    let error = store.next_batch(9, &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("1 rows are too few"), "{error}");
}

#[test]
fn a_cursor_finds_its_place_again() {
    let _turn = TURN.lock().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (model(), data(folder.path(), 120));
    let new = || ActivationStore::new(source(&model, &data), settings(400)).unwrap();
    let mut whole = new();
    assert!(whole.buffers() > 3);
    for _ in 0..30 {
        batches(&mut whole, 1, 150);
        let mut other = new();
        other.seek(whole.cursor());
        let mut again = new();
        again.seek(whole.cursor());
        assert_eq!(batches(&mut other, 2, 150), batches(&mut again, 2, 150));
    }
    let (mut whole, mut resumed) = (new(), new());
    batches(&mut whole, 17, 150);
    resumed.seek(whole.cursor());
    assert_eq!(batches(&mut resumed, 30, 150), batches(&mut whole, 30, 150));
}

#[test]
fn shards_are_what_the_model_gives() {
    let _turn = TURN.lock().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (model(), data(folder.path(), 120));
    let new = || ActivationStore::new(source(&model, &data), settings(400)).unwrap();
    let made_from = || Fingerprint::default().with("model", "one");
    let expected = batches(&mut new(), 40, 100);
    for (name, precision, tolerance) in
        [("exact", Stored::Float32, 0.0), ("half", Stored::Float16, 2e-3)]
    {
        let shards = folder.path().join(name);
        for _ in 0..2 {
            let store = new().with_shards(&shards, precision, made_from()).unwrap();
            let mut store = store;
            for (ours, theirs) in batches(&mut store, 40, 100).iter().zip(&expected) {
                assert_eq!(ours.len(), theirs.len());
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= tolerance * b.abs().max(1.0);
                assert!(ours.iter().zip(theirs).all(close), "{name}");
            }
        }
        let other = new().with_shards(&shards, precision, made_from().with("model", "two"));
        let message = other.map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("another model"), "{message}");

        // One of the sites alone, from what was kept of both.
        let one = Source { sites: vec!["attn_z:0".parse().unwrap()], ..source(&model, &data) };
        let one = ActivationStore::new(one, settings(400)).unwrap();
        let mut one = one.with_shards(&shards, Stored::Float32, made_from()).unwrap();
        for (ours, theirs) in
            batches(&mut one, 5, 100).iter().zip(expected.iter().skip(1).step_by(2))
        {
            assert!(
                ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() <= tolerance * b.abs().max(1.0))
            );
        }
        let third = Source { sites: vec![Site::resid_post(0)], ..source(&model, &data) };
        let third = ActivationStore::new(third, settings(400)).unwrap();
        assert!(third.with_shards(&shards, precision, made_from()).is_err());

        let part = shards.join("part-00001.arrow");
        let mut bytes = std::fs::read(&part).unwrap();
        bytes[700] ^= 1;
        std::fs::write(&part, bytes).unwrap();
        let mut store = new().with_shards(&shards, precision, made_from()).unwrap();
        let read = (0..40).try_for_each(|_| store.next_batch(100, &Device::flex()).map(|_| ()));
        let message = read.unwrap_err().to_string();
        assert!(message.contains("damaged"), "{message}");
    }
}

#[test]
fn outliers_are_left_out() {
    let _turn = TURN.lock().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (model(), data(folder.path(), 120));
    let norms = |max_norm: Option<f64>| {
        let settings = StoreSettings { max_norm, ..settings(100_000) };
        let mut store = ActivationStore::new(source(&model, &data), settings).unwrap();
        let x = store.next_batch(100_000, &Device::flex()).unwrap().remove(0);
        let norms: Vec<f32> = x.square().sum_dim(1).sqrt().into_data().iter::<f32>().collect();
        norms
    };
    let all = norms(None);
    let mut sorted = all.clone();
    sorted.sort_by(f32::total_cmp);
    let (median, longest) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
    let times = f64::from((longest / median - 1.0) * 0.6 + 1.0);
    let kept = norms(Some(times));
    assert!(
        kept.len() < all.len() && kept.len() * 2 > all.len(),
        "{} of {}",
        kept.len(),
        all.len()
    );
    let most = kept.iter().copied().fold(0.0, f32::max);
    // The median is taken from the first rows alone.
    assert!(f64::from(most) < 1.1 * times * f64::from(median));
    let store = ActivationStore::new(
        source(&model, &data),
        StoreSettings { max_norm: Some(0.5), ..settings(100) },
    );
    assert!(store.is_err());
}
