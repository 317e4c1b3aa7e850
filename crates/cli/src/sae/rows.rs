//! The `--data` of `fpo sae` commands: tokenised rows.

use std::path::Path;

use anyhow::{Context, Result, bail};
use fpo_data::{
    Fingerprint, OnEmpty, Preparer, Rendering, SequenceStore, Store, TokenizedExample,
    TokenizedResponse, Truncation, read_sft,
};
use fpo_interp::activations::Source;
use fpo_transformer::Site;
use tempfile::TempDir;

use crate::{loaded::Loaded, terminal::reporter, tokens::is_prepared};

/// Tokenised rows, in a memory-mapped file.
pub struct Rows {
    pub store: SequenceStore,
    /// Holds the store of rows that were tokenised for this command; removed on drop.
    _folder: Option<TempDir>,
}

impl Rows {
    /// Opens prepared data (`sft.arrow` or `train.arrow` of a run), or tokenises a file of examples or pairs to at most `max_length`
    /// tokens per row. Of pairs, the chosen responses are read.
    pub fn open(
        data: &Path,
        loaded: &Loaded,
        rendering: Rendering,
        max_length: Option<usize>,
    ) -> Result<Self> {
        if is_prepared(data) {
            let rows = match Store::open(data)? {
                Store::Examples(store) => Self { store, _folder: None },
                Store::Pairs(pairs) => {
                    let chosen = pairs.iter().map(|pair| {
                        let (tokens, prompt_len) =
                            (pair.chosen.tokens.to_vec(), pair.chosen.prompt_len);
                        TokenizedExample {
                            id: pair.id,
                            response: TokenizedResponse { tokens, prompt_len },
                        }
                    });
                    Self::write(chosen)?
                }
            };
            let vocabulary = loaded.model.config().vocab_size;
            let highest = rows.store.iter().flat_map(|e| e.response.tokens).max().copied();
            if let Some(token) = highest.filter(|token| *token as usize >= vocabulary) {
                bail!(
                    "{}: token {token} is beyond the model's vocabulary of {vocabulary}; the file was prepared for a different model",
                    data.display()
                );
            }
            return Ok(rows);
        }
        let (examples, _) = read_sft(data, OnEmpty::Auto)?;
        let positions = loaded.model.config().max_position_embeddings;
        let truncation = Truncation {
            max_length: max_length.unwrap_or(positions).min(positions),
            max_prompt_length: None,
        };
        let preparer = Preparer::new(&loaded.tokenizer, &loaded.template, rendering, truncation)?;
        let (rows, _) = preparer.prepare_examples(&examples)?;
        Self::write(rows)
    }

    fn write(rows: impl IntoIterator<Item = TokenizedExample>) -> Result<Self> {
        let folder = TempDir::new().context("creating a temporary folder")?;
        let path = folder.path().join("rows.arrow");
        SequenceStore::write(&path, &Fingerprint::default(), rows)?;
        Ok(Self { store: SequenceStore::open(&path)?, _folder: Some(folder) })
    }

    /// The source of activations at `sites` on these rows, without special tokens.
    pub fn source<'a>(&'a self, loaded: &'a Loaded, sites: Vec<Site>) -> Source<'a> {
        Source {
            model: &loaded.model,
            data: &self.store,
            pad: loaded.tokenizer.pad_id(),
            excluded: loaded.tokenizer.special_ids(),
            sites,
            reporter: reporter(),
        }
    }
}
