//! What is compared, on which texts: named one by one or taken from a run's folder, and checked before any model is loaded.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use fpo_data::Tokenizer;
use fpo_interp::{
    autoencoder,
    drift::{Sequence, Text},
};
use fpo_run::saved_settings;
use fpo_sae::Sae;
use fpo_transformer::{Placement, Site};

use super::Drift;
use crate::{
    loaded::ModelFolder,
    tokens::{TokenArgs, is_prepared},
};

/// Files and folders as they are named.
pub struct Inputs {
    pub sae: PathBuf,
    site: Option<Site>,
    pub before: PathBuf,
    pub after: Vec<PathBuf>,
    pub texts: PathBuf,
}

/// What they hold.
pub struct Opened {
    pub sae: Sae,
    pub site: Site,
    pub before: ModelFolder,
    pub after: Vec<ModelFolder>,
    pub texts: Vec<Text>,
}

impl Inputs {
    /// From the arguments, and what they leave out from the run's folder.
    pub fn named(args: &Drift) -> Result<Self> {
        ensure!(
            args.after.len() <= 2,
            "--after: {} models; one or two can be compared with the one before",
            args.after.len()
        );
        let Drift { site, sae, before, texts, .. } = args;
        let after = args.after.clone();
        let Some(run) = &args.run else {
            let given = |path: &Option<PathBuf>| path.clone().context("clap requires it");
            let (sae, before, texts) = (given(sae)?, given(before)?, given(texts)?);
            return Ok(Self { sae, site: *site, before, after, texts });
        };
        let folder = RunFolder::open(run)?;
        let site = match (site, sae) {
            (None, None) => Some(folder.settings.sae.site.parse()?),
            (site, _) => *site,
        };
        let or = |path: &Option<PathBuf>, of_run: &dyn Fn() -> Result<PathBuf>| match path {
            Some(path) => Ok(path.clone()),
            None => of_run(),
        };
        Ok(Self {
            sae: or(sae, &|| folder.sae())?,
            site,
            before: or(before, &|| folder.before())?,
            after: if after.is_empty() { vec![folder.after()?] } else { after },
            texts: or(texts, &|| folder.held_out())?,
        })
    }

    /// All of them, which no output may replace.
    pub fn paths(&self) -> Vec<&Path> {
        let paths = [&self.sae, &self.before, &self.texts];
        paths.into_iter().chain(&self.after).map(PathBuf::as_path).collect()
    }

    /// Reads everything but the models' weights, and checks that it belongs together. Texts are read until `tokens` count.
    pub fn open(
        &self,
        args: &TokenArgs,
        tokens: Option<usize>,
        placement: &Placement,
    ) -> Result<Opened> {
        let open = |path: &PathBuf| {
            let folder = ModelFolder::open(path)?.with_system(args.system);
            Ok::<_, anyhow::Error>(folder)
        };
        let before = open(&self.before)?;
        let after = self.after.iter().map(open).collect::<Result<Vec<_>>>()?;
        for (path, after) in self.after.iter().zip(&after) {
            self.check_size(&before, path, after)?;
        }
        let (sae, site) =
            autoencoder::open_at_its_site(&self.sae, self.site, &before.config, &placement.device)?;
        let mut texts = self.read(args, &before)?;
        for (path, after) in self.after.iter().zip(&after) {
            let rows = after.config.vocab_size;
            let most = texts.iter().flatten().flat_map(|s| &s.tokens).max();
            if let Some(id) = most.filter(|&&id| id as usize >= rows) {
                bail!(
                    "{}: the texts have token {id}, this model only {rows} tokens: it has another tokenizer than {}",
                    path.display(),
                    self.before.display()
                );
            }
            check_tokens(&texts, (&self.before, &before.tokenizer), (path, &after.tokenizer))?;
        }
        self.check_prepared(&texts, &before)?;
        let excluded = before.tokenizer.special_ids();
        limit(&mut texts, &excluded, tokens.unwrap_or(usize::MAX));
        ensure!(
            texts.iter().flatten().any(|sequence| sequence.counted(&excluded).next().is_some()),
            "{}: no text has a token besides BOS, EOS and padding",
            self.texts.display()
        );
        Ok(Opened { sae, site, before, after, texts })
    }

    /// Alignment changes weights, not sizes.
    fn check_size(&self, before: &ModelFolder, path: &Path, after: &ModelFolder) -> Result<()> {
        let size =
            |folder: &ModelFolder| (folder.config.num_hidden_layers, folder.config.hidden_size);
        let (ours, theirs) = (size(before), size(after));
        ensure!(
            ours == theirs,
            "{} has {} layers of width {}, {} has {} of width {}: it isn't the same model after alignment",
            path.display(),
            theirs.0,
            theirs.1,
            self.before.display(),
            ours.0,
            ours.1
        );
        Ok(())
    }

    /// The texts. Both responses of a pair are one text, in which the prompt counts once.
    fn read(&self, args: &TokenArgs, folder: &ModelFolder) -> Result<Vec<Text>> {
        let mut texts: Vec<Text> = Vec::new();
        let mut last = None;
        for sequence in args.read_sequences(folder, &self.texts)? {
            let start = sequence.response_start;
            let (row, tokens) = (sequence.row, sequence.tokens);
            match texts.last_mut().filter(|_| last == Some(row)) {
                Some(text) => text.push(Sequence { tokens, from: start }),
                None => texts.push(vec![Sequence { tokens, from: 0 }]),
            }
            last = Some(row);
        }
        Ok(texts)
    }

    /// Prepared texts are tokens of the tokenizer that lies beside them.
    fn check_prepared(&self, texts: &[Text], before: &ModelFolder) -> Result<()> {
        let Some(folder) = self.texts.parent().filter(|_| is_prepared(&self.texts)) else {
            return Ok(());
        };
        if !folder.join("tokenizer.json").is_file() {
            return Ok(());
        }
        let own = Tokenizer::load(folder)?;
        check_tokens(texts, (folder, &own), (&self.before, &before.tokenizer))
    }
}

/// The first texts that have `tokens` tokens together.
fn limit(texts: &mut Vec<Text>, excluded: &[u32], tokens: usize) {
    let mut counted = 0;
    let enough = texts.iter().position(|text| {
        counted += text.iter().map(|s| s.counted(excluded).count()).sum::<usize>();
        counted >= tokens
    });
    if let Some(last) = enough {
        texts.truncate(last + 1);
    }
}

/// Both tokenizers must mean the same by every token of the texts, and leave the same ones out.
fn check_tokens(
    texts: &[Text],
    (path, tokenizer): (&Path, &Tokenizer),
    (other_path, other): (&Path, &Tokenizer),
) -> Result<()> {
    let differ = |what: String| {
        format!(
            "{}: {what} in {}: models with different tokenizers read different tokens",
            other_path.display(),
            path.display()
        )
    };
    let highest = texts.iter().flatten().flat_map(|s| &s.tokens).max().copied().unwrap_or(0);
    let mut seen = vec![false; highest as usize + 1];
    texts.iter().flatten().flat_map(|s| &s.tokens).for_each(|&id| seen[id as usize] = true);
    for id in (0..=highest).filter(|&id| seen[id as usize]) {
        let (ours, theirs) = (tokenizer.token(id), other.token(id));
        if ours != theirs {
            let name = |token: Option<String>| token.map_or("none".into(), |t| format!("`{t}`"));
            bail!(differ(format!("token {id} is {} here and {}", name(theirs), name(ours))));
        }
    }
    let special = |tokenizer: &Tokenizer| {
        let mut ids = tokenizer.special_ids();
        ids.retain(|&id| id <= highest && seen[id as usize]);
        ids.sort_unstable();
        ids
    };
    let (ours, theirs) = (special(tokenizer), special(other));
    ensure!(
        ours == theirs,
        differ(format!("BOS, EOS and padding are {theirs:?} here and {ours:?}"))
    );
    Ok(())
}

/// A run's folder, or that of one method of `fpo compare`, which shares the stages before alignment.
struct RunFolder {
    path: PathBuf,
    settings: fpo_config::Settings,
}

impl RunFolder {
    fn open(path: &Path) -> Result<Self> {
        let settings = saved_settings(path)?.with_context(|| {
            format!(
                "{} is no run's folder: it has no run.toml; choose another --run",
                path.display()
            )
        })?;
        Ok(Self { path: path.to_owned(), settings })
    }

    /// A part of the folder, or else of the run that this one is a method of.
    fn part(&self, part: &str) -> Option<PathBuf> {
        let absolute = self.path.canonicalize().ok();
        let method_of = absolute.as_deref().and_then(Path::parent);
        let method_of = method_of.filter(|parent| parent.ends_with("compare"));
        let method_of = method_of.and_then(Path::parent).map(|run| run.join(part));
        std::iter::once(self.path.join(part)).chain(method_of).find(|path| path.exists())
    }

    fn need(&self, part: &str, option: &str, reason: &str) -> Result<PathBuf> {
        self.part(part).with_context(|| {
            format!("{} has no {part}: {reason}, or name one with {option}", self.path.display())
        })
    }

    fn sae(&self) -> Result<PathBuf> {
        let reason = match self.settings.features() {
            true => "continue the run with fpo train",
            false => "its method uses no features; repeat the run with evaluate.features=true",
        };
        self.need("sae", "--sae", reason)
    }

    /// The fine-tuned model; without fine-tuning the model that the run was given.
    fn before(&self) -> Result<PathBuf> {
        match (self.settings.sft.epochs == 0.0, &self.settings.model.path) {
            (true, Some(path)) => Ok(path.clone()),
            _ => self.need("sft", "--before", "continue the run with fpo train"),
        }
    }

    fn after(&self) -> Result<PathBuf> {
        self.need("align", "--after", "continue the run with fpo train")
    }

    fn held_out(&self) -> Result<PathBuf> {
        self.need("prepared/held_out.arrow", "--texts", "continue the run with fpo train")
    }
}
