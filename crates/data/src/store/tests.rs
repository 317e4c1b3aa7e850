use super::*;
use crate::testing::{cases, damaged};
use crate::tokens::TokenizedResponse;
use proptest::prelude::*;

fn response(id: u64, salt: u64) -> TokenizedResponse {
    let len = 2 + ((id * 7 + salt) % 30) as u32;
    let tokens = (0..len).map(|t| t * 1000 + id as u32).collect();
    TokenizedResponse { tokens, prompt_len: 1 + (id as usize % (len as usize - 1)) }
}

fn pairs(count: u64) -> Vec<TokenizedPair> {
    (0..count)
        .map(|id| TokenizedPair { id: id * 3, chosen: response(id, 0), rejected: response(id, 5) })
        .collect()
}

fn fingerprint() -> Fingerprint {
    Fingerprint::default().with("tokenizer", "abc").with("odd \"text\" ü", "\n")
}

/// A temporary folder with a store of `count` pairs.
fn stored(count: u64) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.arrow");
    assert_eq!(PairStore::write(&path, &fingerprint(), pairs(count)).unwrap(), count as usize);
    (folder, path)
}

#[test]
fn pairs_round_trip() {
    // Blocks hold 4,096 records.
    for count in [0, 1, 4095, 4096, 4097, 10_000] {
        let (_folder, path) = stored(count);
        let store = PairStore::open(&path).unwrap();
        assert_eq!((store.len(), store.is_empty()), (count as usize, count == 0));
        assert_eq!(store.fingerprint(), &fingerprint());
        let expected = pairs(count);
        assert!(store.iter().map(|pair| pair.to_owned()).eq(expected.iter().cloned()));
        for index in [0, 4095, 4096, 9999].into_iter().filter(|&index| index < expected.len()) {
            assert_eq!(store.get(index).unwrap(), expected[index].view());
        }
        let longest = expected.iter().map(|pair| pair.view().longest());
        assert_eq!(store.lengths(), longest.collect::<Vec<_>>());
        let tokens =
            |pair: &TokenizedPair| [&pair.chosen.tokens[..], &pair.rejected.tokens].concat();
        assert_eq!(store.largest_token(), expected.iter().flat_map(tokens).max());
        let error = store.get(count as usize).unwrap_err().to_string();
        assert!(
            error.contains(&format!("there is no record {count}; the store has {count}")),
            "{error}"
        );
    }
}

#[test]
fn examples_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/examples.arrow");
    let examples: Vec<_> = (0..5000)
        .map(|id| TokenizedExample { id, response: response(id, 0), context: Vec::new() })
        .collect();
    assert_eq!(SequenceStore::write(&path, &fingerprint(), examples.clone()).unwrap(), 5000);
    let store = SequenceStore::open(&path).unwrap();
    assert!(store.iter().map(|example| example.to_owned()).eq(examples.iter().cloned()));
    assert_eq!(store.views(&[4999, 0]).unwrap(), [examples[4999].view(), examples[0].view()]);
    assert_eq!(store.lengths()[7], examples[7].response.tokens.len());
    let tokens = examples.iter().flat_map(|example| &example.response.tokens);
    assert_eq!(store.largest_token(), tokens.max().copied());
    assert!(!store.is_empty() && store.fingerprint() == &fingerprint());
}

#[test]
fn reading_copies_nothing() {
    let (_folder, path) = stored(10);
    let store = PairStore::open(&path).unwrap();
    let (first, again) = (store.get(3).unwrap(), store.get(3).unwrap());
    assert_eq!(first.chosen.tokens.as_ptr(), again.chosen.tokens.as_ptr());
}

#[test]
fn the_same_pairs_give_the_same_bytes() {
    let ((_a, a), (_b, b)) = (stored(5000), stored(5000));
    assert_eq!(crate::hash::hash_file(&a).unwrap(), crate::hash::hash_file(&b).unwrap());
}

#[test]
fn a_failed_write_keeps_the_old_store() {
    let (folder, path) = stored(3);
    let mut bad = pairs(5000);
    bad[4999].rejected.prompt_len = 0;
    let error = PairStore::write(&path, &fingerprint(), bad).unwrap_err().to_string();
    assert!(error.contains("record 4999 (id 14997) has 0 prompt tokens"), "{error}");
    assert_eq!(PairStore::open(&path).unwrap().len(), 3);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no leftovers");
}

#[test]
fn other_files_are_refused() {
    let (folder, path) = stored(3);
    let bytes = std::fs::read(&path).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let examples = folder.path().join("examples.arrow");
    SequenceStore::write(&examples, &fingerprint(), []).unwrap();
    let cases = [
        (folder.path().join("none"), "can't be read"),
        (file("empty", b""), "too short"),
        (file("text", b"this is not an Arrow file at all"), "its end is missing"),
        (file("cut", &bytes[..bytes.len() / 2]), "its end is missing"),
        (file("tail", &bytes[bytes.len() - 10..]), "footer is longer than the file"),
        (file("headless", &bytes[64..]), "is not a complete Arrow IPC file"),
        (examples, "another kind of store"),
    ];
    for (path, expected) in cases {
        let error = PairStore::open(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{}: {error}", path.display());
        assert!(error.contains(&path.display().to_string()));
    }
    assert!(matches!(SequenceStore::open(&path), Err(StoreError::Columns { .. })));
}

fn bytes_of_a_store() -> Vec<u8> {
    let (_folder, path) = stored(40);
    std::fs::read(path).unwrap()
}

fn any_response() -> impl Strategy<Value = TokenizedResponse> {
    prop::collection::vec(any::<u32>(), 2..20).prop_flat_map(|tokens| {
        (1..tokens.len())
            .prop_map(move |prompt_len| TokenizedResponse { tokens: tokens.clone(), prompt_len })
    })
}

fn any_pair() -> impl Strategy<Value = TokenizedPair> {
    (any::<u64>(), any_response(), any_response())
        .prop_map(|(id, chosen, rejected)| TokenizedPair { id, chosen, rejected })
}

proptest! {
    #![proptest_config(cases(200))]
    #[test]
    fn any_pairs_round_trip(pairs in prop::collection::vec(any_pair(), 0..30)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.arrow");
        prop_assert_eq!(PairStore::write(&path, &fingerprint(), pairs.clone()).unwrap(), pairs.len());
        let store = PairStore::open(&path).unwrap();
        prop_assert_eq!(store.iter().map(|pair| pair.to_owned()).collect::<Vec<_>>(), pairs);
    }
}

proptest! {
    #![proptest_config(cases(1500))]
    #[test]
    fn damaged_bytes_never_panic(bytes in damaged(bytes_of_a_store(), 1500)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.arrow");
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(store) = PairStore::open(&path) {
            for pair in store.iter() {
                prop_assert!(pair.chosen.is_sound() && pair.rejected.is_sound());
            }
        }
    }
}

/// Context is stored where there is any, and a store without is as before.
#[test]
fn context_round_trips() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, context: &[&[u32]]| {
        let path = folder.path().join(name);
        let examples: Vec<_> = context
            .iter()
            .enumerate()
            .map(|(id, context)| {
                let response = TokenizedResponse { tokens: vec![7; 9], prompt_len: 2 };
                TokenizedExample { id: id as u64, response, context: context.to_vec() }
            })
            .collect();
        SequenceStore::write_with_context(&path, &fingerprint(), examples.clone())
            .map(|_| (path, examples))
    };
    let (path, examples) = write("some", &[&[], &[3, 4, 8], &[7]]).unwrap();
    let store = SequenceStore::open(&path).unwrap();
    assert!(store.iter().map(|example| example.to_owned()).eq(examples.iter().cloned()));
    assert_eq!(store.get(1).unwrap().learned(), 4);
    assert!(matches!(Store::open(&path).unwrap(), Store::Examples(_)));

    let (with, examples) = write("none", &[&[], &[]]).unwrap();
    let without = folder.path().join("without");
    SequenceStore::write(&without, &fingerprint(), examples).unwrap();
    assert_eq!(std::fs::read(with).unwrap(), std::fs::read(without).unwrap());

    for bad in [&[2][..], &[1], &[9], &[5, 4], &[5, 5], &[3, 4, 5, 6, 7, 8, 9]] {
        let error = write("bad", &[&[], bad]).unwrap_err().to_string();
        assert!(error.contains("record 1 (id 1) has context"), "{bad:?}: {error}");
    }
    // The writer for examples without context takes none, rather than to lose it.
    let (_, examples) = write("one", &[&[3]]).unwrap();
    let lost = SequenceStore::write(&folder.path().join("lost"), &fingerprint(), examples);
    assert!(lost.unwrap_err().to_string().contains("has context"));
}
