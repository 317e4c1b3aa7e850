//! Low-rank adapters on the linear layers of the blocks: targets, sizes, initial values.

use std::{collections::BTreeSet, fmt, str::FromStr};

use burn::{
    module::Module,
    tensor::{Device, TensorData},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Block, Error, LanguageModel, Linear, Provider, builder::Builder, linear::Lora};

/// Sizes, scale and targets of adapters, with PEFT's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// r, the inner dimension of B · A.
    pub rank: usize,
    /// The adapter's output is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Which linear layers get an adapter: a list of names, or "all-linear".
    pub target_modules: Targets,
    /// Multiplies by `alpha / √rank` instead (rank-stabilised LoRA, Kalajdzievski 2023).
    pub use_rslora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, target_modules: Targets::all(), use_rslora: false }
    }
}

impl LoraConfig {
    /// Checks the values; the error is a sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.rank == 0 {
            return Err("rank = 0 must be at least 1".into());
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return Err(format!("alpha = {} must be positive", self.alpha));
        }
        Ok(())
    }

    fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
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

    fn of_mut(self, block: &mut Block) -> &mut Linear {
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

impl FromStr for Projection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|p| p.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("target module `{text}`: adapters fit {names}, or \"all-linear\"")
        })
    }
}

/// A non-empty set of [`Projection`]s, written as a list of names or as "all-linear".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Names", into = "Names")]
pub struct Targets(BTreeSet<Projection>);

/// Targets as PEFT writes them.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Several(Vec<String>),
}

impl Targets {
    /// PEFT's "all-linear".
    pub fn all() -> Self {
        Self(Projection::ALL.into())
    }

    /// Whether a projection is one of them.
    pub fn contains(&self, projection: Projection) -> bool {
        self.0.contains(&projection)
    }

    /// In the order of [`Projection::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = Projection> {
        self.0.iter().copied()
    }
}

impl TryFrom<Names> for Targets {
    type Error = String;

    fn try_from(names: Names) -> Result<Self, String> {
        match names {
            Names::One(name) if name == "all-linear" => Ok(Self::all()),
            // PEFT takes any other string as a regular expression.
            Names::One(name) => Err(format!(
                "target modules \"{name}\": expected \"all-linear\" or a list of names"
            )),
            Names::Several(names) if names.is_empty() => Err("no target modules".into()),
            Names::Several(names) => {
                names.iter().map(|n| n.parse()).collect::<Result<_, _>>().map(Self)
            }
        }
    }
}

impl From<Targets> for Names {
    fn from(targets: Targets) -> Self {
        Self::Several(targets.iter().map(|p| p.name().to_owned()).collect())
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(Projection::name).collect::<Vec<_>>().join(", "))
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
        for (layer, block) in model.model.layers.iter_mut().enumerate() {
            for projection in Projection::ALL {
                let linear = projection.of_mut(block);
                linear.lora = None;
                if !config.target_modules.contains(projection) {
                    continue;
                }
                let [d_out, d_in] = linear.weight.dims();
                let mut param = |part: &str, shape: [usize; 2]| {
                    let path = projection.path();
                    builder.param(format!("model.layers.{layer}.{path}.{part}.weight"), shape)
                };
                let a = param("lora_A", [config.rank, d_in])?;
                let b = param("lora_B", [d_out, config.rank])?;
                linear.lora = Some(Lora { a, b, scale: config.scale() });
            }
        }
        model.lora = Some(config.clone());
        Ok(model)
    }

    /// New adapters, initialised as in PEFT: A uniform in ±1/√in (Kaiming with a = √5) and B zero, so that the model's outputs
    /// don't change. The same seed gives the same values on every device.
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
            let bound = match piece.name.ends_with("lora_A.weight") {
                true => (piece.shape[1] as f64).powf(-0.5),
                false => 0.0,
            };
            let uniform = |_| (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32;
            let values: Vec<f32> = piece.places().map(uniform).collect();
            Ok(TensorData::new(values, piece.dims()))
        })
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
                Some((format!("model.layers.{layer}.{}", projection.path()), lora))
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
