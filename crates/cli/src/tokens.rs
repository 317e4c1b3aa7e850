//! From a file to tokens, every row of it: what the commands that others check us with have in common.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use fpo_data::{
    Fingerprint, Item, OnEmpty, Pair, PairStore, PairView, PrepareSummary, Preparer, Rendering,
    TokenizedPair, Truncation, read_items, read_pairs,
};

use super::loaded::ModelFolder;

#[derive(Args)]
pub struct TokenArgs {
    /// What goes through the model's chat template: auto (text prompts and their responses, if the
    /// tokenizer has a template and they haven't been through it), template (all of them) or none (they are
    /// joined as they are and ended by EOS, as in TRL). Lists of messages always do.
    #[arg(long, default_value_t, value_name = "auto|template|none")]
    pub rendering: Rendering,
    /// Cuts prompt and response together to so many tokens, from the response's end. Without it
    /// nothing is cut, and a row longer than the model's positions is an error.
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// Cuts a prompt to so many tokens, from its beginning (behind BOS).
    #[arg(long, value_name = "TOKENS")]
    pub max_prompt_length: Option<usize>,
}

/// Pairs of tokens, and what other files are bound to them by.
pub struct Pairs {
    /// See [`fpo_data::binding`].
    pub binding: Fingerprint,
    rows: PairRows,
}

enum PairRows {
    Prepared(PairStore),
    Tokenized(Vec<TokenizedPair>),
}

impl Pairs {
    /// The pairs, in the file's order.
    pub fn views(&self) -> Vec<PairView<'_>> {
        match &self.rows {
            PairRows::Prepared(store) => store.iter().collect(),
            PairRows::Tokenized(pairs) => pairs.iter().map(TokenizedPair::view).collect(),
        }
    }
}

/// A run of tokens that a model reads.
pub struct Sequence {
    /// BOS first, where the model has one.
    pub tokens: Vec<u32>,
    /// Where its response begins; its end where it has none.
    pub response_start: usize,
}

impl TokenArgs {
    /// Texts to tokens, as the arguments say.
    pub fn preparer<'a>(&self, folder: &'a ModelFolder) -> Result<Preparer<'a>> {
        let max_length = self.max_length.unwrap_or(usize::MAX);
        let truncation = Truncation { max_length, max_prompt_length: self.max_prompt_length };
        let ModelFolder { tokenizer, template, .. } = folder;
        Ok(Preparer::new(tokenizer, template, self.rendering, truncation)?)
    }

    /// Reads all pairs of a file in its order, none left out: prepared ones (`train.arrow` of a run) as they are, others tokenised.
    pub fn read_pairs(&self, folder: &ModelFolder, data: &Path) -> Result<Pairs> {
        let pairs = match data.extension().is_some_and(|extension| extension == "arrow") {
            true => self.prepared_pairs(data),
            false => self.tokenized_pairs(folder, data),
        };
        let pairs = pairs.with_context(|| data.display().to_string())?;
        for pair in pairs.views() {
            for (side, response) in [("chosen", pair.chosen), ("rejected", pair.rejected)] {
                check(folder, response.tokens)
                    .with_context(|| format!("{}: {}, {side}", data.display(), row(pair.id)))?;
            }
        }
        Ok(pairs)
    }

    fn prepared_pairs(&self, data: &Path) -> Result<Pairs> {
        let given = [self.max_length.is_some(), self.max_prompt_length.is_some()];
        ensure!(
            !given.contains(&true) && self.rendering == Rendering::default(),
            "its pairs are tokens already: leave out --rendering, --max-length and --max-prompt-length"
        );
        let store = PairStore::open(data)?;
        Ok(Pairs { binding: store.binding(), rows: PairRows::Prepared(store) })
    }

    fn tokenized_pairs(&self, folder: &ModelFolder, data: &Path) -> Result<Pairs> {
        let (pairs, _) = read_pairs(data, OnEmpty::Keep)?;
        let preparer = self.preparer(folder)?;
        let tokenised = tokenize(&preparer, &pairs)?;
        let binding = preparer.fingerprint(&pairs, &tokenised);
        Ok(Pairs { binding, rows: PairRows::Tokenized(tokenised) })
    }
    /// Tokenises whatever a file holds, in its order: a sequence for each text and each example, two
    /// for each pair, the chosen one first.
    pub fn read_sequences(&self, folder: &ModelFolder, data: &Path) -> Result<Vec<Sequence>> {
        let preparer = self.preparer(folder)?;
        let mut sequences = Vec::new();
        for (index, item) in read_items(data)?.into_iter().enumerate() {
            let added = self.sequences(&preparer, &item).and_then(|added| {
                added.iter().try_for_each(|sequence| check(folder, &sequence.tokens))?;
                Ok(added)
            });
            sequences.extend(
                added.with_context(|| format!("{}: {}", data.display(), row(index as u64)))?,
            );
        }
        let longest = self.max_length.unwrap_or(usize::MAX);
        let cut = sequences.iter().filter(|sequence| sequence.tokens.len() == longest).count();
        if cut > 0 {
            eprintln!(
                "{cut} sequences have all of the {longest} tokens that --max-length leaves them"
            );
        }
        Ok(sequences)
    }

    fn sequences(&self, preparer: &Preparer, item: &Item) -> Result<Vec<Sequence>> {
        let with_response = |response: fpo_data::TokenizedResponse| Sequence {
            response_start: response.prompt_len,
            tokens: response.tokens,
        };
        Ok(match item {
            Item::Text(text) => {
                let mut tokens = preparer.tokenize_text(text)?;
                tokens.truncate(self.max_length.unwrap_or(usize::MAX));
                vec![Sequence { response_start: tokens.len(), tokens }]
            }
            Item::Example(example) => {
                let example = preparer.tokenize_example(example)?;
                let example = example.with_context(no_room_reason)?;
                vec![with_response(example.response)]
            }
            Item::Pair(pair) => {
                let pair = preparer.tokenize_pair(pair)?.with_context(no_room_reason)?;
                vec![with_response(pair.chosen), with_response(pair.rejected)]
            }
        })
    }
}

fn tokenize(preparer: &Preparer, pairs: &[Pair]) -> Result<Vec<TokenizedPair>> {
    let (tokenised, summary) = preparer.prepare_pairs(pairs)?;
    if let Some(lost) = pairs.iter().zip(&tokenised).find(|(pair, kept)| pair.id != kept.id) {
        bail!(no_room(lost.0.id));
    }
    if let Some(lost) = pairs.get(tokenised.len()) {
        bail!(no_room(lost.id));
    }
    report_cuts(&summary);
    Ok(tokenised)
}

/// A file and its rows' numbers are how people find a row.
fn row(id: u64) -> String {
    format!("row {id} (counted from 0)")
}

fn no_room(id: u64) -> String {
    format!("{}: {}", row(id), no_room_reason())
}

fn no_room_reason() -> String {
    "its prompt leaves no room for a response within --max-length; raise it, or cut prompts with --max-prompt-length".into()
}

/// Refuses what the model cannot read.
pub fn check(folder: &ModelFolder, tokens: &[u32]) -> Result<()> {
    let config = &folder.config;
    ensure!(!tokens.is_empty(), "it has no tokens");
    let (length, most) = (tokens.len(), config.max_position_embeddings);
    ensure!(
        length <= most,
        "{length} tokens are more than the model's {most} positions; cut them with --max-length"
    );
    let vocabulary = config.vocab_size;
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
        bail!(
            "token {id} is beyond the model's vocabulary of {vocabulary}; tokenizer.json belongs to another model"
        );
    }
    Ok(())
}

fn report_cuts(summary: &PrepareSummary) {
    let PrepareSummary { clipped_prompts, clipped_responses, .. } = *summary;
    if clipped_prompts + clipped_responses > 0 {
        eprintln!("{clipped_prompts} prompts and {clipped_responses} responses were cut to length");
    }
}
