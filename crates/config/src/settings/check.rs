//! Constraints on settings, each on its own and in combination.

use anyhow::{Context, Result, anyhow, bail};
use fpo_data::reference::BLOCK;
use fpo_losses::Method;
use fpo_metrics::metrics::token_accuracy::TOKEN_ACCURACY;
use fpo_transformer::Site;

use super::{DataSettings, MoreSite, Settings};

/// The most examples, pairs or prompts of the built-in data.
const MOST_BUILT_IN: usize = 10_000_000;

impl Settings {
    pub(super) fn check(&self) -> Result<()> {
        self.align.objective().check().map_err(|m| anyhow!("align: {m}"))?;
        if self.align.feature_weights.is_some() && self.align.method != Method::FPO {
            bail!(
                "align.feature_weights is for fpo only; {} doesn't use features",
                self.align.method
            );
        }
        if self.features() {
            self.check_features()?;
        }
        self.check_while_training()?;
        if self.reference.batch_size > BLOCK {
            bail!("reference.batch_size = {} must be at most {BLOCK}", self.reference.batch_size);
        }
        for (name, epochs) in [("sft", self.sft.epochs), ("align", self.align.epochs)] {
            if !(0.0..1e6).contains(&epochs) {
                bail!("{name}.epochs = {epochs} must be at least 0 and below a million");
            }
        }
        if self.data.train.is_none() {
            let sizes = &self.data.built_in;
            let counts = [
                ("sft", sizes.sft),
                ("pairs", sizes.pairs),
                ("held_out_pairs", sizes.held_out_pairs),
                ("held_out_prompts", sizes.held_out_prompts),
            ];
            if let Some((name, count)) =
                counts.into_iter().find(|&(_, count)| count > MOST_BUILT_IN)
            {
                bail!(
                    "data.built_in.{name} = {count} exceeds {MOST_BUILT_IN}: the built-in data is for trying things out"
                );
            }
            let without_effect = [
                ("limit", self.data.limit.is_some()),
                ("eval", self.data.eval.is_some()),
                ("sft", self.data.sft.is_some()),
            ];
            if let Some((key, _)) = without_effect.iter().find(|(_, given)| *given) {
                bail!(
                    "data.{key} has no effect on the built-in data; set data.train too, or the sizes in data.built_in"
                );
            }
        }
        if !(0.0..1.0).contains(&self.data.hold_out) {
            bail!("data.hold_out = {} must be in [0, 1)", self.data.hold_out);
        }
        let (most, prompt) = (self.data.max_length, self.data.max_prompt_length);
        if most < 2 || prompt.is_some_and(|prompt| !(1..most).contains(&prompt)) {
            bail!(
                "data.max_length = {most} leaves no room for a response{}; it must be at least 2, with 1 ≤ data.max_prompt_length < data.max_length",
                prompt.map_or(String::new(), |n| format!(" after data.max_prompt_length = {n}"))
            );
        }
        for (name, lora) in [("sft", &self.sft.lora), ("align", &self.align.lora)] {
            if let Some(lora) = lora {
                lora.check().map_err(|m| anyhow!("{name}.lora: {m}"))?;
            }
        }
        for (name, o) in [("sft", &self.sft.optimizer), ("align", &self.align.optimizer)] {
            if !(o.learning_rate > 0.0 && o.learning_rate.is_finite()) {
                bail!("{name}.optimizer.learning_rate = {} must be positive", o.learning_rate);
            }
            if let Some(ratio) = o.warmup_ratio
                && !(0.0..=1.0).contains(&ratio)
            {
                bail!("{name}.optimizer.warmup_ratio = {ratio} must be from 0 to 1");
            }
            if !o.betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
                bail!("{name}.optimizer.betas = {:?} must be in [0, 1)", o.betas);
            }
            let at_least_zero =
                [("weight_decay", o.weight_decay), ("max_grad_norm", o.max_grad_norm)];
            for (key, value) in at_least_zero {
                if !(value >= 0.0 && value.is_finite()) {
                    bail!("{name}.optimizer.{key} = {value} must be at least 0 and finite");
                }
            }
        }
        let (sft, align) = (&self.sft, &self.align);
        for (name, in_backward, checkpointed, lora) in [
            ("sft", sft.optimizer_in_backward, sft.checkpoint_activations, &sft.lora),
            ("align", align.optimizer_in_backward, align.checkpoint_activations, &align.lora),
        ] {
            if in_backward && !checkpointed {
                bail!(
                    "{name}.optimizer_in_backward = true goes through the model block by block, as {name}.checkpoint_activations = true does: set both"
                );
            }
            if in_backward && lora.is_some() {
                bail!(
                    "{name}.optimizer_in_backward = true is for full training: the gradients of {name}.lora are small; set it to false"
                );
            }
        }
        Ok(())
    }

    /// What must hold where alignment is evaluated, and what can't be decided where it isn't.
    fn check_while_training(&self) -> Result<()> {
        let (a, e) = (&self.align, &self.evaluate);
        let deciding = [
            ("keep_best", a.keep_best),
            ("early_stopping.metric", a.early_stopping.map(|stop| stop.metric)),
        ];
        for (key, criterion) in deciding {
            let Some(criterion) = criterion else { continue };
            let name = criterion.metric().name;
            let missing = if e.every == 0 {
                "evaluate.every: nothing is measured while aligning"
            } else if criterion.is_of_answers() && e.samples == 0 {
                "evaluate.samples: no prompt is answered while aligning"
            } else if name == TOKEN_ACCURACY.name && !a.token_statistics {
                "align.token_statistics = true"
            } else {
                continue;
            };
            bail!("align.{key} = \"{criterion}\" needs {missing}");
        }
        if let Some(stop) = &a.early_stopping {
            if stop.patience == 0 {
                bail!("align.early_stopping.patience must be at least 1");
            }
            if !(stop.threshold >= 0.0 && stop.threshold.is_finite()) {
                bail!("align.early_stopping.threshold = {} must not be negative", stop.threshold);
            }
        }
        if !(e.temperature >= 0.0 && e.temperature.is_finite()) {
            bail!("evaluate.temperature = {} must not be negative; 0 is greedy", e.temperature);
        }
        let DataSettings { train, eval, hold_out, built_in, .. } = &self.data;
        let none = match train {
            None => built_in.held_out_pairs == 0,
            Some(_) => eval.is_none() && *hold_out == 0.0,
        };
        if e.every > 0 && none {
            bail!(
                "evaluate.every = {} needs held-out pairs, and there are none: set {}",
                e.every,
                if train.is_none() {
                    "data.built_in.held_out_pairs"
                } else {
                    "data.eval or data.hold_out"
                }
            );
        }
        Ok(())
    }

    /// What must hold where features are read.
    fn check_features(&self) -> Result<()> {
        if self.align.k == 0 {
            bail!("align.k must be at least 1");
        }
        if self.sae.path.is_none() && self.align.k > self.sae.training.d_sae {
            bail!(
                "align.k = {} exceeds the {} features of sae.training.d_sae",
                self.align.k,
                self.sae.training.d_sae
            );
        }
        if let Some(n) = self.reference.top_n
            && n.get() < self.align.k
        {
            bail!("reference.top_n = {n} must be at least align.k = {}", self.align.k);
        }
        let site: Site = self.sae.site.parse()?;
        self.check_more_sites(site)?;
        if self.model.path.is_none() {
            site.check(self.model.sizes.num_hidden_layers)?;
        }
        if self.sae.path.is_none() {
            self.sae.training.check()?;
        }
        Ok(())
    }

    fn check_more_sites(&self, first: Site) -> Result<()> {
        let more = &self.align.more_sites;
        let mut seen = vec![first];
        for MoreSite { site, .. } in more {
            let parsed: Site = site.parse().with_context(|| format!("align.more_sites: {site}"))?;
            if self.model.path.is_none() {
                parsed.check(self.model.sizes.num_hidden_layers)?;
            }
            if seen.contains(&parsed) {
                bail!("align.more_sites: {site} repeats sae.site or an earlier entry");
            }
            seen.push(parsed);
        }
        if !more.is_empty() && self.reference.top_n.is_some() {
            bail!("reference.top_n works with a single site; remove it or align.more_sites");
        }
        if !more.is_empty() && self.align.feature_weights.is_some() {
            bail!("align.feature_weights works with a single site; remove it or align.more_sites");
        }
        Ok(())
    }
}
