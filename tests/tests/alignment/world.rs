//! A tiny policy and its reference, an autoencoder, and pairs of awkward lengths.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Device, Tensor, TensorData},
};
use fpo_data::{
    Fingerprint, PairBatch, Pooling, ReferenceCache, ReferenceWriter, TokenizedPair,
    TokenizedResponse,
    reference::{CacheShape, StoredFeatures},
};
use fpo_interp::reader::FeatureReader;
use fpo_losses::{Method, Objective, Options, PairLosses};
use fpo_metrics::Pairs;
use fpo_ops::{Activation, Encoder, Normalization};
use fpo_sae::{Provenance, Sae};
use fpo_trainer::{
    aligner::{Aligner, Comparison, FeatureConstraint},
    forward::Keep,
    reference::Reference,
};
use fpo_transformer::{LanguageModel, ModelConfig, Piece, Site};
use serde_json::json;

pub const D_MODEL: usize = 12;
pub const D_SAE: usize = 20;
pub const K: usize = 4;
const VOCABULARY: usize = 31;

/// A small deterministic generator (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// Uniform in −1..1.
    pub fn signed(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn values(&mut self, count: usize, scale: f64) -> Vec<f64> {
        (0..count).map(|_| scale * self.signed()).collect()
    }

    fn below(&mut self, bound: usize) -> usize {
        ((self.signed() + 1.0) / 2.0 * bound as f64) as usize % bound
    }

    fn tensor<const D: usize>(&mut self, shape: [usize; D], scale: f64, offset: f64) -> Tensor<D> {
        let values = self.values(shape.iter().product(), scale);
        let values: Vec<f64> = values.into_iter().map(|x| x + offset).collect();
        Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F32))
    }
}

/// Everything in float32 on the plain device.
pub struct World {
    pub reference: LanguageModel,
    pub policy: LanguageModel,
    pub sae: Sae,
    pub pairs: Vec<TokenizedPair>,
}

impl World {
    pub fn new() -> Self {
        let reference = model(&mut Random(1));
        let policy = shifted(&reference, 2, 0.4);
        let mut random = Random(3);
        let encoder = Encoder {
            normalization: Normalization::None,
            w_enc: random.tensor([D_MODEL, D_SAE], 0.5, 0.0),
            b_enc: random.tensor([D_SAE], 0.2, 0.0),
            activation: Activation::JumpRelu { threshold: random.tensor([D_SAE], 0.1, 0.2) },
        };
        let sae = Sae {
            encoder,
            w_dec: random.tensor([D_SAE, D_MODEL], 0.5, 0.0),
            b_dec: random.tensor([D_MODEL], 0.1, 0.0),
            provenance: Provenance::default(),
        };
        let lengths = [(3, 5, 4), (1, 1, 2), (6, 4, 4), (2, 9, 8), (4, 3, 4), (1, 2, 1)];
        let pairs = lengths.iter().enumerate().map(|(i, &(prompt, chosen, rejected))| {
            let prompt: Vec<u32> =
                (0..prompt).map(|_| 1 + random.below(VOCABULARY - 1) as u32).collect();
            let mut response = |count: usize| {
                let more = (0..count).map(|_| 1 + random.below(VOCABULARY - 1) as u32);
                let tokens = prompt.iter().copied().chain(more).collect();
                TokenizedResponse { tokens, prompt_len: prompt.len() }
            };
            TokenizedPair {
                id: 10 + i as u64,
                chosen: response(chosen),
                rejected: response(rejected),
            }
        });
        let pairs = pairs.collect();
        Self { reference, policy, sae, pairs }
    }

    /// These pairs, by their positions, as one batch.
    pub fn batch(&self, pairs: &[usize]) -> PairBatch {
        let views: Vec<_> = pairs.iter().map(|&i| self.pairs[i].view()).collect();
        PairBatch::new(&views).unwrap()
    }

    pub fn all(&self) -> PairBatch {
        self.batch(&[0, 1, 2, 3, 4, 5])
    }

    pub fn reader(&self, dtype: DType) -> FeatureReader {
        let e = &self.sae.encoder;
        let encoder = Encoder {
            normalization: Normalization::None,
            w_enc: e.w_enc.clone().cast(dtype),
            b_enc: e.b_enc.clone().cast(dtype),
            activation: e.activation.map(|x| x.cast(dtype)),
        };
        let sae = Sae { encoder, ..self.sae.clone() };
        FeatureReader::new(Pooling::Predicting, vec![]).with(&sae, Site::resid_post(1))
    }

    /// The reference's cache, written to a disk and read from it.
    pub fn cache(&self, stored: StoredFeatures) -> ReferenceCache {
        self.cache_of(&self.reader(DType::F32), stored)
    }

    pub fn cache_of(&self, reader: &FeatureReader, stored: StoredFeatures) -> ReferenceCache {
        let folder = tempfile::tempdir().unwrap();
        let shape = CacheShape {
            pairs: self.pairs.len(),
            d_sae: reader.d_sae(),
            stored,
            rows_per_shard: 4.try_into().unwrap(),
        };
        let path = folder.path().join("cache");
        let mut writer = ReferenceWriter::create(&path, &Fingerprint::default(), shape).unwrap();
        // Other batches than alignment's, so that padding differs.
        for pairs in self.pairs.chunks(2) {
            let pairs: Vec<_> = pairs.iter().map(TokenizedPair::view).collect();
            let batch = PairBatch::new(&pairs).unwrap();
            let reference = Reference { model: &self.reference, reader: Some(reader) };
            for row in reference.rows(&batch) {
                writer.push(row).unwrap();
            }
        }
        writer.finish().unwrap();
        ReferenceCache::open(&path, &Fingerprint::default()).unwrap()
    }

    /// What the objective needs and nothing else.
    pub fn aligner(&self, objective: Objective, dtype: DType) -> Aligner {
        objective.check().unwrap();
        let needs = objective.needs();
        Aligner {
            objective,
            needs,
            features: needs.features.then(|| constraint(self.reader(dtype), K)),
            cache: self.cache(StoredFeatures::All),
            reference_model: needs.token_kl.then(|| cast(&self.reference, dtype)),
            keep: Keep::All,
            token_statistics: false,
        }
    }
}

/// D over the k strongest features, all of them with weight 1.
pub fn constraint(reader: FeatureReader, k: usize) -> FeatureConstraint {
    FeatureConstraint { reader, k, weights: None }
}

/// A forward pass of the policy, and the loss of every pair.
pub fn evaluate(
    aligner: &Aligner,
    policy: &LanguageModel,
    batch: &PairBatch,
) -> (Comparison, PairLosses) {
    let comparison = aligner.compare(policy, batch).unwrap();
    let losses = aligner.objective.losses(comparison.quantities.clone());
    (comparison, losses)
}

/// The loss of every pair, as it is logged.
pub fn logged_losses(pairs: &Pairs) -> Vec<f64> {
    pairs.read().iter().map(|pair| pair.loss).collect()
}

/// Every method, and every option that it has.
pub fn objectives() -> Vec<Objective> {
    let none = Options::default();
    let options = [
        none,
        Options { label_smoothing: Some(0.2), ..none },
        Options { nll_weight: Some(0.6), ..none },
        Options { ld_alpha: Some(0.4), ..none },
        Options { use_weighting: Some(true), ..none },
    ];
    let with = |method| {
        let all = options.into_iter().filter(move |o| o.check(method).is_ok());
        all.map(move |options| Objective { options, beta: 0.3, ..Objective::paper(method) })
    };
    Method::all().flat_map(with).collect()
}

fn model(random: &mut Random) -> LanguageModel {
    let config = json!({
        "model_type": "gemma2", "vocab_size": VOCABULARY, "hidden_size": D_MODEL,
        "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 4, "query_pre_attn_scalar": 4, "sliding_window": 4,
        "max_position_embeddings": 64, "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 8.0,
    });
    let config = ModelConfig::from_json(&config.to_string()).unwrap();
    LanguageModel::build(&config, &Device::flex(), &mut |Piece { name, shape, .. }| {
        let (offset, scale) = match shape.len() {
            1 => (0.0, 0.5),
            _ if name.contains("embed") => (0.0, 0.3),
            _ => (0.0, 1.5 / (shape[1] as f64).sqrt()),
        };
        let values = random.values(shape.iter().product(), scale);
        let values: Vec<f32> = values.into_iter().map(|x| (offset + x) as f32).collect();
        Ok(TensorData::new(values, shape.to_vec()))
    })
    .unwrap()
}

/// Does something to every parameter, by its name.
struct Each<F>(Vec<String>, F);

impl<F: FnMut(&str, Tensor<1>) -> Tensor<1>> ModuleMapper for Each<F> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.0.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.0.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.0.join(".");
        param.map(|tensor| {
            let shape = tensor.dims();
            (self.1)(&name, tensor.flatten(0, D - 1)).reshape(shape)
        })
    }
}

pub fn each(model: &LanguageModel, f: impl FnMut(&str, Tensor<1>) -> Tensor<1>) -> LanguageModel {
    model.clone().map(&mut Each(Vec::new(), f))
}

pub fn cast(model: &LanguageModel, dtype: DType) -> LanguageModel {
    each(model, |_, x| x.cast(dtype))
}

/// With leaves of a graph for parameters.
pub fn trained(model: &LanguageModel) -> LanguageModel {
    struct Leaves;
    impl ModuleMapper for Leaves {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|x| x.autodiff().require_grad())
        }
    }
    model.clone().map(&mut Leaves)
}

/// A step of the given size in a random direction.
pub fn shifted(model: &LanguageModel, seed: u64, size: f64) -> LanguageModel {
    let direction = direction(seed);
    each(model, |name, x| {
        let dtype = x.dtype();
        x.clone() + direction(name, x.dims()[0]).cast(dtype) * size
    })
}

/// A random direction in the space of parameters, by their names and sizes.
pub fn direction(seed: u64) -> impl Fn(&str, usize) -> Tensor<1> {
    move |name, count| {
        let salt = name.bytes().fold(seed, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
        let values = Random(salt).values(count, 1.0);
        Tensor::from_data(TensorData::new(values, [count]), (&Device::flex(), DType::F64))
    }
}

pub fn numbers(x: Tensor<1>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}
