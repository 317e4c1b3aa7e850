//! `fpo features drift`: per feature of an autoencoder, what alignment changed.

mod inputs;
mod output;

use std::{
    io::Write,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use fpo_data::atomic;
use fpo_interp::drift::Comparison;
use fpo_trainer::stages::report::write_page;
use fpo_transformer::Site;

use self::{inputs::Inputs, output::Found};
use crate::{
    loaded::PlacementArgs,
    sae::dashboard::indices,
    streams::{self, out},
    terminal::reporter,
    tokens::{TOKENS_HELP, TokenArgs},
};

/// Shows how alignment changed each feature of an autoencoder
///
/// Both models read the same texts, and each feature's activations are compared token by token. The command writes an
/// HTML page (the features that changed most, with the tokens at which they changed most; searchable and sortable) and
/// a CSV table of all features:
///   mean_before, mean_after       mean activation over all tokens but BOS, EOS and padding
///   firing_before, firing_after   share of these tokens at which the feature is active
///   change                        mean_after − mean_before
///   standard_error                of the change, paired over texts; the two responses of a pair are one text, and
///                                 the tokens of their prompt count once
/// With a second --after the page has both aligned models side by side, and the table columns that end in _2.
///
/// Examples:
///   fpo features drift --run runs/mine
///   fpo features drift --run runs/mine --after runs/mine/compare/dpo/align --after runs/mine/compare/fpo/align
///   fpo features drift --sae sae --site resid_post:25 --before gemma-2-2b --after gemma-2-2b-it --texts texts.txt \
///       --out drift.html
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = TOKENS_HELP)]
pub struct Drift {
    /// A run's folder. It gives what isn't named below: its autoencoder and site, the model before alignment, the aligned model,
    /// and its held-out pairs.
    #[arg(long, value_name = "RUN")]
    run: Option<PathBuf>,
    /// Folder of the model before alignment, in Hugging Face's layout, with its tokenizer.
    #[arg(long, value_name = "FOLDER", required_unless_present = "run")]
    before: Option<PathBuf>,
    /// Folder of the aligned model; once or twice.
    #[arg(long, value_name = "FOLDER", required_unless_present = "run")]
    after: Vec<PathBuf>,
    /// The autoencoder: SAELens, Gemma Scope, Llama Scope, Qwen-Scope, sparsify or dictionary_learning.
    #[arg(long, value_name = "PATH", required_unless_present = "run")]
    sae: Option<PathBuf>,
    /// Site where it reads activations, such as resid_post:25 [default: the one in its file].
    #[arg(long, value_name = "SITE")]
    site: Option<Site>,
    /// Texts to read: lines of a .txt file; texts, examples or pairs (JSON lines, Parquet); or prepared data of a run.
    #[arg(long, visible_alias = "data", value_name = "FILE", value_parser = streams::input, required_unless_present = "run")]
    texts: Option<PathBuf>,
    /// The HTML file to write [default: drift.html, in the run's folder with --run].
    #[arg(long, value_name = "FILE", value_parser = streams::output)]
    out: Option<PathBuf>,
    /// The table of all features to write [default: beside the page, with the ending .csv].
    #[arg(long, value_name = "FILE", value_parser = streams::output)]
    csv: Option<PathBuf>,
    /// Features on the page: those that changed most, in any of the aligned models.
    #[arg(long, default_value = "200", value_name = "FEATURES")]
    top: NonZeroUsize,
    /// More features for the page, such as 3,17,200-299.
    #[arg(long, value_name = "LIST")]
    features: Option<String>,
    /// Texts per feature and model, at most.
    #[arg(long, default_value_t = 5, value_name = "TEXTS")]
    examples: usize,
    /// Tokens shown on either side of the changed one.
    #[arg(long, default_value_t = 12, value_name = "TOKENS")]
    context: usize,
    /// Reads no more texts once this many tokens were counted [default: reads all].
    #[arg(long, value_name = "TOKENS")]
    tokens: Option<usize>,
    /// Texts per forward pass.
    #[arg(long, default_value = "16", value_name = "TEXTS")]
    batch_size: NonZeroUsize,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    rendering: TokenArgs,
    #[command(flatten)]
    placement: PlacementArgs,
}

/// Where the results go. A page on standard output comes without a table, unless it is named.
struct Outputs {
    page: PathBuf,
    csv: Option<PathBuf>,
}

impl Drift {
    pub fn run(self) -> Result<()> {
        let (named, outputs) = (Inputs::named(&self)?, self.outputs());
        let inputs: Vec<&Path> = named.paths().into_iter().chain(self.run.as_deref()).collect();
        for output in std::iter::once(&outputs.page).chain(&outputs.csv) {
            streams::keep_apart(output, &inputs)?;
            streams::check_file(output)?;
        }
        let is_page = |csv: &PathBuf| same(csv, &outputs.page);
        ensure!(
            !outputs.csv.as_ref().is_some_and(is_page),
            "--csv {} is the page; choose another name for the table",
            outputs.page.display()
        );
        let more = self.features.as_deref().map(indices).transpose()?.unwrap_or_default();
        let placement = self.placement.open()?;
        let opened = named.open(&self.rendering, self.tokens, &placement)?;
        if let Some(index) = more.iter().find(|&&index| index >= opened.sae.d_sae()) {
            let last = opened.sae.d_sae() - 1;
            bail!("no feature {index}: the autoencoder has features 0 to {last}");
        }

        let before = opened.before.load(&placement)?;
        let excluded = opened.before.tokenizer.special_ids();
        let mut drifts = Vec::with_capacity(opened.after.len());
        // One aligned model after the other, so that no more than two are in memory.
        for (path, folder) in named.after.iter().zip(&opened.after) {
            let after = folder.load(&placement)?;
            let comparison = Comparison {
                before: &before,
                after: &after,
                sae: &opened.sae,
                site: opened.site,
                excluded: &excluded,
                texts_at_once: self.batch_size,
                places: self.examples,
                reporter: &reporter(),
            };
            let pair = || format!("{} and {}", named.before.display(), path.display());
            drifts.push(comparison.measure(&opened.texts).with_context(pair)?);
        }
        drop(before);
        let found = Found {
            inputs: &named,
            opened: &opened,
            drifts: &drifts,
            context: self.context,
            csv: outputs.csv.as_deref(),
        };
        let shown = found.shown(self.top.get(), &more);
        if let Some(path) = &outputs.csv {
            let table = found.csv();
            atomic::write_file(path, |file| -> Result<()> {
                Ok(file.write_all(table.as_bytes())?)
            })?;
        }
        write_page(&outputs.page, &found.page(&shown))?;
        self.tell(&found, &shown, &outputs)
    }

    fn outputs(&self) -> Outputs {
        let page = self.out.clone().unwrap_or_else(|| match &self.run {
            Some(run) => run.join("drift.html"),
            None => PathBuf::from("drift.html"),
        });
        let beside = || (!streams::is_stdout(&page)).then(|| page.with_extension("csv"));
        Outputs { csv: self.csv.clone().or_else(beside), page }
    }

    /// On standard output, unless a file went there.
    fn tell(&self, found: &Found, shown: &[usize], outputs: &Outputs) -> Result<()> {
        let taken = |path: &PathBuf| streams::is_stdout(path);
        if taken(&outputs.page) || outputs.csv.as_ref().is_some_and(taken) {
            return Ok(());
        }
        if self.json {
            return out!("{:#}", found.json(shown, &outputs.page));
        }
        out!("{}\n{}", found.table(shown), found.summary())?;
        out!("page   {}", outputs.page.display())?;
        match &outputs.csv {
            Some(csv) => out!("table  {}", csv.display()),
            None => Ok(()),
        }
    }
}

/// Whether two names are of one file, which may not exist yet.
fn same(a: &Path, b: &Path) -> bool {
    let whole = |path: &Path| {
        let there = path.canonicalize();
        there.ok().or_else(|| {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
            Some(folder.join(path.file_name()?))
        })
    };
    a == b || whole(a).is_some_and(|a| Some(a) == whole(b))
}
