use super::*;
use crate::Fingerprint;
use crate::testing::{cases, damaged};
use proptest::prelude::*;
use std::fs;
use std::path::Path;

const D_SAE: usize = 100;

fn response(id: u64, salt: u32) -> ReferenceResponse {
    // Every seventh response has no active features.
    let active = if id % 7 == 3 { 0 } else { 1 + (id as u32 + salt) % 9 };
    let indices: Vec<u32> = (0..active).map(|i| i * 11 + salt % 11).collect();
    let values =
        indices.iter().map(|&index| 0.5 + ((index * 37 + id as u32) % 50) as f32 / 8.0).collect();
    ReferenceResponse {
        log_prob: -1.5 - id as f32,
        shared_log_prob: -1.25 - id as f32 / 2.0,
        tokens: 1 + id as u32 % 5,
        features: SparseFeatures { indices, values },
    }
}

fn row(id: u64) -> ReferenceRow {
    ReferenceRow { id, chosen: response(id, 0), rejected: response(id, 5) }
}

fn fingerprint() -> Fingerprint {
    Fingerprint::default()
        .with("reference weights", "aa")
        .with("layer", 25)
        .with("pooling", "predicting")
}

fn shape(pairs: usize, rows_per_shard: usize) -> CacheShape {
    let rows_per_shard = NonZeroUsize::new(rows_per_shard).unwrap();
    CacheShape { pairs, d_sae: D_SAE, stored: StoredFeatures::All, rows_per_shard }
}

fn write(
    folder: &Path,
    shape: CacheShape,
    rows: impl Iterator<Item = ReferenceRow>,
) -> Result<(), ReferenceError> {
    let mut writer = ReferenceWriter::create(folder, &fingerprint(), shape)?;
    for row in rows {
        writer.push(row)?;
    }
    writer.finish()
}

/// A temporary folder with a cache of `pairs` pairs in `cache`.
fn cached(pairs: usize, rows_per_shard: usize) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    write(&path, shape(pairs, rows_per_shard), (0..pairs as u64).rev().map(row)).unwrap();
    (folder, path)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn rows_round_trip() {
    for (pairs, rows_per_shard, shards) in
        [(0, 10, 1), (1, 10, 1), (10, 10, 1), (11, 10, 2), (700, 300, 3)]
    {
        let (_folder, path) = cached(pairs, rows_per_shard);
        let expected: Vec<String> =
            (0..shards).map(|shard| format!("part-{shard:05}-of-{shards:05}.parquet")).collect();
        assert_eq!(names(&path), expected);
        let cache = ReferenceCache::open(&path, &fingerprint()).unwrap();
        assert_eq!((cache.len(), cache.is_empty(), cache.d_sae()), (pairs, pairs == 0, D_SAE));
        assert_eq!((cache.stored(), cache.dropped_at_most()), (StoredFeatures::All, 0.0));
        assert_eq!(cache.fingerprint(), &fingerprint());
        for id in 0..pairs as u64 {
            assert_eq!(cache.get(id).unwrap(), row(id).view());
        }
        assert_eq!(cache.get(pairs as u64), None);
        cache.require(0..pairs as u64).unwrap();
    }
}

#[test]
fn dense_and_sparse_vectors_convert() {
    let dense = [0.0, 1.5, 0.0, -0.25, 3.0, 0.0];
    let sparse = SparseFeatures::from_dense(&dense);
    assert_eq!(sparse, SparseFeatures { indices: vec![1, 3, 4], values: vec![1.5, -0.25, 3.0] });
    let mut back = [9.0; 6];
    sparse.to_dense_into(&mut back);
    assert_eq!(back, dense);
    assert_eq!(sparse.view().to_owned(), sparse);
    // (kept, indices, bound)
    for (n, indices, bound) in
        [(0, &[][..], f32::INFINITY), (1, &[4], 3.0), (2, &[1, 4], 1.5), (3, &[1, 3, 4], 0.0)]
    {
        let mut cut = sparse.clone();
        assert_eq!(cut.keep_top(n), bound);
        assert_eq!(cut.indices, indices);
    }
}

#[test]
fn truncation_bounds_what_it_drops() {
    let folder = tempfile::tempdir().unwrap();
    let stored = StoredFeatures::Top(NonZeroUsize::new(4).unwrap());
    write(folder.path(), CacheShape { stored, ..shape(50, 20) }, (0..50).map(row)).unwrap();
    let cache = ReferenceCache::open(folder.path(), &fingerprint()).unwrap();
    let mut dropped: f32 = 0.0;
    for id in 0..50 {
        for (whole, cut) in [
            (row(id).chosen, cache.get(id).unwrap().chosen),
            (row(id).rejected, cache.get(id).unwrap().rejected),
        ] {
            assert_eq!(cut.features.indices.len(), whole.features.indices.len().min(4));
            for (index, value) in whole.features.indices.iter().zip(whole.features.values) {
                if !cut.features.indices.contains(index) {
                    dropped = dropped.max(value);
                }
            }
        }
    }
    assert!(
        0.0 < dropped && dropped <= cache.dropped_at_most(),
        "{dropped} {}",
        cache.dropped_at_most()
    );
}

#[test]
fn impossible_rows_are_refused_on_writing() {
    type Change = fn(&mut ReferenceRow);
    let cases: [(&str, Change); 11] = [
        ("chosen log-probability is NaN", |row| row.chosen.log_prob = f32::NAN),
        ("rejected log-probability is 0.5", |row| row.rejected.log_prob = 0.5),
        ("chosen log-probability is -inf", |row| row.chosen.log_prob = f32::NEG_INFINITY),
        ("rejected response has no tokens", |row| row.rejected.tokens = 0),
        ("chosen feature 0 is NaN", |row| row.chosen.features.values[0] = f32::NAN),
        ("rejected feature 5 is inf", |row| row.rejected.features.values[0] = f32::INFINITY),
        ("index 100 isn't below the autoencoder's width 100", |row| {
            row.chosen.features.indices[1] = 100
        }),
        ("aren't strictly ascending at 0", |row| row.chosen.features.indices[1] = 0),
        ("2 feature indices but 1 values", |row| row.chosen.features.values.truncate(1)),
        ("pair 0 is stored twice", |row| row.id = 0),
        ("pair 1: ", |row| row.chosen.tokens = 0),
    ];
    for (expected, change) in cases {
        let folder = tempfile::tempdir().unwrap();
        let mut bad = row(1);
        change(&mut bad);
        let error =
            write(folder.path(), shape(2, 10), [row(0), bad].into_iter()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\nlacks {expected}");
    }
    // Rounding errors are tolerated.
    let folder = tempfile::tempdir().unwrap();
    let mut rounded = row(0);
    rounded.chosen.log_prob = 1e-6;
    write(folder.path(), shape(1, 10), [rounded].into_iter()).unwrap();
    assert_eq!(
        ReferenceCache::open(folder.path(), &fingerprint())
            .unwrap()
            .get(0)
            .unwrap()
            .chosen
            .log_prob,
        0.0
    );
}

#[test]
fn too_few_and_too_many_rows_are_refused() {
    for count in [1, 3] {
        let folder = tempfile::tempdir().unwrap();
        let error =
            write(folder.path(), shape(2, 10), (0..count).map(row)).unwrap_err().to_string();
        assert!(error.contains(&format!("has {count} pairs instead of 2")), "{error}");
        assert!(ReferenceCache::open(folder.path(), &fingerprint()).is_err());
    }
    let (_folder, path) = cached(3, 10);
    let error = ReferenceWriter::create(&path, &fingerprint(), shape(3, 10)).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("isn't empty"));
}

#[test]
fn another_fingerprint_is_refused_and_every_difference_named() {
    let (_folder, path) = cached(3, 10);
    let expected = fingerprint().with("layer", 13).with("tokenizer", "bb");
    let Err(ReferenceError::Fingerprint { differences, .. }) =
        ReferenceCache::open(&path, &expected)
    else {
        panic!("it was accepted");
    };
    let shown: Vec<String> = differences.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        ["layer: expected `13`, found `25`", "tokenizer: expected `bb`, found nothing"]
    );
    let error = ReferenceCache::open(&path, &expected).unwrap_err().to_string();
    assert!(
        shown.iter().all(|difference| error.contains(difference)) && error.contains("cache"),
        "{error}"
    );
}

/// Writes a shard without any checks.
fn forge(path: &Path, info: &columns::ShardInfo, rows: &[ReferenceRow]) {
    use parquet::file::metadata::KeyValue;
    let metadata = vec![
        KeyValue::new(columns::INFO_KEY.to_owned(), serde_json::to_string(info).unwrap()),
        KeyValue::new(columns::BOUND_KEY.to_owned(), "0".to_owned()),
    ];
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_key_value_metadata(Some(metadata))
        .build();
    let file = fs::File::create(path).unwrap();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(file, columns::schema(), Some(properties)).unwrap();
    writer.write(&columns::encode(rows).unwrap()).unwrap();
    writer.close().unwrap();
}

#[test]
fn damaged_caches_are_refused() {
    let info = columns::ShardInfo {
        fingerprint: fingerprint(),
        pairs: 20,
        d_sae: D_SAE,
        shards: 2,
        stored: StoredFeatures::All,
    };
    let second = |path: &Path| path.join("part-00001-of-00002.parquet");
    let rows = |from: u64| (from..from + 10).map(row).collect::<Vec<_>>();
    let changed = |change: fn(&mut ReferenceRow)| {
        let mut rows = rows(10);
        change(&mut rows[4]);
        rows
    };
    type Damage<'a> = Box<dyn Fn(&Path) + 'a>;
    let with_rows = |rows: Vec<ReferenceRow>, info: columns::ShardInfo| -> Damage<'static> {
        Box::new(move |path| forge(&path.join("part-00001-of-00002.parquet"), &info, &rows))
    };
    let cut = |path: &Path, share: usize| {
        let bytes = fs::read(second(path)).unwrap();
        fs::write(second(path), &bytes[..bytes.len() / share]).unwrap();
    };
    #[rustfmt::skip]
    let cases: Vec<(&str, Damage<'_>)> = vec![
        ("can't be read", Box::new(|path| fs::remove_dir_all(path).unwrap())),
        ("shards are missing: part-00000-of-?????.parquet", Box::new(|path| { fs::remove_dir_all(path).unwrap(); fs::create_dir(path).unwrap(); })),
        ("shards are missing: part-00001-of-00002.parquet", Box::new(|path| fs::remove_file(second(path)).unwrap())),
        ("shards are missing: part-00000-of-00002.parquet", Box::new(|path| fs::remove_file(path.join("part-00000-of-00002.parquet")).unwrap())),
        ("is not a whole shard", Box::new(move |path| cut(path, 2))),
        ("is not a whole shard", Box::new(|path| fs::write(path.join("part-00001-of-00002.parquet"), "").unwrap())),
        ("is not a whole shard", Box::new(|path| fs::write(path.join("part-00001-of-00002.parquet"), "PAR1 what? PAR1").unwrap())),
        ("has 19 pairs instead of 20", with_rows(rows(10)[..9].to_vec(), info.clone())),
        ("pair 3 is stored twice", with_rows(changed(|row| row.id = 3), info.clone())),
        ("pair 15 is stored twice", with_rows(changed(|row| row.id = 15), info.clone())),
        ("pair 14: chosen log-probability is NaN", with_rows(changed(|row| row.chosen.log_prob = f32::NAN), info.clone())),
        ("pair 14: rejected log-probability is 0.001", with_rows(changed(|row| row.rejected.log_prob = 0.001), info.clone())),
        ("pair 14: chosen response has no tokens", with_rows(changed(|row| row.chosen.tokens = 0), info.clone())),
        ("pair 14: rejected feature 5 is NaN", with_rows(changed(|row| row.rejected.features.values[0] = f32::NAN), info.clone())),
        ("pair 14: chosen feature index 100 isn't below", with_rows(changed(|row| *row.chosen.features.indices.last_mut().unwrap() = 100), info.clone())),
        ("another cache than the first shard", with_rows(rows(10), columns::ShardInfo { d_sae: 7, ..info.clone() })),
        ("another cache than the first shard", with_rows(rows(10), columns::ShardInfo { fingerprint: fingerprint().with("layer", 1), ..info.clone() })),
    ];
    for (expected, damage) in cases {
        let (_folder, path) = cached(20, 10);
        // `cached` writes ids in descending order; write them in ascending order, so that the second shard has 10 to 19.
        if expected.contains("pair") {
            forge(&path.join("part-00000-of-00002.parquet"), &info, &rows(0));
        }
        damage(&path);
        let error = ReferenceCache::open(&path, &fingerprint()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\nlacks {expected}");
    }
}

#[test]
fn missing_pairs_are_named() {
    let (_folder, path) = cached(10, 10);
    let cache = ReferenceCache::open(&path, &fingerprint()).unwrap();
    let error = cache.require(5..25).unwrap_err().to_string();
    assert!(
        error.contains("lacks 15 of the pairs asked for, the first of them 10, 11, 12, 13, 14;"),
        "{error}"
    );
}

/// The bytes of a cache's only shard.
fn bytes_of_a_shard() -> Vec<u8> {
    let (_folder, path) = cached(30, 30);
    fs::read(path.join("part-00000-of-00001.parquet")).unwrap()
}

proptest! {
    #![proptest_config(cases(1000))]
    #[test]
    fn damaged_bytes_never_panic(bytes in damaged(bytes_of_a_shard(), 2000)) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("part-00000-of-00001.parquet"), bytes).unwrap();
        if let Ok(cache) = ReferenceCache::open(folder.path(), &fingerprint()) {
            let mut dense = [0.0; D_SAE];
            for view in (0..100).filter_map(|id| cache.get(id)) {
                view.chosen.features.to_dense_into(&mut dense);
            }
        }
    }
}

#[test]
fn shards_are_added_in_any_order_but_only_to_their_cache() {
    let folder = tempfile::tempdir().unwrap();
    let three = NonZeroUsize::new(3);
    let add = |cache: &SharedCache, shard: usize| {
        let mut writer = cache.writer(shard).unwrap();
        (0..10).filter(|id| *id as usize % 3 == shard).for_each(|id| writer.push(row(id)).unwrap());
        writer.finish().unwrap();
    };
    let cache = SharedCache::open(folder.path(), &fingerprint(), shape(10, 100), three).unwrap();
    for shard in [1, 2] {
        assert!(!cache.has(shard).unwrap());
        add(&cache, shard);
        assert!(cache.has(shard).unwrap());
    }
    let error = ReferenceCache::open(folder.path(), &fingerprint()).unwrap_err().to_string();
    assert!(error.contains("part-00000-of-00003.parquet"), "{error}");

    // The number of shards defaults to that of the existing ones.
    let later = SharedCache::open(folder.path(), &fingerprint(), shape(10, 100), None).unwrap();
    assert_eq!(later.shards(), 3);
    let path = folder.path().join("part-00001-of-00003.parquet");
    let whole = fs::read(&path).unwrap();
    for damaged in [&whole[..whole.len() / 2], &whole[..10], b""] {
        fs::write(&path, damaged).unwrap();
        assert!(!later.has(1).unwrap());
    }
    fs::write(folder.path().join(".part-00001-of-00003.parquet.x1y2"), "half").unwrap();
    add(&later, 1);
    add(&later, 0);
    assert_eq!(names(folder.path()), [0, 1, 2].map(|shard| columns::shard_name(shard, 3)));
    let cache = ReferenceCache::open(folder.path(), &fingerprint()).unwrap();
    assert!((0..10).all(|id| cache.get(id).unwrap() == row(id).view()));

    // Another cache, another number of parts, another size.
    let other = fingerprint().with("layer", 13);
    for (fingerprint, pairs, shards, says) in [
        (&other, 10, 3, "layer: expected `13`, found `25`"),
        (&fingerprint(), 10, 4, "in 3 parts, and this one is in 4"),
        (&fingerprint(), 11, 3, "another size"),
    ] {
        let shards = NonZeroUsize::new(shards);
        let shape = shape(pairs, 100);
        let error = SharedCache::open(folder.path(), fingerprint, shape, shards).unwrap_err();
        let cause = std::error::Error::source(&error).map_or(String::new(), ToString::to_string);
        assert!(format!("{error} {cause}").contains(says), "{error} {cause}");
    }
}
