//! How much memory a training needs, before it is tried. A count of what has to be there at once, checked against measured
//! peaks by a test.

use anyhow::{Context, Result, bail};
use fpo_losses::Method;
use fpo_transformer::{Gemma2Config, LoraConfig, Precision, Projection};
use serde_json::json;

use crate::settings::{ModelSettings, OptimizerKind, Settings};

/// float32
const BYTES: u64 = 4;
/// Blocks of logits and of feature activations while they are worked on.
const BLOCKS: u64 = 128 << 20;

/// A training step, as far as its memory is concerned.
#[derive(Clone, Debug)]
pub struct Step {
    /// The model.
    pub config: Gemma2Config,
    /// Its types.
    pub precision: Precision,
    /// Tokens of one forward pass, padding included.
    pub tokens: usize,
    /// Blocks are computed twice instead of kept.
    pub checkpointed: bool,
    /// Adapters alone are trained.
    pub lora: Option<LoraConfig>,
    /// What keeps moments.
    pub optimizer: OptimizerKind,
    /// Gradients of several forward passes add up.
    pub accumulates: bool,
    /// The reference model is there as well.
    pub second_model: bool,
    /// Features of the autoencoder, where it is read.
    pub d_sae: Option<usize>,
}

/// Bytes of everything that is there at the step's worst moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Parameters, those of adapters and of a second model included.
    pub weights: u64,
    /// Gradients of what is trained.
    pub gradients: u64,
    /// The optimiser's moments.
    pub optimizer: u64,
    /// What the forward pass keeps for the backward pass.
    pub activations: u64,
    /// The autoencoder, and blocks of logits.
    pub rest: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations + self.rest
    }
}

/// Numbers in one block's linear layers and norms.
fn block_parameters(c: &Gemma2Config) -> u64 {
    let linear: usize = Projection::ALL.into_iter().map(|p| product(sizes(c, p))).sum();
    (linear + 4 * c.hidden_size) as u64
}

/// In and out.
fn sizes(c: &Gemma2Config, projection: Projection) -> [usize; 2] {
    let (d, ffn) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    match projection {
        Projection::Q => [d, q],
        Projection::K | Projection::V => [d, kv],
        Projection::O => [q, d],
        Projection::Gate | Projection::Up => [d, ffn],
        Projection::Down => [ffn, d],
    }
}

fn product([a, b]: [usize; 2]) -> usize {
    a * b
}

/// Numbers in a model.
pub fn parameters(c: &Gemma2Config) -> u64 {
    let embedding = c.vocab_size * c.hidden_size;
    (embedding + c.hidden_size) as u64 + c.num_hidden_layers as u64 * block_parameters(c)
}

impl Step {
    fn trained(&self) -> u64 {
        let Some(lora) = &self.lora else { return parameters(&self.config) };
        let targets = Projection::ALL.into_iter().filter(|p| lora.target_modules.contains(*p));
        let of_block: usize =
            targets.map(|p| sizes(&self.config, p)).map(|[a, b]| lora.rank * (a + b)).sum();
        (of_block * self.config.num_hidden_layers) as u64
    }

    /// Bytes that a block keeps of one token: what enters and leaves the norms; queries, keys and values as they are attended
    /// with, what attention gives, gate, up and their product.
    fn kept_by_block(&self) -> u64 {
        let c = &self.config;
        let heads = (c.num_attention_heads + c.num_key_value_heads) * c.head_dim;
        let norms = 6 * c.hidden_size as u64;
        let factors = (2 * heads + 3 * c.intermediate_size) as u64;
        BYTES * norms + self.factor() * factors
    }

    /// Bytes of a number that enters a product.
    fn factor(&self) -> u64 {
        self.precision.factor_bytes() as u64
    }

    /// Numbers of gradients that wait for being added to those of earlier passes.
    fn passing_gradients(&self, trained: u64) -> u64 {
        let c = &self.config;
        match (self.accumulates, self.checkpointed, &self.lora) {
            (false, ..) => 0,
            (true, false, _) => trained,
            // Block by block; the embedding's come by themselves.
            (true, true, None) => block_parameters(c).max((c.vocab_size * c.hidden_size) as u64),
            (true, true, Some(_)) => trained / c.num_hidden_layers.max(1) as u64,
        }
    }

    /// What the step needs.
    pub fn memory(&self) -> Memory {
        let c = &self.config;
        let (tokens, layers) = (self.tokens as u64, c.num_hidden_layers as u64);
        let (whole, trained) = (parameters(c), self.trained());
        let adapters = if self.lora.is_some() { trained } else { 0 };
        let (of_policy, of_second) = match (&self.lora, self.second_model) {
            // A frozen model beside its adapters is the second one too.
            (Some(_), _) => (self.factor(), 0),
            (None, true) => (BYTES, self.factor()),
            (None, false) => (BYTES, 0),
        };
        let kept = match self.checkpointed {
            true => BYTES * layers * c.hidden_size as u64 + self.kept_by_block(),
            false => layers * self.kept_by_block(),
        };
        // Gradients on their way: of gate, up and their product, and of the stream.
        let passing =
            self.factor() * 3 * c.intermediate_size as u64 + BYTES * 4 * c.hidden_size as u64;
        let moments = match self.optimizer {
            OptimizerKind::Adamw => 2,
            OptimizerKind::Rmsprop => 1,
        };
        let encoder = self.d_sae.map_or(0, |d_sae| (d_sae * (c.hidden_size + 2)) as u64);
        Memory {
            weights: (of_policy + of_second) * whole + BYTES * adapters,
            gradients: BYTES * (trained + self.passing_gradients(trained)),
            optimizer: BYTES * moments * trained,
            activations: tokens * (kept + passing),
            rest: BYTES * encoder + BLOCKS.min(BYTES * tokens * c.vocab_size as u64),
        }
    }
}

/// The alignment step of a run.
///
/// # Errors
/// A model whose sizes can't be known.
pub fn alignment(settings: &Settings) -> Result<Step> {
    let s = &settings.align;
    let micro_batch = s.micro_batch_size.get();
    let needs = s.objective().needs();
    Ok(Step {
        config: config(&settings.model)?,
        precision: settings.model.precision,
        tokens: 2 * micro_batch * settings.data.max_length,
        checkpointed: s.checkpoint_activations,
        lora: s.lora.clone(),
        optimizer: s.optimizer.kind,
        accumulates: micro_batch < s.batch_size.get(),
        second_model: needs.token_kl,
        d_sae: needs.features.then(|| d_sae(settings)),
    })
}

/// The fine-tuning step of a run; none where there is no fine-tuning.
///
/// # Errors
/// A model whose sizes can't be known.
pub fn fine_tuning(settings: &Settings) -> Result<Option<Step>> {
    let s = &settings.sft;
    if s.epochs == 0 {
        return Ok(None);
    }
    let micro_batch = s.micro_batch_size.get();
    Ok(Some(Step {
        config: config(&settings.model)?,
        precision: settings.model.precision,
        tokens: micro_batch * settings.data.max_length,
        checkpointed: s.checkpoint_activations,
        lora: s.lora.clone(),
        optimizer: s.optimizer.kind,
        accumulates: micro_batch < s.batch_size.get(),
        second_model: false,
        d_sae: None,
    }))
}

/// The width of the autoencoder to be trained; of one that is given, as its path says in Gemma Scope's way, else 16k.
fn d_sae(settings: &Settings) -> usize {
    let Some(path) = &settings.sae.path else { return settings.sae.training.d_sae };
    let path = path.to_string_lossy();
    let mut widths =
        path.split(['/', '_']).filter_map(|part| part.strip_suffix('k')?.parse::<usize>().ok());
    widths.next_back().map_or(16_384, |thousands| thousands * 1024)
}

/// The sizes of the model: of its folder, of a Gemma-2 whose name it bears, or of the settings.
fn config(model: &ModelSettings) -> Result<Gemma2Config> {
    let Some(path) = &model.path else {
        return sizes_of([
            model.vocab_size,
            model.hidden_size,
            model.intermediate_size,
            model.num_hidden_layers,
            model.num_attention_heads,
            model.num_key_value_heads,
            model.head_dim,
        ]);
    };
    if path.join("config.json").exists() {
        return Ok(Gemma2Config::load(path)?);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    for (size, numbers) in [
        ("gemma-2-2b", [256_000, 2304, 9216, 26, 8, 4, 256]),
        ("gemma-2-9b", [256_000, 3584, 14_336, 42, 16, 8, 256]),
        ("gemma-2-27b", [256_000, 4608, 36_864, 46, 32, 16, 128]),
    ] {
        if name.starts_with(size) {
            return sizes_of(numbers);
        }
    }
    bail!("model.path: {} has no config.json to read the model's sizes from", path.display())
}

fn sizes_of(
    [vocab, d, ffn, layers, heads, kv_heads, head_dim]: [usize; 7],
) -> Result<Gemma2Config> {
    let config = json!({
        "model_type": "gemma2", "vocab_size": vocab, "hidden_size": d, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, "query_pre_attn_scalar": head_dim,
    });
    let config = Gemma2Config::from_json(&config.to_string());
    config.map_err(anyhow::Error::msg).context("the model's sizes")
}

/// The largest of a run's steps, in bytes.
pub fn peak(settings: &Settings) -> Result<u64> {
    let alignment = alignment(settings)?.memory().total();
    let fine_tuning = fine_tuning(settings)?.map_or(0, |step| step.memory().total());
    Ok(alignment.max(fine_tuning))
}

/// Settings, one after the other, that bring a run's peak below `device`: what each changes, and the peak after it. Empty where
/// it fits already; none where nothing helps.
///
/// # Errors
/// A model whose sizes can't be known.
pub fn fit(settings: &Settings, device: u64) -> Result<Option<Vec<(String, u64)>>> {
    let mut settings = settings.clone();
    let mut found = Vec::new();
    let mut now = peak(&settings)?;
    while now > device {
        let Some((change, next, after)) = best_change(&settings, now)? else { return Ok(None) };
        found.push((change, after));
        (settings, now) = (next, after);
    }
    Ok(Some(found))
}

/// The first change that helps: those that cost only time come first, those that change the method last.
fn best_change(settings: &Settings, now: u64) -> Result<Option<(String, Settings, u64)>> {
    type Change = (&'static str, fn(&mut Settings));
    const CHANGES: [Change; 7] = [
        ("align.checkpoint_activations=true", |s| s.align.checkpoint_activations = true),
        ("sft.checkpoint_activations=true", |s| s.sft.checkpoint_activations = true),
        ("model.precision=bf16-mixed", |s| s.model.precision = Precision::Bf16Mixed),
        ("align.micro_batch_size=1", |s| s.align.micro_batch_size = std::num::NonZeroUsize::MIN),
        ("sft.micro_batch_size=1", |s| s.sft.micro_batch_size = std::num::NonZeroUsize::MIN),
        ("align.lora.rank=16", |s| {
            s.align.lora = s.align.lora.clone().or_else(|| Some(LoraConfig::default()))
        }),
        ("sft.lora.rank=16", |s| {
            s.sft.lora = s.sft.lora.clone().or_else(|| Some(LoraConfig::default()))
        }),
    ];
    for (name, change) in CHANGES {
        let mut next = settings.clone();
        change(&mut next);
        let after = peak(&next)?;
        if after < now {
            return Ok(Some((format!("--set {name}"), next, after)));
        }
    }
    if settings.data.max_length >= 256 {
        let mut next = settings.clone();
        next.data.max_length /= 2;
        let after = peak(&next)?;
        return Ok(Some((format!("--set data.max_length={}", next.data.max_length), next, after)));
    }
    let needs_second = settings.align.objective().needs().token_kl;
    if needs_second && settings.align.lora.is_none() {
        let mut next = settings.clone();
        next.align = next.align.for_method(Method::Fpo);
        let after = peak(&next)?;
        return Ok(Some(("--set align.method=fpo".into(), next, after)));
    }
    Ok(None)
}

/// `24GB`, `80 GiB`, `512MiB`: bytes.
///
/// # Errors
/// A text that is none.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "gb" | "g" => 1e9,
        "gib" => f64::from(1u32 << 30),
        "mb" | "m" => 1e6,
        "mib" => f64::from(1u32 << 20),
        _ => {
            return Err(format!(
                "`{text}`: expected a number with GB, GiB, MB or MiB, such as 24GB"
            ));
        }
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 => Ok((number * factor) as u64),
        _ => Err(format!(
            "`{text}`: expected a positive number with GB, GiB, MB or MiB, such as 24GB"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(recipe: &str, set: &[&str]) -> Settings {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        Settings::resolve(recipe, None, &set).unwrap()
    }

    /// The sizes that the Gemma-2 report gives (table 2: with embedding, 2.6, 9.2 and 27.2 billion).
    #[test]
    fn parameters_of_gemma_2() {
        for (path, billions) in
            [("gemma-2-2b", 2.61), ("gemma-2-9b-it", 9.24), ("gemma-2-27b", 27.23)]
        {
            let s = settings("gemma-2-2b-fpo", &[&format!("model.path={path}")]);
            let found = parameters(&config(&s.model).unwrap()) as f64 / 1e9;
            assert!((found - billions).abs() < 0.01, "{path}: {found}");
        }
    }

    #[test]
    fn a_card_of_24_gb() {
        let card = parse_bytes("24GB").unwrap();
        let lora = settings("gemma-2-2b-fpo-lora", &[]);
        assert!(peak(&lora).unwrap() < card, "{}", peak(&lora).unwrap());
        let full = settings("gemma-2-2b-fpo", &[]);
        assert!(peak(&full).unwrap() > card);
        let changes = fit(&full, card).unwrap().unwrap();
        assert!(changes.iter().any(|(change, _)| change.contains("lora")), "{changes:?}");
        assert!(changes.last().unwrap().1 <= card);
        assert!(fit(&full, 1 << 30).unwrap().is_none());
        assert!(fit(&full, 1 << 40).unwrap().unwrap().is_empty());
    }

    /// Frozen weights in bfloat16: adapters of the larger model on the card of the smaller.
    #[test]
    fn nine_billion_parameters_beside_their_adapters() {
        let card = parse_bytes("24GB").unwrap();
        let mixed = settings("gemma-2-9b-fpo-lora", &[]);
        assert!(peak(&mixed).unwrap() < card, "{}", peak(&mixed).unwrap());
        let float32 = settings("gemma-2-9b-fpo-lora", &["model.precision=float32"]);
        let changes = fit(&float32, card).unwrap().unwrap();
        assert_eq!(changes.len(), 1, "{changes:?}");
        assert_eq!(changes[0].0, "--set model.precision=bf16-mixed");
    }

    /// Figure 4 of the paper: FPO as light as SimPO, TDPO-2 heavier by a model.
    #[test]
    fn methods_side_by_side() {
        let of = |method: &str| {
            let method = format!("align.method={method}");
            let s = settings("gemma-2-2b-fpo", &[&method, "model.precision=float32"]);
            alignment(&s).unwrap().memory().total() as f64
        };
        assert!(of("fpo") / of("simpo") < 1.01);
        assert!(of("tdpo2") / of("simpo") > 1.15);
    }

    #[test]
    fn sizes_of_memory() {
        for (text, bytes) in [("24GB", 24_000_000_000), ("1 GiB", 1 << 30), ("1.5mib", 3 << 19)] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "24", "GB", "-1GB", "24TBs", "0GB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
