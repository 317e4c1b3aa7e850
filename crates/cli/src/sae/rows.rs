//! The `--data` of `fpo sae` commands: tokenised rows.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use fpo_data::{
    Fingerprint, OnEmpty, Preparer, Rendering, SequenceStore, Store, System, TokenizedExample,
    TokenizedResponse, Truncation, read_sft,
};
use fpo_interp::activations::Source;
use fpo_transformer::Site;
use tempfile::TempDir;

use crate::{
    loaded::Loaded,
    terminal::reporter,
    tokens::{check_tokenizer, is_prepared},
};

/// How texts become rows.
#[derive(Args)]
pub struct RowArgs {
    /// Maximum tokens per row; longer rows are cut [default: the model's positions].
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// Which texts go through the model's chat template, as in `fpo score`. It has no effect on prepared data, which are tokenised
    /// already.
    #[arg(long, default_value_t, value_name = "auto|template|none")]
    rendering: Rendering,
    /// What becomes of a system message, as in `fpo score`: keep or fold.
    #[arg(long, default_value_t, value_name = "keep|fold")]
    system: System,
}

impl RowArgs {
    /// Adds what isn't as by default, so that fingerprints from before an option stay valid.
    pub fn add_to(&self, fingerprint: Fingerprint) -> Fingerprint {
        let fingerprint = match self.rendering {
            Rendering::Auto => fingerprint,
            other => fingerprint.with("rendering", other),
        };
        match self.system {
            System::Keep => fingerprint,
            System::Fold => fingerprint.with("system", System::Fold),
        }
    }
}

/// Tokenised rows, in a memory-mapped file.
pub struct Rows {
    pub store: SequenceStore,
    /// Holds the store of rows that were tokenised for this command; removed on drop.
    _folder: Option<TempDir>,
}

impl Rows {
    /// Opens prepared data (`sft.arrow` or `train.arrow` of a run), or tokenises a file of examples or pairs to at most `max_length`
    /// tokens per row. Of pairs, the chosen responses are read.
    pub fn open(data: &Path, loaded: &Loaded, args: &RowArgs) -> Result<Self> {
        if is_prepared(data) {
            check_tokenizer(data, &loaded.tokenizer).with_context(|| data.display().to_string())?;
            let rows = match Store::open(data)? {
                Store::Examples(store) => Self { store, _folder: None },
                Store::Pairs(pairs) => {
                    let chosen = pairs.iter().map(|pair| {
                        let (tokens, prompt_len) =
                            (pair.chosen.tokens.to_vec(), pair.chosen.prompt_len);
                        TokenizedExample {
                            id: pair.id,
                            response: TokenizedResponse { tokens, prompt_len },
                            context: Vec::new(),
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
            max_length: args.max_length.unwrap_or(positions).min(positions),
            max_prompt_length: None,
        };
        let template = loaded.template.clone().with_system(args.system);
        let preparer = Preparer::new(&loaded.tokenizer, &template, args.rendering, truncation)?;
        let rows = preparer.prepare_examples(&examples);
        let (rows, _) = rows.with_context(|| data.display().to_string())?;
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
            excluded: loaded.tokenizer.special_ids(),
            sites,
            reporter: reporter(),
        }
    }
}
