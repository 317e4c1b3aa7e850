//! Folders as on the Hugging Face hub.

use super::*;

fn folder(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let row = format!("{{\"prompt\": \"{name}\", \"chosen\": \"a\", \"rejected\": \"b\"}}\n");
        std::fs::write(path, row).unwrap();
    }
    folder
}

/// The names of the files that pairs come from.
fn names((pairs, _): (Vec<Pair>, ReadSummary)) -> Vec<String> {
    pairs.iter().map(|pair| pair.prompt.to_text()).collect()
}

/// Oracle: the splits that the library `datasets` 4 finds in such folders, except that it takes test before validation nowhere.
#[test]
fn splits_are_kept_apart() {
    // (files, for training, held out)
    #[rustfmt::skip]
    let cases: [(&[&str], &[&str], &[&str]); 10] = [
        (&["a.jsonl", "b.jsonl"], &["a.jsonl", "b.jsonl"], &[]),
        (&["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"], &["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"], &["test-00000-of-00001.jsonl"]),
        (&["train.jsonl", "test.jsonl", "validation.jsonl"], &["train.jsonl"], &["validation.jsonl"]),
        (&["data/train.jsonl", "data/test.jsonl", "README.md"], &["data/train.jsonl"], &["data/test.jsonl"]),
        (&["default/train/0000.jsonl", "default/test/0000.jsonl"], &["default/train/0000.jsonl"], &["default/test/0000.jsonl"]),
        (&["train/a.jsonl", "dev/a.jsonl"], &["train/a.jsonl"], &["dev/a.jsonl"]),
        (&["my_train_set.jsonl", "my_eval_set.jsonl"], &["my_train_set.jsonl"], &["my_eval_set.jsonl"]),
        (&["test-00000-of-00001.jsonl"], &["test-00000-of-00001.jsonl"], &[]),
        (&["train_prefs-00000-of-00001.jsonl", "test_prefs-00000-of-00001.jsonl"], &["train_prefs-00000-of-00001.jsonl"], &["test_prefs-00000-of-00001.jsonl"]),
        (&["data.jsonl", "dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json"], &["data.jsonl"], &[]),
    ];
    for (files, train, held_out) in cases {
        let folder = folder(files);
        assert_eq!(names(read_pairs(folder.path(), OnEmpty::Refuse).unwrap()), train, "{files:?}");
        let found = read_held_out(folder.path(), OnEmpty::Refuse).unwrap();
        assert_eq!(found.map(names).unwrap_or_default(), held_out, "{files:?}");
    }
}

#[test]
fn a_split_can_be_named() {
    let files = [
        "train_prefs-00000-of-00001.jsonl",
        "train_sft-00000-of-00001.jsonl",
        "test_prefs-00000-of-00001.jsonl",
    ];
    let folder = folder(&files);
    let error = chain(&read_pairs(folder.path(), OnEmpty::Refuse).unwrap_err());
    assert!(error.contains("the splits test_prefs, train_prefs, train_sft; name one"), "{error}");
    for (split, file) in [("train_prefs", files[0]), ("test_prefs", files[2])] {
        let path = folder.path().join(split);
        let (pairs, summary) = read_pairs(&path, OnEmpty::Refuse).unwrap();
        assert_eq!(names((pairs, summary)), [file]);
        assert!(exists(&path) && hash(&path).is_ok());
        assert_eq!(read_held_out(&path, OnEmpty::Refuse).unwrap(), None);
    }
    let [prefs, test] =
        ["train_prefs", "test_prefs"].map(|split| hash(&folder.path().join(split)).unwrap());
    assert_ne!(prefs, test);
    assert!(
        !exists(&folder.path().join("nothing")) && hash(&folder.path().join("nothing")).is_err()
    );
    let error = read_pairs(&folder.path().join("nothing"), OnEmpty::Refuse);
    assert!(matches!(error, Err(SourceError::Io { .. })));
    // Files outside of any split beside others: nothing tells which are meant.
    std::fs::write(folder.path().join("more.jsonl"), "{}").unwrap();
    assert!(read_pairs(folder.path(), OnEmpty::Refuse).is_err());
}

#[test]
fn the_summary_names_the_split() {
    let folder = folder(&["train.jsonl", "test.jsonl"]);
    let (_, summary) = read_pairs(folder.path(), OnEmpty::Refuse).unwrap();
    assert_eq!(summary.split.as_deref(), Some("train"));
    let (_, summary) = read_pairs(&folder.path().join("test.jsonl"), OnEmpty::Refuse).unwrap();
    assert_eq!(summary.split, None);
}
