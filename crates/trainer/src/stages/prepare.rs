//! Data and tokenizer: sources → pairs → tokens, in memory-mapped stores.

use std::{collections::HashSet, path::Path};

use anyhow::{Context, Result, bail};
use fpo_data::{
    Pair, PairStore, PrepareSummary, Preparer, Prompt, ReadSummary, SequenceStore, SftExample,
    TemplateChoice, TokenizedPair, Tokenizer, Truncation, Turns, hold_out, read_held_out,
    read_pairs, read_sft,
};
use fpo_datasets::{Sizes, Task, generate};
use fpo_plan::Counts;
use fpo_transformer::ModelConfig;
use serde::{Deserialize, Serialize};

use super::sae;
use crate::run::{Run, Stage, Workspace};

/// A held-out prompt for the models to answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvalPrompt {
    /// The text that the report shows.
    pub text: String,
    /// The tokens that the model gets.
    pub tokens: Vec<u32>,
    /// The right answer of the built-in data, else the chosen response.
    pub expected: String,
    /// For the checker of the built-in data.
    pub task: Option<Task>,
}

/// What was read, kept and dropped.
#[derive(Debug, Serialize, Deserialize)]
struct Summary {
    source: Option<ReadSummary>,
    sft: PrepareSummary,
    train: PrepareSummary,
    held_out: PrepareSummary,
}

/// The stage's files, opened.
pub struct Prepared {
    /// Its folder and hash.
    pub stage: Stage,
    /// The model's own, or the one trained on the data.
    pub tokenizer: Tokenizer,
    /// Turns conversations into text.
    pub template: TemplateChoice,
    /// Examples for supervised fine-tuning.
    pub sft: SequenceStore,
    /// Training pairs.
    pub train: PairStore,
    /// Held-out pairs.
    pub held_out: PairStore,
    /// All held-out prompts.
    pub prompts: Vec<EvalPrompt>,
    /// How many training pairs were clipped or dropped.
    pub train_summary: PrepareSummary,
}

impl Prepared {
    /// The held-out prompts that are answered: the first, at most `evaluate.prompts`.
    pub fn asked(&self, run: &Run) -> &[EvalPrompt] {
        &self.prompts[..self.prompts.len().min(run.settings.evaluate.prompts)]
    }

    /// The largest token id of pairs and examples.
    pub(super) fn largest_token(&self) -> Option<u32> {
        let pairs = self.train.largest_token().max(self.held_out.largest_token());
        pairs.max(self.sft.largest_token())
    }

    /// Tokens of the longest text of pairs and examples.
    pub(super) fn longest(&self) -> usize {
        let lengths = [self.train.lengths(), self.held_out.lengths(), self.sft.lengths()];
        lengths.into_iter().flatten().max().unwrap_or(0)
    }
}

/// Pairs, examples and prompts before tokenisation.
struct Raw {
    sft: Vec<SftExample>,
    train: Vec<Pair>,
    held_out: Vec<Pair>,
    prompts: Vec<(Prompt, String, Option<Task>)>,
    summary: Option<ReadSummary>,
}

/// Reads the data, trains a tokenizer if there is none, and tokenises.
///
/// # Errors
/// Data that can't be read, or none left after truncation.
pub fn prepare(run: &Run) -> Result<Prepared> {
    let s = &run.settings;
    let mut fingerprint = super::fingerprint(run)
        .with("data", super::section(&s.data)?)
        .with("boundary", "shared by a pair")
        .with("vocab_size", s.model.sizes.vocab_size);
    let sources = [("train", &s.data.train), ("eval", &s.data.eval), ("sft", &s.data.sft)];
    for (name, path) in sources {
        if let Some(path) = path {
            fingerprint = fingerprint.with(name, super::content(path)?);
        }
    }
    let given = given_tokenizer(run)?;
    if let Some(tokenizer) = &given {
        fingerprint = fingerprint.with("tokenizer", tokenizer.hash());
        if Turns::of(s.sft.turns, &tokenizer.chat_template()?.into()) == Turns::All {
            fingerprint = fingerprint.with("turns", "all");
        }
    }
    let stage = run.stage("prepared", fingerprint, |workspace| fill(run, given, workspace))?;
    let prepared = Prepared::open(stage)?;
    // Here too, because settings of the autoencoder may have changed since.
    sae::check_rows(run, &prepared.sft, &prepared.tokenizer)?;
    Ok(prepared)
}

fn given_tokenizer(run: &Run) -> Result<Option<Tokenizer>> {
    let model = &run.settings.model;
    let Some(folder) = model.tokenizer.as_ref().or(model.path.as_ref()) else { return Ok(None) };
    let tokenizer = Tokenizer::load(folder)?;
    Ok(Some(match &model.path {
        Some(path) => tokenizer.for_table(ModelConfig::load(path)?.vocab_size)?,
        None => tokenizer,
    }))
}

fn fill(run: &Run, given: Option<Tokenizer>, workspace: &Workspace) -> Result<()> {
    let begun = std::time::Instant::now();
    let s = &run.settings;
    let raw = match &s.data.train {
        None => built_in(run),
        Some(path) => external(run, path)?,
    };
    let tokenizer = match given {
        Some(tokenizer) => tokenizer,
        None => {
            let examples = raw.sft.iter();
            let texts: Vec<_> = examples
                .flat_map(|e| e.prompt.texts().into_iter().chain([e.response.to_text()]))
                .collect();
            Tokenizer::train_bpe(texts.iter().map(|text| &**text), s.model.sizes.vocab_size)?
        }
    };
    tokenizer.save(&workspace.output)?;
    let template = TemplateChoice::from(tokenizer.chat_template()?).with_system(s.data.system);
    let truncation =
        Truncation { max_length: s.data.max_length, max_prompt_length: s.data.max_prompt_length };
    let preparer = Preparer::new(&tokenizer, &template, s.data.rendering, truncation)?;
    let preparer = preparer.teaching(s.sft.turns);

    let (examples, sft) = preparer.prepare_examples(&raw.sft)?;
    let (train, train_summary) = preparer.prepare_pairs(&raw.train)?;
    let (held_out, held_out_summary) = preparer.prepare_pairs(&raw.held_out)?;
    for (name, kept) in
        [("sft", sft.kept), ("train", train_summary.kept), ("held_out", held_out_summary.kept)]
    {
        if kept == 0 {
            bail!("nothing is left for `{name}` after truncation to {} tokens", s.data.max_length);
        }
    }
    for warning in warnings(&train, &held_out) {
        run.reporter.warn(warning);
    }
    let file = |name: &str| workspace.output.join(name);
    let fingerprint = preparer.fingerprint_of_examples(&raw.sft, &examples);
    SequenceStore::write_with_context(&file("sft.arrow"), &fingerprint, examples)?;
    sae::check_rows(run, &SequenceStore::open(&file("sft.arrow"))?, &tokenizer)?;
    for (name, raw, pairs) in
        [("train.arrow", &raw.train, train), ("held_out.arrow", &raw.held_out, held_out)]
    {
        let fingerprint = preparer.fingerprint(raw, &pairs);
        PairStore::write(&file(name), &fingerprint, pairs)?;
    }

    let mut prompts = Vec::with_capacity(raw.prompts.len());
    for (prompt, expected, task) in raw.prompts {
        let tokens = preparer.tokenize_prompt(&prompt)?;
        let most = s.data.max_prompt_length.unwrap_or(s.data.max_length);
        if tokens.len() > most {
            continue;
        }
        prompts.push(EvalPrompt { text: prompt.shown(), tokens, expected, task });
    }
    super::write_json(&workspace.output.join("prompts.json"), &prompts)?;
    let summary =
        Summary { source: raw.summary, sft, train: train_summary, held_out: held_out_summary };
    super::write_json(&workspace.output.join("summary.json"), &summary)?;
    for note in summary.source.iter().flat_map(ReadSummary::notes) {
        run.reporter.note("prepared", note);
    }
    let pairs = summary.train + summary.held_out;
    for (name, rows) in [("examples", summary.sft), ("pairs", pairs)] {
        run.reporter.note("prepared", format!("{name}: {} (data.rendering)", rows.ways()));
    }
    let mut note = format!(
        "done in {:.1} s  {} examples, {} pairs, {} held out, {} prompts; {} pairs dropped, {} prompts and {} responses clipped",
        begun.elapsed().as_secs_f64(),
        summary.sft.kept,
        summary.train.kept,
        summary.held_out.kept,
        prompts.len(),
        pairs.dropped_empty,
        pairs.clipped_prompts,
        pairs.clipped_responses,
    );
    let (prompts, responses) = (summary.sft.clipped_prompts, summary.sft.clipped_responses);
    if prompts + responses > 0 {
        note += &format!(", {prompts} prompts and {responses} responses of examples too");
    }
    run.reporter.note("prepared", note);
    Ok(())
}

/// What is said of pairs that teach nothing, and of held-out ones that aren't.
fn warnings(train: &[TokenizedPair], held_out: &[TokenizedPair]) -> Vec<String> {
    let mut warnings = Vec::new();
    let same = train.iter().filter(|pair| pair.chosen.tokens == pair.rejected.tokens).count();
    if same > 0 {
        warnings.push(format!(
            "{same} of {} training pairs have the same tokens twice, and teach nothing",
            train.len()
        ));
    }
    fn tokens(pair: &TokenizedPair) -> [&[u32]; 2] {
        [&pair.chosen.tokens, &pair.rejected.tokens]
    }
    let trained: HashSet<[&[u32]; 2]> = train.iter().map(tokens).collect();
    let seen = held_out.iter().filter(|pair| trained.contains(&tokens(pair))).count();
    if seen > 0 {
        warnings.push(format!(
            "{seen} of {} held-out pairs are training pairs too: what is measured on them isn't held out (data.eval)",
            held_out.len()
        ));
    }
    warnings
}

/// Generates the built-in dataset.
fn built_in(run: &Run) -> Raw {
    let sizes = &run.settings.data.built_in;
    let data = generate(
        run.settings.seed,
        &Sizes {
            sft: sizes.sft,
            pairs: sizes.pairs,
            held_out_pairs: sizes.held_out_pairs,
            held_out_prompts: sizes.held_out_prompts,
        },
    );
    let pairs = |pairs: Vec<fpo_datasets::PreferencePair>| {
        let rows = pairs.into_iter().enumerate();
        rows.map(|(id, p)| Pair {
            id: id as u64,
            prompt: Prompt::Text(p.prompt),
            chosen: p.chosen.into(),
            rejected: p.rejected.into(),
        })
        .collect()
    };
    let sft = data.sft.into_iter().enumerate().map(|(id, e)| SftExample {
        id: id as u64,
        prompt: Prompt::Text(e.prompt),
        response: e.response.into(),
    });
    let prompts = data.held_out_prompts.into_iter();
    Raw {
        sft: sft.collect(),
        train: pairs(data.pairs),
        held_out: pairs(data.held_out_pairs),
        prompts: prompts.map(|p| (Prompt::Text(p.prompt), p.task.answer(), Some(p.task))).collect(),
        summary: None,
    }
}

/// Reads the files that the settings name.
fn external(run: &Run, path: &Path) -> Result<Raw> {
    let s = &run.settings.data;
    let (mut pairs, summary) = read_pairs(path, s.rows())?;
    pairs.truncate(s.limit.unwrap_or(usize::MAX));
    let held_out = match &s.eval {
        Some(path) => Some(read_pairs(path, s.rows())?),
        None => read_held_out(path, s.rows())?,
    };
    let (train, held_out) = match held_out {
        Some((held_out, _)) => (pairs, held_out),
        None => {
            let split = hold_out(pairs, s.hold_out, run.settings.seed);
            (split.train, split.held_out)
        }
    };
    if train.is_empty() || held_out.is_empty() {
        bail!(
            "{}: {} pairs to train on and {} held out; both must be there (data.hold_out, data.eval)",
            path.display(),
            train.len(),
            held_out.len()
        );
    }
    let sft = match &s.sft {
        Some(path) => read_sft(path, s.rows())?.0,
        None => train
            .iter()
            .map(|p| SftExample { id: p.id, prompt: p.prompt.clone(), response: p.chosen.clone() })
            .collect(),
    };
    let prompts =
        held_out.iter().map(|p| (p.prompt.clone(), p.chosen.to_text().into_owned(), None));
    let prompts = prompts.collect();
    Ok(Raw { sft, train, held_out, prompts, summary: Some(summary) })
}

impl Prepared {
    /// What the work of the later stages depends on.
    pub fn counts(&self) -> Counts {
        let tokens = |pairs: &PairStore| -> usize {
            pairs.iter().map(|pair| pair.chosen.tokens.len() + pair.rejected.tokens.len()).sum()
        };
        Counts {
            sft_tokens: self.sft.lengths().iter().sum(),
            train_tokens: tokens(&self.train),
            held_out_tokens: tokens(&self.held_out),
            prompts: self.prompts.len(),
        }
    }

    fn open(stage: Stage) -> Result<Self> {
        let folder = &stage.folder;
        let tokenizer = Tokenizer::load(folder)?;
        let summary: Summary = super::read_json(&folder.join("summary.json"))?;
        Ok(Self {
            template: tokenizer.chat_template()?.into(),
            tokenizer,
            sft: SequenceStore::open(&folder.join("sft.arrow"))?,
            train: PairStore::open(&folder.join("train.arrow"))?,
            held_out: PairStore::open(&folder.join("held_out.arrow"))?,
            prompts: super::read_json(&folder.join("prompts.json"))
                .context("the prepared prompts")?,
            train_summary: summary.train,
            stage,
        })
    }
}
