//! What runs with another site, or with features of a kind, start from: the data and the reference model of their seed, with an
//! autoencoder, a reference cache or a feature file of their own.

use std::{path::PathBuf, rc::Rc};

use anyhow::{Context, Result, bail};
use fpo_config::{MoreSite, Settings};
use fpo_device::progress::Reporter;
use fpo_interp::features::{FeatureFile, FindOptions, TextFeatures, find};
use fpo_run::{Run, Stale};
use fpo_trainer::stages::{Base, prepare::prepare, reference::reference, sae::sae};
use fpo_transformer::{Site, weights};

use crate::{
    change::Change,
    item::Item,
    study::{Opened, Study, missing},
};

/// Texts of each set that features are searched in, at most.
const TEXTS: usize = 1000;

impl Study {
    /// What a run starts from, if it is finished; else what is missing or differs.
    pub(crate) fn ready_start(&self, item: &Item) -> Result<Result<Rc<Opened>, Stale>> {
        match &item.change {
            Some(Change::Features { .. }) => {
                let ready = self.ready_base(item.seed)?;
                let file = self.feature_file(item);
                Ok(if file.exists() { ready } else { ready.and(Err(missing(file))) })
            }
            Some(change @ (Change::Site(_) | Change::MoreSites(_))) => {
                let folder = self.site_folder(item.seed, change)?;
                if let Some(opened) = self.opened(&folder) {
                    return Ok(Ok(opened));
                }
                if !folder.join("run.toml").exists() {
                    return Ok(Err(missing(folder)));
                }
                let first = match self.ready_base(item.seed)? {
                    Ok(first) => first,
                    Err(stale) => return Ok(Err(stale)),
                };
                if let Change::MoreSites(sites) = change {
                    for site in sites {
                        let of = Item { change: Some(Change::Site(site.clone())), ..item.clone() };
                        if let Err(stale) = self.ready_start(&of)? {
                            return Ok(Err(stale));
                        }
                    }
                }
                let run = self.open_site(item.seed, change, Reporter::silent())?;
                match run.probe(|| self.make_site(&run, &first, change)) {
                    Ok(base) => self.keep(run, base).map(Ok),
                    Err(error) => error.downcast::<Stale>().map(Err),
                }
            }
            _ => self.ready_base(item.seed),
        }
    }

    /// What a run starts from; what is missing of it is made.
    pub(crate) fn start(&self, item: &Item) -> Result<Rc<Opened>> {
        let first = self.base(item.seed)?;
        match &item.change {
            Some(change @ Change::Features { kind, features, .. }) => {
                self.find_features(item, change, kind, *features, &first)?;
                Ok(first)
            }
            Some(change @ (Change::Site(_) | Change::MoreSites(_))) => {
                if let Ok(opened) = self.ready_start(item)? {
                    return Ok(opened);
                }
                if let Change::MoreSites(sites) = change {
                    for site in sites {
                        let change = Some(Change::Site(site.clone()));
                        self.start(&Item { change, ..item.clone() })?;
                    }
                }
                self.reporter.note("study", format!("what runs with {change} start from"));
                let run = self.open_site(item.seed, change, self.reporter.clone())?;
                let make = || self.make_site(&run, &first, change);
                run.settle(|| make().map(drop))?;
                let base = make()?;
                self.keep(run, base)
            }
            _ => Ok(first),
        }
    }

    /// Adds what only the disk can say.
    pub(crate) fn complete(
        &self,
        settings: &mut Settings,
        change: &Change,
        seed: u64,
    ) -> Result<()> {
        match change {
            Change::MoreSites(sites) => {
                let of = |site: &String| -> Result<MoreSite> {
                    let folder = self.site_folder(seed, &Change::Site(site.clone()))?;
                    Ok(MoreSite { site: site.clone(), sae: folder.join("sae") })
                };
                settings.align.more_sites = sites.iter().map(of).collect::<Result<_>>()?;
            }
            Change::Features { kind, features, selection } => {
                settings.align.feature_weights = Some(self.features_of(kind, *features));
                settings.align.feature_selection = *selection;
            }
            Change::Align(..) | Change::Site(_) => {}
        }
        Ok(())
    }

    fn site_folder(&self, seed: u64, change: &Change) -> Result<PathBuf> {
        Ok(self.base_folder(seed)?.join("sites").join(change.folder()))
    }

    fn open_site(&self, seed: u64, change: &Change, reporter: Reporter) -> Result<Run> {
        let mut settings = self.plan.settings(None, seed, &change.assignments())?;
        self.complete(&mut settings, change, seed)?;
        self.open_run(&self.site_folder(seed, change)?, settings, reporter)
    }

    /// Data and model are those of the seed.
    fn make_site(&self, run: &Run, first: &Opened, change: &Change) -> Result<Base> {
        let prepared = first.run.probe(|| prepare(&first.run))?;
        let sft = first.base.sft.clone();
        let sae = match change {
            Change::MoreSites(_) => first.base.sae.clone().context("a study without features")?,
            _ => sae(run, &prepared, &sft)?,
        };
        let caches = reference(run, &prepared, &sft, Some(&sae))?;
        Ok(Base { prepared, sft, sae: Some(sae), caches })
    }

    fn features_of(&self, kind: &str, features: usize) -> PathBuf {
        self.folder.join("control").join(format!("{kind}-{features}.toml"))
    }

    fn feature_file(&self, item: &Item) -> PathBuf {
        match &item.change {
            Some(Change::Features { kind, features, .. }) => self.features_of(kind, *features),
            _ => PathBuf::new(),
        }
    }

    /// Finds the features that are more active on training pairs of a kind than on all others, unless the file is there and of this
    /// autoencoder. Texts are prompts with their chosen responses.
    fn find_features(
        &self,
        item: &Item,
        change: &Change,
        kind: &str,
        features: usize,
        first: &Opened,
    ) -> Result<()> {
        let (path, base) = (self.feature_file(item), &first.base);
        let (run, sae) = (&first.run, base.sae.as_ref().context("a study without features")?);
        let sae = fpo_sae::load(&sae.folder, &run.device)?;
        let site: Site = run.settings.sae.site.parse()?;
        if path.exists() {
            let file = FeatureFile::load(&path)?;
            if let Change::Features { selection, .. } = change
                && file.weights(&sae.encoder, &site.to_string(), *selection, &run.device).is_ok()
            {
                return Ok(());
            }
        }
        let of = first.kinds.get(kind).context("a kind that the plan doesn't have")?;
        let texts = |inside: bool| -> Vec<Vec<u32>> {
            let pairs = base.prepared.train.iter().zip(&of.train);
            let of_side = pairs.filter(|(_, is_inside)| **is_inside == inside).take(TEXTS);
            of_side.map(|(pair, _)| pair.chosen.tokens.to_vec()).collect()
        };
        let excluded = base.prepared.tokenizer.special_ids();
        let model = weights::load(&base.sft.folder, run.placement())?;
        let reader = TextFeatures {
            model: &model,
            encoder: &sae.encoder,
            site,
            excluded: &excluded,
            texts_at_once: run.settings.reference.batch_size.get(),
            reporter: &self.reporter,
        };
        let options = FindOptions { top: features, hold_out: 0.5, seed: run.settings.seed };
        let found = find(&reader, &texts(true), &texts(false), &options).with_context(|| {
            format!("features of the kind {kind}, the prompts with `{}`", of.word)
        })?;
        if found.is_empty() {
            bail!("no feature is more active on prompts with `{}` than on others", of.word);
        }
        FeatureFile::of(&found, &sae.encoder, site).save(&path)
    }
}
