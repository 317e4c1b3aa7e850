//! Preference pairs from a file to padded batches: `cargo run -p fpo-data --example tokenize_pairs [FILE]`.
//!
//! The file holds pairs in any schema of `fpo_data::source`; without one, it is the repository's sample of HH-RLHF.

use fpo_data::{
    Batches, ChatTemplate, OnEmpty, PairBatch, PairStore, Preparer, Rendering, TemplateChoice,
    Tokenizer, Truncation, read_pairs,
};
use std::{error::Error, num::NonZeroUsize, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../../datasets/samples/hh-rlhf.jsonl");
    let file = std::env::args_os().nth(1).map_or(PathBuf::from(sample), PathBuf::from);
    let (pairs, read) = read_pairs(&file, OnEmpty::Auto)?;
    println!("{} pairs; {} rows without an answer are left out", pairs.len(), read.dropped_empty);

    // A model brings its tokenizer and template (`Tokenizer::load`); here they are made from the data.
    let texts = pairs.iter().flat_map(|pair| [pair.chosen.to_text(), pair.rejected.to_text()]);
    let texts: Vec<_> = texts.collect();
    let tokenizer = Tokenizer::train_bpe(texts.iter().map(|text| &**text), 600)?;
    let template = TemplateChoice::Chat(ChatTemplate::plain(&tokenizer.bos_token())?);
    let limits = Truncation { max_length: 256, max_prompt_length: Some(192) };
    let preparer = Preparer::new(&tokenizer, &template, Rendering::Auto, limits)?;
    let (tokenized, summary) = preparer.prepare_pairs(&pairs)?;
    println!("{} kept, {} clipped, {} tokens", summary.kept, summary.clipped, summary.tokens);

    // A run writes the store once and then reads it through a memory mapping.
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("train.arrow");
    let fingerprint = preparer.fingerprint(&pairs, &tokenized);
    PairStore::write(&path, &fingerprint, tokenized)?;
    let store = PairStore::open(&path)?;
    assert_eq!(store.binding(), fingerprint);

    let size = NonZeroUsize::new(4).ok_or("a batch size of 0")?;
    for indices in Batches::shuffled(&store.lengths(), size, 0, 0).iter().take(3) {
        let PairBatch { ids, batch } = PairBatch::new(&store.views(indices)?)?;
        let (rows, tokens, targets) = (batch.rows(), batch.tokens.len(), batch.targets().len());
        println!("pairs {ids:?}: {rows} rows of {tokens} tokens, {targets} response tokens");
    }
    Ok(())
}
