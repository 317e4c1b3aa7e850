//! `fpo reference`: what it writes, in one piece or in parts, undisturbed or killed.
//!
//! Oracle of the values: transformers and scalar arithmetic (`tests/fixtures/evaluate/generate.py`).

use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use fpo_data::{ReferenceCache, reference::ReferenceView};
use safetensors::SafeTensors;

use crate::{
    common::{PATIENCE, arg, fail, fpo, succeed},
    evaluate::{Evaluate, file, reference},
    score::json_lines,
};

fn open(cache: &Path) -> ReferenceCache {
    let fingerprint = ReferenceCache::made_from(cache).unwrap();
    ReferenceCache::open(cache, &fingerprint).unwrap()
}

/// Every value of both, bit by bit.
fn assert_same(one: &ReferenceCache, other: &ReferenceCache) {
    assert_eq!(one.len(), other.len());
    for id in 0..one.len() as u64 {
        let bits = |row: ReferenceView| {
            [row.chosen, row.rejected].map(|side| {
                let values: Vec<u32> = side.features.values.iter().map(|v| v.to_bits()).collect();
                (side.log_prob.to_bits(), side.tokens, side.features.indices.to_vec(), values)
            })
        };
        assert_eq!(bits(one.get(id).unwrap()), bits(other.get(id).unwrap()), "pair {id}");
    }
}

#[test]
fn the_cache_holds_what_the_reference_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    reference(&path, &["--batch-size", "3"]);
    let cache = open(&path);
    let rows = json_lines(&file("reference.jsonl"));
    let bytes = fs::read(file("pooled.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let pooled = tensors.tensor("pooled").unwrap();
    let (d_sae, values) = (pooled.shape()[2], pooled.data().as_chunks().0);
    assert_eq!((cache.len(), cache.d_sae()), (rows.len(), d_sae));
    let mut dense = vec![0.0; d_sae];
    for (id, row) in rows.iter().enumerate() {
        let found = cache.get(id as u64).unwrap();
        for (side, (name, found)) in
            [("chosen", found.chosen), ("rejected", found.rejected)].into_iter().enumerate()
        {
            let expected = row[format!("{name}_log_prob")].as_f64().unwrap();
            assert!((f64::from(found.log_prob) - expected).abs() < 1e-4, "pair {id}, {name}");
            assert_eq!(row[format!("{name}_tokens")], found.tokens);
            found.features.to_dense_into(&mut dense);
            let expected = &values[(2 * id + side) * d_sae..][..d_sae];
            let difference =
                dense.iter().zip(expected).map(|(a, b)| (a - f32::from_le_bytes(*b)).abs());
            let largest = difference.fold(0.0, f32::max);
            assert!(largest < 1e-4, "pair {id}, {name}: pooled activations differ by {largest}");
        }
    }
}

/// Oracle: the cache made in one piece, bit by bit.
#[test]
fn parts_made_apart_are_the_same_cache() {
    let folder = tempfile::tempdir().unwrap();
    // Blocks are of 64 pairs: with 7 pairs a single part would have them all.
    let data = folder.path().join("many.jsonl");
    fs::write(&data, fs::read_to_string(file("pairs.jsonl")).unwrap().repeat(28)).unwrap();
    let (model, sae) = (file("reference"), file("sae"));
    let make = |out: &Path, more: &[&str]| {
        let files = ["--model", arg(&model), "--sae", arg(&sae), "--data", arg(&data)];
        let base = ["reference", "--site", "resid_post:1", "--batch-size", "5", "--out", arg(out)];
        [&base[..], &files, more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run =
        |arguments: Vec<String>| succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let whole = folder.path().join("whole");
    run(make(&whole, &[]));
    let evaluate = Evaluate { data: data.clone(), ..Evaluate::new(folder.path()) };
    let parts = &evaluate.cache;
    run(make(parts, &["--shard", "2/3"]));
    run(make(parts, &["--shard", "0/3"]));
    evaluate.refused("fpo", &["--k", "5"], &["part-00001-of-00003.parquet", "missing"]);

    // A part that is there stays, a damaged one is made again, and no --shard means all that are missing.
    let damaged = parts.join("part-00002-of-00003.parquet");
    let bytes = fs::read(&damaged).unwrap();
    fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
    fs::write(parts.join(".part-00001-of-00003.parquet.left"), "half").unwrap();
    let printed = run(make(parts, &[]));
    assert!(
        printed.contains("part 0 of 3 already exists") && !printed.contains("part 2 of 3 already"),
        "{printed}"
    );
    assert!(fs::read(&damaged).unwrap() == bytes, "made again, a part is the same");
    assert_eq!(fs::read_dir(parts).unwrap().count(), 3, "something was left over");

    let (whole, divided) = (open(&whole), open(parts));
    assert_eq!((whole.len(), divided.len()), (196, 196));
    assert_same(&whole, &divided);
    assert_eq!(evaluate.run("fpo", &["--k", "5"]).len(), 196);
    for (shard, says) in
        [("3/3", "counted from 0"), ("x", "I/N"), ("0/2", "in 3 parts"), ("0/0", "I/N")]
    {
        let arguments = make(parts, &["--shard", shard]);
        let printed = fail(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(printed.contains(says), "{shard}: no {says:?} in:\n{printed}");
    }
}

/// Oracle: the cache of a process that nobody killed.
#[test]
fn a_killed_process_leaves_whole_parts_and_another_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let evaluate =
        Evaluate { data: folder.path().join("many.jsonl"), ..Evaluate::new(folder.path()) };
    fs::write(&evaluate.data, fs::read_to_string(file("pairs.jsonl")).unwrap().repeat(800))
        .unwrap();
    let (model, sae, undisturbed) = (file("reference"), file("sae"), folder.path().join("whole"));
    let base = ["reference", "--site", "resid_post:1", "--model", arg(&model), "--sae", arg(&sae)];
    let base = [&base[..], &["--data", arg(&evaluate.data), "--out"]].concat();
    succeed(&[&base[..], &[arg(&undisturbed)]].concat());

    let arguments = [&base[..], &[arg(&evaluate.cache)]].concat();
    succeed(&[&arguments[..], &["--shard", "17/80"]].concat());
    let parts = || -> Vec<String> {
        let entries = fs::read_dir(&evaluate.cache).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with('.')).collect()
    };
    let mut child = fpo(&arguments).spawn().unwrap();
    let begun = Instant::now();
    while parts().len() < 5 {
        assert!(begun.elapsed() < PATIENCE, "it never got there");
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        sleep(Duration::from_millis(1));
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    let there = parts().len();
    assert!((5..80).contains(&there), "{there} parts");
    evaluate.refused("dpo", &["--k", "5"], &["missing", "part-00079-of-00080.parquet"]);

    let printed = succeed(&arguments);
    assert_eq!(printed.matches(" of 80 already exists").count(), there, "{printed}");
    assert_eq!(fs::read_dir(&evaluate.cache).unwrap().count(), 80, "something was left over");
    assert_same(&open(&undisturbed), &open(&evaluate.cache));
}
