//! `fpo evaluate`: a policy against its reference, pair by pair.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::Device;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use fpo_data::{
    Fingerprint, PairBatch, PairView, Pooling, ReferenceCache,
    reference::{Pass, StoredFeatures},
};
use fpo_interp::{autoencoder, reader::FeatureReader};
use fpo_losses::{Method, Objective};
use fpo_metrics::{PairValues, means};
use fpo_trainer::{
    aligner::{Aligner, FeatureConstraint},
    forward::Keep,
    reference::{NONE, item},
};
use fpo_transformer::{LanguageModel, ModelConfig, Placement, Site, hash_model, weights};

use crate::{
    json_lines,
    loaded::{ModelFolder, PlacementArgs},
    reference::batch_size,
    streams,
    terminal::reporter,
    tokens::{Pairs, TOKENS_HELP, TokenArgs},
};

/// Compares a policy with its reference, pair by pair, under a preference objective
///
/// Prints a table of means and writes JSON lines, one object per pair in the order of the data:
///   chosen_log_prob, rejected_log_prob   log-probability of the response under the policy, in nats, summed
///                                        over its tokens
///   chosen_tokens, rejected_tokens       number of response tokens
///   margin                               see below
///   chosen_distance, rejected_distance   D = 1/k · Σ (c̄_policy − c̄_reference)² over the union of both top k
///                                        (with --sae)
///   u                                    argument of the sigmoid, see below
///   loss                                 −log sigmoid(u); methods not listed below have their own loss
///   chosen_kl, rejected_kl               KL(reference ‖ policy) in nats, summed over the response's positions
///                                        (with --kl)
///
/// u = LPD − margin − constraint, with LPD the policy's log-probability difference. w is the chosen response, l the
/// rejected one, p the policy, r the reference, and avg the mean over tokens:
///   method    LPD                              margin                           constraint
///   dpo       β (log p(w) − log p(l))          β (log r(w) − log r(l))          0
///   tdpo1     as dpo                           as dpo                           β (KL(l) − KL(w))
///   tdpo2     as dpo                           as dpo                           α β (KL(l) − KL(w))
///   simpo     β (avg log p(w) − avg log p(l))  γ                                0
///   simpo-kl  as simpo                         γ                                α β (KL(l) − KL(w))
///   fpo       as simpo                         β (avg log r(w) − avg log r(l))  α β (D(l) − D(w))
///
/// Example, with a cache written by `fpo reference` for the same data:
///   fpo evaluate --policy runs/mine/align --reference cache --sae sae --data pairs.jsonl --method fpo \
///       --per-pair pairs-out.jsonl
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = TOKENS_HELP)]
pub struct Evaluate {
    /// Folder of the policy in Hugging Face's layout, with its tokenizer.
    #[arg(long, value_name = "FOLDER")]
    policy: PathBuf,
    /// Folder of the reference cache, as written by `fpo reference` for the same data.
    #[arg(long, value_name = "FOLDER")]
    reference: PathBuf,
    /// The autoencoder that the cache was made with. Required by fpo.
    #[arg(long, value_name = "PATH")]
    sae: Option<PathBuf>,
    /// Preference pairs, the same ones as in the cache.
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    data: PathBuf,
    /// The objective: dpo, tdpo1, tdpo2, simpo, simpo-kl, fpo or any other align.method; an unknown name prints the list.
    #[arg(long, value_name = "METHOD")]
    method: Method,
    /// The JSON lines file to write.
    #[arg(long, value_name = "FILE", value_parser = streams::output)]
    per_pair: PathBuf,
    /// β [default: as in the FPO paper, 2 for simpo and simpo-kl, 0.1 for the others].
    #[arg(long)]
    beta: Option<f64>,
    /// α, the weight of the constraint (tdpo2, simpo-kl, fpo).
    #[arg(long, default_value_t = 0.5)]
    alpha: f64,
    /// γ, the margin of simpo and simpo-kl.
    #[arg(long, default_value_t = 0.5)]
    gamma: f64,
    /// k: features are compared over the union of the policy's and the reference's top k.
    #[arg(long, default_value_t = 50)]
    k: usize,
    /// Site where the autoencoder reads activations, such as resid_post:25 [default: the cache's].
    #[arg(long, value_name = "SITE")]
    site: Option<Site>,
    /// Positions over which features are averaged: predicting, response or sequence [default: the cache's].
    #[arg(long, value_name = "POSITIONS")]
    pooling: Option<Pooling>,
    /// Folder of the reference model, for the KL. Required by tdpo1, tdpo2 and simpo-kl.
    #[arg(long, value_name = "FOLDER")]
    kl: Option<PathBuf>,
    /// Pairs per forward pass, at most 64. With the batch size of `fpo reference`, a policy that equals the reference gets
    /// exactly D = 0, and with dpo and fpo exactly u = 0.
    #[arg(long, default_value = "8", value_name = "PAIRS", value_parser = batch_size())]
    batch_size: usize,
    #[command(flatten)]
    tokens: TokenArgs,
    #[command(flatten)]
    placement: PlacementArgs,
}

/// A reader of the cache's features, and the hash of its encoder.
struct Reader {
    reader: FeatureReader,
    hash: String,
}

impl Evaluate {
    pub fn run(self) -> Result<()> {
        let inputs = [&*self.data, &self.policy, &self.reference];
        streams::keep_apart(&self.per_pair, &inputs)?;
        streams::check_file(&self.per_pair)?;
        let objective = self.objective()?;
        let placement = self.placement.open()?;
        let folder = ModelFolder::open(&self.policy)?.with_system(self.tokens.system);
        let pairs = self.tokens.read_pairs(&folder, &self.data)?;
        let views = pairs.views();
        let aligner = self.aligner(objective, &folder, &pairs, &placement)?;
        check_counts(&aligner.cache, &views)?;
        let policy = folder.load(&placement)?;
        let values = self.compare(&aligner, &policy, &views)?;
        json_lines::write(&self.per_pair, &values)?;
        streams::report(&self.per_pair, &summary(&objective, &values).to_string())
    }

    fn objective(&self) -> Result<Objective> {
        let Self { method, alpha, gamma, k, .. } = *self;
        let beta = self.beta.unwrap_or(method.default_beta());
        let objective = Objective { beta, alpha, gamma, ..Objective::paper(method) };
        objective.check().map_err(|message| anyhow!(message))?;
        ensure!(k > 0, "k must be at least 1");
        let needs = objective.needs();
        if needs.token_kl && self.kl.is_none() {
            bail!(
                "{method} needs the token distributions of the reference; pass its model with --kl"
            );
        }
        if needs.features && self.sae.is_none() {
            bail!("{method} needs the autoencoder of the cache; pass it with --sae");
        }
        Ok(objective)
    }

    /// The objective with all that it compares the policy with, checked against what the cache was made from.
    fn aligner(
        &self,
        objective: Objective,
        folder: &ModelFolder,
        pairs: &Pairs,
        placement: &Placement,
    ) -> Result<Aligner> {
        let made_from = ReferenceCache::made_from(&self.reference)?;
        let reader = self.reader(folder, &made_from, &placement.device)?;
        let expected = self.expected(pairs, &made_from, reader.as_ref())?;
        let cache = ReferenceCache::open(&self.reference, &expected)?;
        cache.require(pairs.views().iter().map(|pair| pair.id))?;
        let features = match reader {
            None => None,
            Some(Reader { reader, .. }) => {
                self.check_k(reader.d_sae(), cache.stored())?;
                Some(FeatureConstraint { reader, k: self.k, weights: None })
            }
        };
        let reference_model = match &self.kl {
            None => None,
            Some(path) => {
                check_comparable(&folder.config, &ModelConfig::load(path)?)?;
                Some(weights::load(path, placement)?)
            }
        };
        // D and KL are reported if they can be computed, whether or not the method needs them.
        let mut needs = objective.needs();
        needs.features = features.is_some();
        needs.token_kl = reference_model.is_some();
        Ok(Aligner {
            objective,
            needs,
            token_statistics: false,
            cache,
            features,
            reference_model,
            keep: Keep::All,
        })
    }

    /// The fingerprint that the cache must have. Items that aren't known here are taken from the cache itself.
    fn expected(
        &self,
        pairs: &Pairs,
        made_from: &Fingerprint,
        reader: Option<&Reader>,
    ) -> Result<Fingerprint> {
        let mut expected = pairs.binding.clone().with(item::PRECISION, self.placement.precision());
        if let Some(folder) = &self.kl {
            expected = expected.with(item::WEIGHTS, hash_model(folder)?);
        }
        if let Some(Reader { hash, .. }) = reader {
            expected = expected.with(item::SAE, hash);
        }
        if let Some(site) = self.site {
            expected = expected.with(item::SITE, site);
        }
        if let Some(pooling) = self.pooling {
            expected = expected.with(item::POOLING, pooling.name());
        }
        for item in [item::WEIGHTS, item::SAE, item::SITE, item::POOLING, item::TOP_N] {
            if let (None, Some(found)) = (expected.0.get(item), made_from.0.get(item)) {
                expected = expected.with(item, found);
            }
        }
        Ok(expected)
    }

    fn check_k(&self, d_sae: usize, stored: StoredFeatures) -> Result<()> {
        let k = self.k;
        ensure!(k <= d_sae, "k = {k} is more than the autoencoder's {d_sae} features; set --k");
        if let StoredFeatures::Top(n) = stored {
            ensure!(
                n.get() >= k,
                "the cache holds {n} features of a response, fewer than k = {k}; lower --k, or rebuild the cache with a larger --top-n"
            );
        }
        Ok(())
    }

    fn reader(
        &self,
        folder: &ModelFolder,
        made_from: &Fingerprint,
        device: &Device,
    ) -> Result<Option<Reader>> {
        let Some(path) = &self.sae else { return Ok(None) };
        let of_cache = |item: &str| match made_from.0.get(item).map(String::as_str) {
            None | Some(NONE) => bail!(
                "{}: this cache was made without an autoencoder; remove --sae, or rebuild the cache with one",
                self.reference.display()
            ),
            Some(text) => Ok(text.to_owned()),
        };
        let site = match self.site {
            Some(site) => site,
            None => of_cache(item::SITE)?.parse()?,
        };
        let pooling = match self.pooling {
            Some(pooling) => pooling,
            None => of_cache(item::POOLING)?.parse().map_err(|message: String| anyhow!(message))?,
        };
        let sae = autoencoder::open(path, site, &folder.config, None, device, &reporter())?;
        let reader = FeatureReader::new(pooling, folder.tokenizer.special_ids()).with(&sae, site);
        Ok(Some(Reader { reader, hash: fpo_sae::hash_encoder(&sae.encoder) }))
    }

    /// The values of all pairs, in the order of the data.
    fn compare(
        &self,
        aligner: &Aligner,
        policy: &LanguageModel,
        pairs: &[PairView],
    ) -> Result<Vec<PairValues>> {
        let pass = Pass::new(pairs.to_vec(), self.batch_size);
        let mut measured = fpo_metrics::Pairs::default();
        let mut order: Vec<usize> = Vec::with_capacity(pairs.len());
        let mut progress = reporter().begin("evaluate", "pairs", pairs.len(), 0);
        // The batches of `fpo reference`, so that a policy that equals the reference gives bit-identical values.
        for indices in pass.batches(0, 1) {
            let batch = PairBatch::new(&pass.views(indices))?;
            aligner.compare(policy, &batch)?.add_to(&mut measured);
            progress.advance(indices.len(), "");
            order.extend(indices);
        }
        progress.finish(&format!("{} pairs", pairs.len()));
        // Over all pairs as a single step, because some losses depend on every pair of a step.
        measured.add_losses(&aligner.objective.losses(measured.quantities()));
        measured.add_method_margins(&aligner.objective);
        let mut in_order: Vec<Option<PairValues>> = vec![None; pairs.len()];
        for (index, values) in order.into_iter().zip(measured.read()) {
            values.check().with_context(|| format!("row {} (counted from 0)", pairs[index].id))?;
            in_order[index] = Some(values);
        }
        Ok(in_order.into_iter().flatten().collect())
    }
}

/// The table of means over all pairs.
fn summary(objective: &Objective, values: &[PairValues]) -> Table {
    let mut table = Table::new();
    let title = format!("{}, {} pairs", objective.method, values.len());
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([title.as_str(), "Mean"]);
    for (title, mean) in means(values) {
        table.add_row([title, &mean]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Checks that responses have as many tokens here as in the cache.
fn check_counts(cache: &ReferenceCache, pairs: &[PairView]) -> Result<()> {
    for pair in pairs {
        let Some(row) = cache.get(pair.id) else { continue };
        for (side, ours, cached) in [
            ("chosen", pair.chosen, row.chosen.tokens),
            ("rejected", pair.rejected, row.rejected.tokens),
        ] {
            let ours = ours.tokens.len() - ours.prompt_len;
            ensure!(
                ours == cached as usize,
                "row {} (counted from 0): the {side} response has {ours} tokens here and {cached} in the reference cache",
                pair.id
            );
        }
    }
    Ok(())
}

/// Checks that the token distributions of two models can be compared.
fn check_comparable(policy: &ModelConfig, reference: &ModelConfig) -> Result<()> {
    let (ours, theirs) = (policy.vocab_size, reference.vocab_size);
    ensure!(
        ours == theirs,
        "--kl: the reference has a vocabulary of {theirs} tokens and the policy one of {ours}"
    );
    let (ours, theirs) = (policy.final_logit_softcapping, reference.final_logit_softcapping);
    ensure!(
        ours == theirs,
        "--kl: final_logit_softcapping is {theirs:?} in the reference and {ours:?} in the policy"
    );
    Ok(())
}
