//! Data files to tokens, for commands that process every row of a file: `score`, `reference`, `evaluate`, `activations`.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use fpo_data::{
    Fingerprint, Item, OnEmpty, Pair, PairStore, PairView, PrepareSummary, Preparer, Rendering,
    ResponseView, Store, System, TokenizedPair, Tokenizer, Truncation, read_items, read_pairs,
};

use crate::{loaded::ModelFolder, terminal::reporter};

/// Help on tokenisation, for the commands that read pairs.
pub const TOKENS_HELP: &str = "\
How pairs are tokenised (`fpo train` follows the same rules, with data.rendering):
  * With --rendering auto, a text prompt becomes a user turn and its response an assistant turn of the model's
    chat template. A prompt that already contains turn markers of the template, or starts with BOS, is left
    unchanged. With --rendering none, or if the tokenizer has no chat template, prompt and response are
    concatenated unchanged and EOS is appended, as in TRL.
  * Lists of messages are rendered by the chat template. Whole dialogues, as in HH-RLHF, count as messages;
    without a template they keep their form \\n\\nHuman: … \\n\\nAssistant: …. With --rendering none the result is
    exactly that of transformers; otherwise white space after the last turn is removed.
  * Prompt and response are tokenised together. As in TRL, both responses of a pair share one prompt: the longest
    common token prefix of the prompt alone and of the prompt with each response. A token that spans the boundary
    belongs to the response. BOS is prepended once, even if the template adds it as well.
  * No pair is skipped: a pair that can't be read is an error that names its row.
Data: JSON lines (plain or gzip), Parquet, or a folder of these, with `prompt`, `chosen` and `rejected` as texts
or lists of messages; or prepared/train.arrow and held_out.arrow of a run, whose pairs are tokenised already.";

/// Refuses prepared data of another tokenizer, which lies beside them: their numbers would be other tokens.
pub fn check_tokenizer(data: &Path, tokenizer: &Tokenizer) -> Result<()> {
    let beside = data.parent().unwrap_or(Path::new("."));
    if !beside.join("tokenizer.json").is_file() {
        return Ok(());
    }
    let prepared_by = Tokenizer::load(beside)?;
    let mut ids = 0..prepared_by.vocab_size() as u32;
    match ids.find(|&id| prepared_by.token(id) != tokenizer.token(id)) {
        None => Ok(()),
        Some(id) => bail!(
            "it was tokenised by another tokenizer than the model's (token {id} differs); use the data that it was prepared from"
        ),
    }
}

#[derive(Args)]
pub struct TokenArgs {
    /// Which texts go through the model's chat template: auto (prompts that haven't been through it yet, with their responses,
    /// if the tokenizer has one), template (all) or none (prompt and response are concatenated and EOS is appended, as in
    /// TRL). Lists of messages always do.
    #[arg(long, default_value_t, value_name = "auto|template|none")]
    pub rendering: Rendering,
    /// What becomes of a system message: keep (the chat template gets it, and may refuse it) or fold (it becomes the start of the
    /// first user turn).
    #[arg(long, default_value_t, value_name = "keep|fold")]
    pub system: System,
    /// Maximum tokens of prompt and response together; the end of the response is cut [default: nothing is cut, and a row longer
    /// than the model's positions is an error].
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// Maximum tokens of the prompt; the beginning of its content is cut, and what the template writes around it is kept
    /// [default: not limited].
    #[arg(long, value_name = "TOKENS")]
    pub max_prompt_length: Option<usize>,
}

/// Tokenised pairs, with the fingerprint that binds a reference cache to them.
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
    /// The pairs in the order of the data.
    pub fn views(&self) -> Vec<PairView<'_>> {
        match &self.rows {
            PairRows::Prepared(store) => store.iter().collect(),
            PairRows::Tokenized(pairs) => pairs.iter().map(TokenizedPair::view).collect(),
        }
    }
}

/// The tokens of one row of a batch.
pub struct Sequence {
    /// Row of the data, 0-based; the two responses of a pair have the same.
    pub row: usize,
    /// Token ids, starting with BOS if the model has one.
    pub tokens: Vec<u32>,
    /// Index of the first response token; the length if there is no response.
    pub response_start: usize,
}

impl TokenArgs {
    /// The preparer that these arguments describe.
    pub fn preparer<'a>(&self, folder: &'a ModelFolder) -> Result<Preparer<'a>> {
        let max_length = self.max_length.unwrap_or(usize::MAX);
        let truncation = Truncation { max_length, max_prompt_length: self.max_prompt_length };
        let ModelFolder { tokenizer, template, .. } = folder;
        Ok(Preparer::new(tokenizer, template, self.rendering, truncation)?)
    }

    /// Reads all pairs of a file in order. Prepared pairs (`train.arrow` of a run) are taken as they are, others are tokenised.
    pub fn read_pairs(&self, folder: &ModelFolder, data: &Path) -> Result<Pairs> {
        let pairs = match is_prepared(data) {
            true => self.prepared_pairs(folder, data),
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

    /// Prepared data are tokens of the tokenizer beside them: nothing can be said of how they become tokens.
    fn check_prepared(&self, folder: &ModelFolder, data: &Path) -> Result<()> {
        let given = [self.max_length.is_some(), self.max_prompt_length.is_some()];
        ensure!(
            !given.contains(&true) && self.rendering == Rendering::default(),
            "it is already tokenised; remove --rendering, --max-length and --max-prompt-length"
        );
        check_tokenizer(data, &folder.tokenizer)
    }

    fn prepared_pairs(&self, folder: &ModelFolder, data: &Path) -> Result<Pairs> {
        self.check_prepared(folder, data)?;
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

    /// Reads all rows of a file in order: one sequence per text or example, two per pair with the chosen one first. Prepared data
    /// (`train.arrow`, `sft.arrow` of a run) are taken as they are, others are tokenised.
    pub fn read_sequences(&self, folder: &ModelFolder, data: &Path) -> Result<Vec<Sequence>> {
        if is_prepared(data) {
            let sequences = self.prepared_sequences(folder, data);
            let sequences = sequences.with_context(|| data.display().to_string())?;
            for (index, sequence) in sequences.iter().enumerate() {
                check(folder, &sequence.tokens)
                    .with_context(|| format!("{}: sequence {index}", data.display()))?;
            }
            return Ok(sequences);
        }
        let preparer = self.preparer(folder)?;
        let mut sequences = Vec::new();
        for (index, item) in read_items(data)?.into_iter().enumerate() {
            let added = self.sequences(&preparer, index, &item).and_then(|added| {
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
            let note = format!(
                "{cut} sequences reach the limit of {longest} tokens set by --max-length, and may have been cut"
            );
            reporter().note("data", note);
        }
        Ok(sequences)
    }

    fn prepared_sequences(&self, folder: &ModelFolder, data: &Path) -> Result<Vec<Sequence>> {
        self.check_prepared(folder, data)?;
        let sequence = |(row, response): (usize, ResponseView)| Sequence {
            row,
            tokens: response.tokens.to_vec(),
            response_start: response.prompt_len,
        };
        Ok(match Store::open(data)? {
            Store::Pairs(pairs) => {
                let pairs = pairs.iter().enumerate();
                let sides = pairs.flat_map(|(row, p)| [(row, p.chosen), (row, p.rejected)]);
                sides.map(sequence).collect()
            }
            Store::Examples(examples) => {
                examples.iter().map(|e| e.response).enumerate().map(sequence).collect()
            }
        })
    }

    fn sequences(&self, preparer: &Preparer, row: usize, item: &Item) -> Result<Vec<Sequence>> {
        let with_response = |response: fpo_data::TokenizedResponse| Sequence {
            row,
            response_start: response.prompt_len,
            tokens: response.tokens,
        };
        Ok(match item {
            Item::Text(text) => {
                let mut tokens = preparer.tokenize_text(text)?;
                tokens.truncate(self.max_length.unwrap_or(usize::MAX));
                vec![Sequence { row, response_start: tokens.len(), tokens }]
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

/// Whether a file holds data that a run has prepared.
pub fn is_prepared(data: &Path) -> bool {
    data.extension().is_some_and(|extension| extension == "arrow")
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

/// How messages name a row.
fn row(id: u64) -> String {
    format!("row {id} (counted from 0)")
}

fn no_room(id: u64) -> String {
    format!("{}: {}", row(id), no_room_reason())
}

fn no_room_reason() -> String {
    "its prompt leaves no room for a response within --max-length, or the chat template none for a prompt within \
     --max-prompt-length; raise --max-length, or change --max-prompt-length"
        .into()
}

/// Refuses sequences that the model can't process: empty, too long, or with token ids outside the vocabulary.
fn check(folder: &ModelFolder, tokens: &[u32]) -> Result<()> {
    let config = &folder.config;
    ensure!(!tokens.is_empty(), "it has no tokens");
    let (length, most) = (tokens.len(), config.max_position_embeddings);
    ensure!(
        length <= most,
        "{length} tokens are more than the model's {most} positions; cut it with --max-length"
    );
    let vocabulary = config.vocab_size;
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
        bail!(
            "token {id} is beyond the model's vocabulary of {vocabulary}; tokenizer.json belongs to a different model"
        );
    }
    Ok(())
}

fn report_cuts(summary: &PrepareSummary) {
    let PrepareSummary { clipped_prompts, clipped_responses, .. } = *summary;
    if clipped_prompts + clipped_responses > 0 {
        let note = format!(
            "{clipped_prompts} prompts and {clipped_responses} responses were cut to the maximum length"
        );
        reporter().note("data", note);
    }
}
