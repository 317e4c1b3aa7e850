//! `fpo evaluate`.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::Tensor;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use fpo_data::{
    Fingerprint, Pair, PairBatch, PairView, Pooling, ReferenceCache, TokenizedPair,
    reference::StoredFeatures,
};
use fpo_losses::{Method, Objective, PerResponse, Quantities};
use fpo_transformer::{Gemma2, Site, weights};
use serde::Serialize;

use super::{
    binding::{self, NONE, Reader},
    loaded::{DeviceArg, Loaded},
    reference::batch_size,
    score::{TOKENS_HELP, write_lines},
    tokens::TokenArgs,
};
use crate::{
    aligner::Aligner,
    forward::Activations,
    progress::Progress,
    reference_pass::{plan, shard_batches},
};

/// Compares a policy with its reference, pair by pair, under a preference objective.
///
/// Writes one JSON object a line for every pair, in the file's order, with
///   chosen_log_prob, rejected_log_prob   sums over the response's tokens, in nats, of the policy
///   chosen_tokens, rejected_tokens       numbers of the response's tokens
///   margin                               what the method subtracts from the policy's difference
///   chosen_distance, rejected_distance   D: 1/k · Σ (c̄_policy − c̄_reference)² over the union of both
///                                        top k (with --sae)
///   u                                    the argument of the sigmoid
///   loss                                 −log sigmoid(u)
///   chosen_kl, rejected_kl               Σ over the response's positions of KL(reference ‖ policy), in
///                                        nats (with --kl)
/// and prints a table of means.
///
/// u = LPD − margin − constraint. w is the chosen response, l the rejected one, p the policy, r the
/// reference, avg a sum divided by the number of tokens:
///   method    LPD                              margin                           constraint
///   dpo       β (log p(w) − log p(l))          β (log r(w) − log r(l))          0
///   tdpo1     as dpo                           as dpo                           β (KL(l) − KL(w))
///   tdpo2     as dpo                           as dpo                           α β (KL(l) − KL(w))
///   simpo     β (avg log p(w) − avg log p(l))  γ                                0
///   simpo-kl  as simpo                         γ                                α β (KL(l) − KL(w))
///   fpo       as simpo                         β (avg log r(w) − avg log r(l))  α β (D(l) − D(w))
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = TOKENS_HELP)]
pub struct Evaluate {
    /// The policy's folder in Hugging Face's layout, with its tokenizer.
    #[arg(long, value_name = "FOLDER")]
    policy: PathBuf,
    /// What `fpo reference` wrote of the same data.
    #[arg(long, value_name = "FOLDER")]
    reference: PathBuf,
    /// The autoencoder of the cache: a SAELens folder or Gemma Scope's params.npz; needed by fpo.
    #[arg(long, value_name = "PATH")]
    sae: Option<PathBuf>,
    /// Preference pairs, the same as the cache's.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The objective; `fpo recipes tiny` lists them.
    #[arg(long)]
    method: Method,
    /// The JSON lines to be written.
    #[arg(long, value_name = "FILE")]
    per_pair: PathBuf,
    /// β; the paper's for the method where absent: 2 for simpo and simpo-kl, 0.1 for the others.
    #[arg(long)]
    beta: Option<f64>,
    /// α, the weight of the constraint (tdpo2, simpo-kl, fpo).
    #[arg(long, default_value_t = 0.5)]
    alpha: f64,
    /// γ, the margin of simpo and simpo-kl.
    #[arg(long, default_value_t = 0.5)]
    gamma: f64,
    /// Features compared: the k strongest of policy and of reference.
    #[arg(long, default_value_t = 50)]
    k: usize,
    /// Where the autoencoder's activations are read; the cache's where absent.
    #[arg(long)]
    site: Option<Site>,
    /// Positions whose features are averaged; the cache's where absent.
    #[arg(long)]
    pooling: Option<Pooling>,
    /// The reference model, to compute KL with; needed by tdpo1, tdpo2 and simpo-kl.
    #[arg(long, value_name = "FOLDER")]
    kl: Option<PathBuf>,
    /// Pairs a forward pass, at most 32.
    #[arg(long, default_value = "8", value_name = "PAIRS", value_parser = batch_size())]
    batch_size: usize,
    #[command(flatten)]
    tokens: TokenArgs,
    #[command(flatten)]
    device: DeviceArg,
}

/// A line of the output.
#[derive(Clone, Serialize)]
struct Line {
    chosen_log_prob: f32,
    rejected_log_prob: f32,
    chosen_tokens: usize,
    rejected_tokens: usize,
    margin: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    chosen_distance: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected_distance: Option<f32>,
    u: f32,
    loss: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    chosen_kl: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected_kl: Option<f32>,
    /// By how much the chosen response's reward is the higher one; not written.
    #[serde(skip)]
    reward_margin: f32,
}

impl Evaluate {
    pub fn run(self) -> Result<()> {
        let objective = self.objective()?;
        let loaded = Loaded::open(&self.policy, &self.device.open()?)?;
        let (pairs, tokenised) = self.tokens.read_pairs(&loaded, &self.data)?;
        let aligner = self.aligner(objective, &loaded, &pairs)?;
        check_counts(&aligner.cache, &tokenised)?;
        let lines = self.compare(&aligner, &loaded, &tokenised)?;
        write_lines(&self.per_pair, &lines)?;
        println!("{}", summary(&objective, &lines));
        Ok(())
    }

    fn objective(&self) -> Result<Objective> {
        let Self { method, alpha, gamma, k, .. } = *self;
        let beta = self.beta.unwrap_or(method.default_beta());
        let objective = Objective { beta, alpha, gamma, ..Objective::paper(method) };
        objective.check().map_err(|message| anyhow!(message))?;
        ensure!(k > 0, "k must be at least 1");
        let needs = objective.needs();
        if needs.token_kl && self.kl.is_none() {
            bail!("{method} needs the reference's whole distribution: name its model with --kl");
        }
        if needs.features && self.sae.is_none() {
            bail!("{method} needs the autoencoder of the cache: name it with --sae");
        }
        Ok(objective)
    }

    /// Everything that the policy is compared with, bound to the same things as the policy.
    fn aligner(&self, objective: Objective, loaded: &Loaded, pairs: &[Pair]) -> Result<Aligner> {
        let made_from = ReferenceCache::made_from(&self.reference)?;
        let reader = self.reader(loaded, &made_from)?;
        let mut expected = binding::tokens(loaded, &self.tokens, pairs);
        if let Some(folder) = &self.kl {
            expected = expected.with(binding::WEIGHTS, binding::hash_model(folder)?);
        }
        if let Some(Reader { hash, .. }) = &reader {
            expected = expected.with(binding::SAE, hash);
        }
        if let Some(site) = self.site {
            expected = expected.with(binding::SITE, site);
        }
        if let Some(pooling) = self.pooling {
            expected = expected.with(binding::POOLING, pooling.name());
        }
        // What nobody here can know better is the cache's.
        for item in
            [binding::WEIGHTS, binding::SAE, binding::SITE, binding::POOLING, binding::TOP_N]
        {
            if let (None, Some(found)) = (expected.0.get(item), made_from.0.get(item)) {
                expected = expected.with(item, found);
            }
        }
        let cache = ReferenceCache::open(&self.reference, &expected)?;
        cache.require(pairs.iter().map(|pair| pair.id))?;
        let reader = reader.map(|r| r.reader);
        if let Some(reader) = &reader {
            let d_sae = reader.d_sae();
            ensure!(
                self.k <= d_sae,
                "k = {} is more than the autoencoder's {d_sae} features; set --k",
                self.k
            );
            if let StoredFeatures::Top(n) = cache.stored() {
                ensure!(
                    n.get() >= self.k,
                    "the cache holds {n} features of a response, fewer than k = {}; set --k, or make it again with another --top-n",
                    self.k
                );
            }
        }
        let reference_model = self.kl.as_ref().map(|folder| {
            let reference = weights::load(folder, &loaded.model.device())?;
            check_comparable(&loaded.model, &reference)?;
            Ok::<_, anyhow::Error>(reference)
        });
        let reference_model = reference_model.transpose()?;
        Ok(Aligner {
            needs: objective.needs(),
            objective,
            k: self.k,
            feature_weights: None,
            reader,
            cache,
            reference_model,
            activations: Activations::Kept,
            token_statistics: false,
        })
    }

    fn reader(&self, loaded: &Loaded, made_from: &Fingerprint) -> Result<Option<Reader>> {
        let Some(path) = &self.sae else { return Ok(None) };
        let of_cache = |item: &str| match made_from.0.get(item).map(String::as_str) {
            None | Some(NONE) => bail!(
                "{}: this cache was made without an autoencoder; leave out --sae, or make it again with one",
                self.reference.display()
            ),
            Some(text) => Ok(text.to_owned()),
        };
        let site = match self.site {
            Some(site) => site,
            None => of_cache(binding::SITE)?.parse()?,
        };
        let pooling = match self.pooling {
            Some(pooling) => pooling,
            None => {
                of_cache(binding::POOLING)?.parse().map_err(|message: String| anyhow!(message))?
            }
        };
        Reader::open(path, site, pooling, loaded).map(Some)
    }

    fn compare(
        &self,
        aligner: &Aligner,
        loaded: &Loaded,
        pairs: &[TokenizedPair],
    ) -> Result<Vec<Line>> {
        let views: Vec<PairView> = pairs.iter().map(TokenizedPair::view).collect();
        let mut parts = Vec::new();
        let mut order: Vec<usize> = Vec::with_capacity(pairs.len());
        let mut progress = Progress::new("evaluate", "pairs", pairs.len(), 0);
        // The reference's own batches: a policy that is the reference differs from it by nothing at all.
        for indices in shard_batches(&plan(&views), self.batch_size, 0, 1) {
            let batch: Vec<PairView> = indices.iter().map(|&i| views[i]).collect();
            let batch = PairBatch::new(&batch, loaded.tokenizer.pad_id())?;
            parts.push(aligner.measure(&loaded.model, &batch)?.quantities);
            progress.advance(indices.len(), "");
            order.extend(indices);
        }
        progress.finish(&format!("{} pairs", pairs.len()));
        // All pairs at once: some losses depend on all of a step's pairs, and this is one step.
        let found: Vec<Line> = lines(&aligner.objective, Quantities::cat(&parts));
        let mut in_order: Vec<Option<Line>> = vec![None; pairs.len()];
        for (index, line) in order.into_iter().zip(found) {
            line.check().with_context(|| format!("row {} (counted from 0)", views[index].id))?;
            in_order[index] = Some(line);
        }
        Ok(in_order.into_iter().flatten().collect())
    }
}

/// The method's margin for each pair: −u where the policy's log-probabilities, KL and D are zero.
fn margin(objective: &Objective, q: &Quantities) -> Tensor<1> {
    let zero = || q.log_probs.clone().map(|x| x.zeros_like());
    let without_policy = Quantities {
        log_probs: zero(),
        kl: q.kl.as_ref().map(|_| zero()),
        distance: q.distance.as_ref().map(|_| zero()),
        ..q.clone()
    };
    let u = objective.losses(without_policy).logits();
    // 0 − u and not −u: a margin of nothing is 0, not −0.
    u.zeros_like() - u
}

fn lines(objective: &Objective, q: Quantities) -> Vec<Line> {
    let values = |x: &Tensor<1>| -> Vec<f32> { x.to_data().iter::<f32>().collect() };
    let both = |x: &PerResponse| (values(&x.chosen), values(&x.rejected));
    let (log_probs, counts) = (both(&q.log_probs), both(&q.counts));
    let (distances, kls) = (q.distance.as_ref().map(both), q.kl.as_ref().map(both));
    let margins = values(&margin(objective, &q));
    let result = objective.losses(q);
    let (us, losses) = (values(&result.logits()), values(&result.losses));
    let reward_margins = values(&result.rewards.margin());
    (0..us.len())
        .map(|i| Line {
            chosen_log_prob: log_probs.0[i],
            rejected_log_prob: log_probs.1[i],
            chosen_tokens: counts.0[i] as usize,
            rejected_tokens: counts.1[i] as usize,
            margin: margins[i],
            chosen_distance: distances.as_ref().map(|d| d.0[i]),
            rejected_distance: distances.as_ref().map(|d| d.1[i]),
            u: us[i],
            loss: losses[i],
            chosen_kl: kls.as_ref().map(|kl| kl.0[i]),
            rejected_kl: kls.as_ref().map(|kl| kl.1[i]),
            reward_margin: reward_margins[i],
        })
        .collect()
}

impl Line {
    fn check(&self) -> Result<()> {
        for (name, value) in [
            ("chosen_log_prob", self.chosen_log_prob),
            ("rejected_log_prob", self.rejected_log_prob),
            ("loss", self.loss),
        ] {
            ensure!(value.is_finite(), "{name} is {value}; are the policy's weights sound?");
        }
        Ok(())
    }
}

/// Fails where the cache's responses have other lengths than ours.
fn check_counts(cache: &ReferenceCache, pairs: &[TokenizedPair]) -> Result<()> {
    for pair in pairs {
        let Some(row) = cache.get(pair.id) else { continue };
        for (side, ours, cached) in [
            ("chosen", &pair.chosen, row.chosen.tokens),
            ("rejected", &pair.rejected, row.rejected.tokens),
        ] {
            let ours = ours.tokens.len() - ours.prompt_len;
            ensure!(
                ours == cached as usize,
                "row {} (counted from 0): its {side} response has {ours} tokens, and {cached} in the reference cache",
                pair.id
            );
        }
    }
    Ok(())
}

/// Fails where two models' distributions cannot be compared position by position.
fn check_comparable(policy: &Gemma2, reference: &Gemma2) -> Result<()> {
    let (ours, theirs) = (policy.config(), reference.config());
    ensure!(
        ours.vocab_size == theirs.vocab_size,
        "--kl: the reference has a vocabulary of {}, the policy one of {}",
        theirs.vocab_size,
        ours.vocab_size
    );
    ensure!(
        ours.final_logit_softcapping == theirs.final_logit_softcapping,
        "--kl: final_logit_softcapping is {:?} in the reference and {:?} in the policy",
        theirs.final_logit_softcapping,
        ours.final_logit_softcapping
    );
    Ok(())
}

/// Means over all pairs.
fn summary(objective: &Objective, lines: &[Line]) -> Table {
    let mut table = Table::new();
    let title = format!("{}, {} pairs", objective.method, lines.len());
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([title.as_str(), "Mean"]);
    let mean = |value: &dyn Fn(&Line) -> Option<f64>| -> Option<f64> {
        let values: Option<Vec<f64>> = lines.iter().map(value).collect();
        values.map(|v| v.iter().sum::<f64>() / v.len().max(1) as f64)
    };
    let of = |value: fn(&Line) -> f32| mean(&|line| Some(f64::from(value(line))));
    let of_some = |value: fn(&Line) -> Option<f32>| mean(&|line| value(line).map(f64::from));
    let average = |sum: f32, tokens: usize| f64::from(sum) / tokens as f64;
    let accuracy = mean(&|line| {
        let chosen = average(line.chosen_log_prob, line.chosen_tokens);
        Some(f64::from(chosen > average(line.rejected_log_prob, line.rejected_tokens)))
    });
    let rewarded = mean(&|line| Some(f64::from(line.reward_margin > 0.0)));
    let share = |share: Option<f64>| share.map(|share| format!("{:.1}%", 100.0 * share));
    let number = |value: Option<f64>| value.map(|value| format!("{value:.5}"));
    for (name, value) in [
        ("Loss", number(of(|l| l.loss))),
        ("Accuracy (higher average log-probability)", share(accuracy)),
        ("Accuracy (higher reward)", share(rewarded)),
        ("u", number(of(|l| l.u))),
        ("Margin", number(of(|l| l.margin))),
        ("Log-probability, chosen", number(of(|l| l.chosen_log_prob))),
        ("Log-probability, rejected", number(of(|l| l.rejected_log_prob))),
        ("Tokens, chosen", number(of(|l| l.chosen_tokens as f32))),
        ("Tokens, rejected", number(of(|l| l.rejected_tokens as f32))),
        ("D, chosen", number(of_some(|l| l.chosen_distance))),
        ("D, rejected", number(of_some(|l| l.rejected_distance))),
        ("KL, chosen", number(of_some(|l| l.chosen_kl))),
        ("KL, rejected", number(of_some(|l| l.rejected_kl))),
    ] {
        if let Some(value) = value {
            table.add_row([name.to_owned(), value]);
        }
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
