//! The files of a folder: which of them are data, and to which split they belong.
//!
//! Splits are named as on the Hugging Face hub: by the name of a file (`train-00000-of-00002.parquet`, `test.jsonl.gz`) or of the
//! folder that it lies in (`test/0000.parquet`).

use super::SourceError;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Which rows of a folder with several splits are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Those to train on.
    Train,
    /// Those held out: of the validation split, or else of the test split.
    HeldOut,
}

/// What a split is for, told from the first word of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Train,
    Validation,
    Test,
}

/// The words that stand for each use, as in the library `datasets`.
const WORDS: [(&str, Use); 10] = [
    ("train", Use::Train),
    ("training", Use::Train),
    ("validation", Use::Validation),
    ("valid", Use::Validation),
    ("val", Use::Validation),
    ("dev", Use::Validation),
    ("test", Use::Test),
    ("testing", Use::Test),
    ("eval", Use::Test),
    ("evaluation", Use::Test),
];

/// Folders that are searched if a folder has no data of its own, and files in JSON that describe a set.
const SUBFOLDERS: [&str; 2] = ["data", "default"];
const DESCRIPTIONS: [&str; 4] =
    ["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"];

/// Files of one folder by their split's name, `None` for those outside of any split.
type Splits = BTreeMap<Option<String>, Vec<PathBuf>>;

/// The file itself; the files of a folder, in the order of their names; or the files of a split, as `FOLDER/SPLIT`. Of a folder with
/// several splits, [`Part`] tells which. No files if that part doesn't exist.
pub(super) fn files(path: &Path, part: Part) -> Result<Vec<PathBuf>, SourceError> {
    let io = |source| SourceError::Io { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Ok(if part == Part::Train { vec![path.to_owned()] } else { Vec::new() }),
        Err(error) => {
            let named = if part == Part::Train { split_named(path)? } else { Some(Vec::new()) };
            return named.ok_or_else(|| io(error));
        }
    }
    let splits = splits(path).map_err(io)?;
    if splits.is_empty() {
        return Err(SourceError::NoFiles { path: path.to_owned() });
    }
    if splits.len() == 1 {
        let all = splits.into_values().flatten();
        return Ok(if part == Part::Train { all.collect() } else { Vec::new() });
    }
    let of = |wanted| {
        splits.iter().filter(move |(name, _)| name.as_deref().and_then(usage) == Some(wanted))
    };
    let chosen: Vec<_> = match part {
        Part::Train => of(Use::Train).collect(),
        Part::HeldOut => {
            let validation: Vec<_> = of(Use::Validation).collect();
            if validation.is_empty() { of(Use::Test).collect() } else { validation }
        }
    };
    match (&chosen[..], part) {
        ([(_, files)], _) => Ok(files.to_vec()),
        ([], Part::HeldOut) => Ok(Vec::new()),
        _ => Err(ambiguous(path, &splits)),
    }
}

/// The name of the split that is read of a folder with several, for summaries.
pub(super) fn split_of(folder: &Path, file: &Path) -> Option<String> {
    let splits = splits(folder).ok().filter(|splits| splits.len() > 1)?;
    splits.into_iter().find(|(_, files)| files.iter().any(|other| other == file))?.0
}

fn ambiguous(path: &Path, splits: &Splits) -> SourceError {
    let names: Vec<&str> = splits.keys().map(|name| name.as_deref().unwrap_or("(none)")).collect();
    let first = splits.keys().flatten().next().map_or("train", String::as_str);
    SourceError::Splits {
        path: path.to_owned(),
        splits: names.join(", "),
        example: path.join(first),
    }
}

/// The files of `FOLDER/SPLIT`; `None` if there is no such split.
fn split_named(path: &Path) -> Result<Option<Vec<PathBuf>>, SourceError> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if !folder.is_dir() {
        return Ok(None);
    }
    let mut splits =
        splits(folder).map_err(|source| SourceError::Io { path: folder.to_owned(), source })?;
    Ok(splits.remove(&Some(name.to_string_lossy().into_owned())))
}

/// The data files of a folder, or else of its folders of splits, or else of the sub-folders that the hub uses.
fn splits(folder: &Path) -> io::Result<Splits> {
    let mut splits = Splits::new();
    for file in data_files(folder)? {
        splits.entry(split_name(&file)).or_default().push(file);
    }
    if !splits.is_empty() {
        return Ok(splits);
    }
    let mut folders: Vec<PathBuf> = entries(folder)?.into_iter().filter(|e| e.is_dir()).collect();
    folders.sort();
    for inner in &folders {
        let name = inner.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if usage(&name).is_some() {
            let files = data_files(inner)?;
            if !files.is_empty() {
                splits.insert(Some(name), files);
            }
        }
    }
    for inner in SUBFOLDERS.iter().map(|name| folder.join(name)) {
        if splits.is_empty() && inner.is_dir() {
            splits = self::splits(&inner)?;
        }
    }
    Ok(splits)
}

/// The split that a file's name tells: all before `-00000-of-00002`, or a word such as `train`.
fn split_name(file: &Path) -> Option<String> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let stem = name.split('.').next().unwrap_or_default();
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    if let Some((before, count)) = stem.rsplit_once("-of-")
        && let Some((split, index)) = before.rsplit_once('-')
        && is_number(count)
        && is_number(index)
    {
        return usage(split).map(|_| split.to_owned());
    }
    let mut words = stem.split(|c: char| !c.is_ascii_alphabetic());
    words.find(|word| WORDS.iter().any(|(known, _)| known == word)).map(str::to_owned)
}

/// What a split is for: `train_prefs` is for training.
fn usage(split: &str) -> Option<Use> {
    let first = split.split(|c: char| !c.is_ascii_alphabetic()).next()?;
    WORDS.iter().find(|(word, _)| *word == first).map(|&(_, usage)| usage)
}

/// A folder's own data files, sorted by name.
fn data_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = entries(folder)?;
    files.retain(|file| is_data(file) && file.is_file());
    files.sort();
    Ok(files)
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
}

fn is_data(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    // A leading dot marks files that are still being written, by this program or others.
    !plain.starts_with('.')
        && !DESCRIPTIONS.contains(&plain)
        && [".jsonl", ".json", ".ndjson", ".parquet"].iter().any(|ending| plain.ends_with(ending))
}
