//! Low-rank adapters on the linear layers of the blocks: sizes, initial values.

use burn::{
    module::Module,
    tensor::{Device, TensorData},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{
    Block, Error, LanguageModel, Linear, Provider,
    builder::Builder,
    linear::{Lora, row_norms},
    multimodal::spellings,
    saved,
    targets::{Patterns, Targets, is_of_tokens, module_name},
};

/// PEFT's name for DoRA's m.
pub(crate) const MAGNITUDE: &str = "lora_magnitude_vector";

/// Sizes, scale and targets of adapters, with PEFT's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// r, the inner dimension of B · A.
    pub rank: usize,
    /// The adapter's output is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Which linear layers get an adapter: a list of names, "all-linear", or a regular expression for their full names.
    pub target_modules: Targets,
    /// Which of them don't: a list of names, or a regular expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Targets>,
    /// The blocks, from 0, whose layers get one; all if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers_to_transform: Vec<usize>,
    /// Share of an adapter's inputs that are zeroed in training, the others scaled up.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropout: f64,
    /// Multiplies by `alpha / √rank` instead (rank-stabilised LoRA, Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Trains the norm of each row of the merged weight apart from its direction (DoRA, Liu et al. 2024).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub use_dora: bool,
    /// Modules that are trained whole, by the end of their names: `embed_tokens`, `lm_head`, `norm` and so on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Other ranks for the layers whose names match; the first match counts.
    #[serde(skip_serializing_if = "Patterns::is_empty")]
    pub rank_pattern: Patterns<usize>,
    /// Other values of alpha.
    #[serde(skip_serializing_if = "Patterns::is_empty")]
    pub alpha_pattern: Patterns<f64>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            target_modules: Targets::all(),
            exclude_modules: None,
            layers_to_transform: Vec::new(),
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            modules_to_save: Vec::new(),
        }
    }
}

impl LoraConfig {
    /// Keys that are left out where they have no value.
    pub const OPTIONAL: [&str; 7] = [
        "exclude_modules",
        "layers_to_transform",
        "dropout",
        "use_dora",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
    ];

    /// Checks the values; the error is a sentence.
    pub fn check(&self) -> Result<(), String> {
        let ranks = self.rank_pattern.values();
        for (name, rank) in std::iter::once(("rank", self.rank)).chain(ranks) {
            if rank == 0 {
                return Err(format!("{name} = 0 must be at least 1"));
            }
        }
        let alphas = self.alpha_pattern.values();
        for (name, alpha) in std::iter::once(("alpha", self.alpha)).chain(alphas) {
            if !(alpha > 0.0 && alpha.is_finite()) {
                return Err(format!("{name} = {alpha} must be positive"));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(format!("dropout = {} must be in [0, 1)", self.dropout));
        }
        if self.target_modules.is_pattern() && !self.layers_to_transform.is_empty() {
            return Err("layers_to_transform works with a list of target_modules alone: put the blocks into the \
                 regular expression"
                .into());
        }
        if self.modules_to_save.iter().any(String::is_empty) {
            return Err("modules_to_save: a name is empty".into());
        }
        self.target_modules.check(|_| false)?;
        self.exclude_modules.as_ref().map_or(Ok(()), |names| names.check(is_of_tokens))
    }

    /// The rank of a layer's adapter, if it has one.
    pub fn rank(&self, layer: usize, projection: Projection) -> Option<usize> {
        self.sizes(layer, &spellings(&module_name(layer, projection))).map(|(rank, _)| rank)
    }

    /// Rank and alpha of the adapter of a linear layer in a block, which has these names; `None` if it has no adapter.
    pub(crate) fn sizes(&self, layer: usize, names: &[String]) -> Option<(usize, f64)> {
        let in_block =
            self.layers_to_transform.is_empty() || self.layers_to_transform.contains(&layer);
        let excluded = self.exclude_modules.as_ref().is_some_and(|some| some.contains(names));
        let whole = names.iter().any(|name| self.saves_module(name));
        let has_one = in_block && !excluded && !whole && self.target_modules.contains(names);
        has_one.then(|| {
            let rank = self.rank_pattern.value(names).unwrap_or(self.rank);
            (rank, self.alpha_pattern.value(names).unwrap_or(self.alpha))
        })
    }

    /// What an adapter of these sizes is multiplied by.
    fn scale(&self, (rank, alpha): (usize, f64)) -> f64 {
        let rank = rank as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

fn is_zero(rate: &f64) -> bool {
    *rate == 0.0
}

/// A linear layer of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention's output.
    O,
    /// The MLP's gate.
    Gate,
    /// The MLP's up-projection.
    Up,
    /// The MLP's output.
    Down,
}

impl Projection {
    /// Every linear layer of a block.
    pub const ALL: [Self; 7] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Its path in a block, such as `self_attn.q_proj`.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// Its name, such as `q_proj`.
    pub fn name(self) -> &'static str {
        self.path().rsplit('.').next().unwrap_or_default()
    }

    pub(crate) fn of(self, block: &Block) -> &Linear {
        let (attention, mlp) = (&block.self_attn, &block.mlp);
        match self {
            Self::Q => &attention.q_proj,
            Self::K => &attention.k_proj,
            Self::V => &attention.v_proj,
            Self::O => &attention.o_proj,
            Self::Gate => &mlp.gate_proj,
            Self::Up => &mlp.up_proj,
            Self::Down => &mlp.down_proj,
        }
    }

    pub(crate) fn of_mut(self, block: &mut Block) -> &mut Linear {
        let (attention, mlp) = (&mut block.self_attn, &mut block.mlp);
        match self {
            Self::Q => &mut attention.q_proj,
            Self::K => &mut attention.k_proj,
            Self::V => &mut attention.v_proj,
            Self::O => &mut attention.o_proj,
            Self::Gate => &mut mlp.gate_proj,
            Self::Up => &mut mlp.up_proj,
            Self::Down => &mut mlp.down_proj,
        }
    }
}

impl LanguageModel {
    /// The same model with adapters on `device`, in place of any that it had. Its weights are shared and no longer trained.
    /// `provider` gives the values of `model.layers.0.self_attn.q_proj.lora_A.weight` and so on.
    ///
    /// # Errors
    /// Those of `provider`, or an adapter that the device can't hold.
    pub fn with_lora(
        &self,
        config: &LoraConfig,
        device: &Device,
        provider: Provider,
    ) -> Result<Self, Error> {
        let mut model = self.valid();
        let mut builder = Builder { provider, placement: device.into() };
        let mut count = 0;
        for (layer, block) in model.model.layers.iter_mut().enumerate() {
            for projection in Projection::ALL {
                let linear = projection.of_mut(block);
                linear.lora = None;
                let module = module_name(layer, projection);
                let Some(sizes) = config.sizes(layer, &spellings(&module)) else { continue };
                let [d_out, d_in] = linear.weight.dims();
                let (rank, scale) = (sizes.0, config.scale(sizes));
                let a = builder.param(format!("{module}.lora_A.weight"), [rank, d_in])?;
                let b = builder.param(format!("{module}.lora_B.weight"), [d_out, rank])?;
                let magnitude = match config.use_dora {
                    true => Some(builder.param(format!("{module}.{MAGNITUDE}"), [d_out])?),
                    false => None,
                };
                linear.lora = Some(Lora { a, b, magnitude, scale, mask: None });
                count += 1;
            }
        }
        if count == 0 {
            let message = format!("no layer of the model is among `{}`", config.target_modules);
            return Err(Error::Adapters(message));
        }
        model.lora = Some(config.clone());
        match config.modules_to_save.is_empty() {
            true => Ok(model),
            false => saved::replace(model, config, builder),
        }
    }

    /// New adapters, initialised as in PEFT: A uniform in ±1/√in (Kaiming with a = √5) and B zero, DoRA's magnitudes the norms of
    /// the weight's rows, so that the model's outputs don't change. The same seed gives the same values on every device.
    ///
    /// # Errors
    /// An adapter that the device can't hold.
    pub fn with_new_lora(
        &self,
        config: &LoraConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Self, Error> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        self.with_lora(config, device, &mut |piece| {
            if let Some(module) = piece.name.strip_suffix(&format!(".{MAGNITUDE}")) {
                return Ok(self.norms_of(module));
            }
            if !piece.name.contains(".lora_") {
                return saved::initial(self, piece);
            }
            let bound = match piece.name.ends_with("lora_A.weight") {
                true => (piece.shape[1] as f64).powf(-0.5),
                false => 0.0,
            };
            let uniform = |_| (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32;
            let values: Vec<f32> = piece.places().map(uniform).collect();
            Ok(TensorData::new(values, piece.dims()))
        })
    }

    /// The norms of the rows of a linear layer's weight, in float32.
    fn norms_of(&self, module: &str) -> TensorData {
        let blocks = self.model.layers.iter().enumerate();
        let mut linears = blocks.flat_map(|(layer, block)| {
            Projection::ALL.map(|p| (module_name(layer, p), p.of(block)))
        });
        let linear = linears.find(|(name, _)| name == module).map(|(_, linear)| linear);
        let weight = linear.expect("a module of this model").weight.val().without_autodiff();
        row_norms(weight).into_data().convert::<f32>()
    }

    /// The configuration of its adapters; `None` if it has none.
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.lora.as_ref()
    }

    /// Every adapter with the path of its layer, such as `model.layers.0.self_attn.q_proj`.
    pub(crate) fn adapters(&self) -> impl Iterator<Item = (String, &Lora)> {
        self.model.layers.iter().enumerate().flat_map(|(layer, block)| {
            Projection::ALL.into_iter().filter_map(move |projection| {
                let lora = projection.of(block).lora.as_ref()?;
                Some((module_name(layer, projection), lora))
            })
        })
    }

    /// The same function with the adapters merged into the weights; a copy of the model if it has no adapters.
    pub fn merged(&self) -> Self {
        let mut model = self.valid();
        for block in &mut model.model.layers {
            for projection in Projection::ALL {
                let linear = projection.of_mut(block);
                *linear = linear.clone().merged();
            }
        }
        model.lora = None;
        model
    }
}
