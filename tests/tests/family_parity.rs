//! `fpo_transformer` computes what Hugging Face's models of each family compute.
//!
//! Oracle: values recorded from transformers 5.23 and 5.24 (eager attention, float32) by
//! `tests/fixtures/gemma2/generate.py`, which also says what each of them is, and by
//! `tests/fixtures/families/generate.py`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Gradients, Int, Tensor, TensorData},
};
use fpo_transformer::{
    GenerationOptions, LanguageModel, ModelConfig, Placement, Precision, Site, SiteKind, generate,
    weights,
};
use safetensors::{Dtype, SafeTensors};

const CASES: [&str; 17] = [
    "gemma2/grouped",
    "gemma2/full_heads",
    "gemma2/one_kv_head",
    "gemma2/one_layer",
    "gemma2/six_layers",
    "gemma2/defaults",
    "families/llama_grouped",
    "families/llama_odd_heads",
    "families/llama_defaults",
    "families/llama_linear",
    "families/qwen2_odd_heads",
    "families/qwen2_tied",
    "families/qwen3_odd_heads",
    "families/qwen3_tied",
    "families/gemma3_windows",
    "families/gemma3_layers",
    "families/gemma3_multimodal",
];
/// Largest absolute difference of a logit, log-probability or activation.
const TOLERANCE: f32 = 2e-5;
/// Largest difference within a parameter's gradient, relative to its largest entry.
const GRADIENT_TOLERANCE: f32 = 1e-4;

#[test]
fn forward_matches() {
    for case in CASES {
        let expected = Expected::read(case);
        let model = weights::load(&folder(case), &Device::flex()).unwrap();
        let (layers, tokens) = (model.config().num_hidden_layers, expected.tokens(&model.device()));
        let [rows, width] = tokens.dims();
        let kinds = [SiteKind::ResidPost, SiteKind::MlpOut, SiteKind::AttnZ];
        let sites: Vec<Site> =
            (0..layers).flat_map(|layer| kinds.map(|kind| Site { kind, layer })).collect();
        let output = model.forward(tokens.clone(), &sites);
        let hidden = output.hidden_states.reshape([(rows * width) as i32, -1]);

        let logits = values(model.logits(hidden.clone()));
        let mut worst = vec![("logits".to_owned(), expected.difference("logits", &logits))];
        let log_probs = values(expected.log_probs(&model, hidden));
        worst.push(("log_probs".into(), expected.difference("log_probs", &log_probs)));
        for (site, ours) in sites.iter().zip(output.sites) {
            let name = site.to_string().replace(':', ".");
            worst.push((name.clone(), expected.difference(&name, &values(ours))));
        }
        report(case, "values", &worst, TOLERANCE);
    }
}

/// What enters the first block are the scaled embeddings, by their definition; what enters another is what leaves the one before.
#[test]
fn the_residual_stream_before_a_block() {
    for case in CASES {
        let expected = Expected::read(case);
        let model = weights::load(&folder(case), &Device::flex()).unwrap();
        let tokens = expected.tokens(&model.device());
        let sites: Vec<Site> = ["resid_pre:0", "resid_pre:1", "resid_post:0"]
            .iter()
            .map(|site| site.parse::<Site>().unwrap())
            .filter(|site| site.check(model.config().num_hidden_layers).is_ok())
            .collect();
        let output = model.forward(tokens.clone(), &sites);
        let count = tokens.dims().iter().product::<usize>();
        let found: Vec<Vec<f32>> = output.sites.into_iter().map(values).collect();
        // Of a tied head the rows are the embeddings.
        if model.config().tie_word_embeddings {
            let rows = model.unembedding().select(tokens.clone().reshape([count]));
            let scaled = values(rows * model.config().embedding_scale);
            assert!(max_difference(&found[0], &scaled) <= 1e-6, "{case}");
        }
        assert_eq!(found.get(1), found.get(2));
        let whole = values(output.hidden_states);
        let replaced =
            |site: Site, by: f64| values(model.forward_with(tokens.clone(), site, |x| x * by));
        assert_eq!(replaced(sites[0], 1.0), whole);
        assert_ne!(replaced(sites[0], 0.5), whole);
    }
}

#[test]
fn gradients_match() {
    for case in CASES {
        let expected = Expected::read(case);
        let model = weights::load(&folder(case), &Device::flex().autodiff()).unwrap();
        let mean = expected.response_log_probs(&model).mean();
        let ours = Named::gradients(&model, &mean.backward());
        let theirs = expected.gradients();
        assert!(ours.keys().map(String::as_str).eq(theirs.keys().copied()), "{case}: {ours:?}");
        let relative = |(name, ours): (&String, &Vec<f32>)| {
            let theirs = theirs[name.as_str()];
            let largest = theirs.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
            (name.clone(), max_difference(ours, theirs) / (largest + 1e-12))
        };
        let worst: Vec<_> = ours.iter().map(relative).collect();
        report(case, "gradients", &worst, GRADIENT_TOLERANCE);
    }
}

/// bf16-mixed is about as far from float32 as PyTorch's autocast on the same models and texts (`autocast.py`): on some a
/// little closer, on some a little further, because both are roundings.
#[test]
fn mixed_precision_is_as_close_as_pytorchs() {
    let recorded = ["gemma2", "families"].map(|family| {
        let text = fs::read_to_string(folder(family).join("autocast.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    });
    let placement = Placement::new(Device::flex().autodiff(), Precision::Bf16Mixed);
    let mut logarithms = Vec::new();
    for case in CASES {
        let expected = Expected::read(case);
        let log_probs = |model: &LanguageModel| expected.response_log_probs(model);
        let float32 = weights::load(&folder(case), &Device::flex()).unwrap();
        let exact = values(log_probs(&float32));
        let mixed = weights::load(&folder(case), &placement).unwrap();
        let found = log_probs(&mixed);
        let gradients = Named::gradients(&mixed, &found.clone().mean().backward());
        let exact_gradients = expected.gradients();
        let pairs = gradients.iter().flat_map(|(name, ours)| {
            ours.iter().copied().zip(exact_gradients[name.as_str()].iter().copied())
        });
        let pairs: Vec<(f32, f32)> = pairs.collect();

        let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let of_log_probs = length(&mut values(found).iter().zip(&exact).map(|(a, b)| a - b));
        let of_gradients = length(&mut pairs.iter().map(|(a, b)| a - b));
        let ours = [
            ("log_probs", of_log_probs / (exact.len() as f32).sqrt()),
            ("gradients", of_gradients / length(&mut pairs.iter().map(|(_, b)| *b))),
        ];
        let name = case.split('/').nth(1).unwrap();
        let theirs = recorded.iter().find_map(|recorded| recorded.get(name)).unwrap();
        for (what, ours) in ours {
            let theirs = theirs[what].as_f64().unwrap() as f32;
            println!("{case}: {what} differ from float32 by {ours:.4}, PyTorch's by {theirs:.4}");
            assert!(ours > 1e-4 && ours < 2.0 * theirs, "{case}: {what}: {ours}, {theirs}");
            logarithms.push((ours / theirs).ln());
        }
    }
    let mean = logarithms.iter().sum::<f32>() / logarithms.len() as f32;
    println!("{:.2} times PyTorch's differences", mean.exp());
    assert!(mean.exp() < 1.2);
}

/// Hugging Face continued each prompt alone; here both are in one batch, the shorter one padded.
#[test]
fn greedy_generation_matches() {
    for case in CASES {
        let expected = Expected::read(case);
        let model = weights::load(&folder(case), &Device::flex()).unwrap();
        let row =
            |name: &str| -> Vec<u32> { expected.ints[name].1.iter().map(|&t| t as u32).collect() };
        let prompts = [row("prompt.0"), row("prompt.1")];
        assert_ne!(prompts[0].len(), prompts[1].len());
        let options = GenerationOptions {
            max_new_tokens: expected.ints["generated.0"].1.len(),
            temperature: 0.0,
            stop_tokens: vec![u32::MAX],
            ..GenerationOptions::default()
        };
        let answers = generate(&model, &prompts, &options).unwrap();
        for (i, answer) in answers.iter().enumerate() {
            assert_eq!(answer.tokens, row(&format!("generated.{i}")), "{case}, prompt {i}");
        }
    }
}

/// Oracle: the model that was saved.
#[test]
fn saved_and_reloaded_is_the_same_model() {
    for case in CASES {
        let expected = Expected::read(case);
        let device = Device::flex();
        let model = weights::load(&folder(case), &device).unwrap();
        let copy = tempfile::tempdir().unwrap();
        weights::save(&model, copy.path()).unwrap();
        let again = weights::load(copy.path(), &device).unwrap();

        assert_eq!(again.config(), model.config(), "{case}");
        let text = fs::read_to_string(copy.path().join("config.json")).unwrap();
        assert_eq!(&ModelConfig::from_json(&text).unwrap(), model.config(), "{case}");
        let logits = |model: &LanguageModel| {
            let hidden = model.forward(expected.tokens(&device), &[]).hidden_states;
            let [rows, width, d_model] = hidden.dims();
            let logits = values(model.logits(hidden.reshape([rows * width, d_model])));
            logits.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert!(logits(&model) == logits(&again), "{case}: the copy's logits differ");
    }
}

/// What Hugging Face recorded, by name: shape and values.
struct Expected {
    floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    ints: BTreeMap<String, (Vec<usize>, Vec<i32>)>,
}

impl Expected {
    fn read(case: &str) -> Self {
        let bytes = fs::read(folder(case).join("expected.safetensors")).unwrap();
        let (mut floats, mut ints) = (BTreeMap::new(), BTreeMap::new());
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let (shape, data) = (view.shape().to_vec(), view.data().as_chunks().0.iter());
            match view.dtype() {
                Dtype::F32 => {
                    floats.insert(name, (shape, data.map(|b| f32::from_le_bytes(*b)).collect()));
                }
                Dtype::I32 => {
                    ints.insert(name, (shape, data.map(|b| i32::from_le_bytes(*b)).collect()));
                }
                other => panic!("{case}: {name} is {other:?}"),
            }
        }
        Self { floats, ints }
    }

    fn shape(&self) -> [usize; 2] {
        self.ints["tokens"].0.as_slice().try_into().unwrap()
    }

    /// `[rows, width]`, padded on the right.
    fn tokens(&self, device: &Device) -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(self.ints["tokens"].1.clone(), self.shape()), device)
    }

    /// Log-probability of the next token at every position but the last of each row,
    /// `[rows · (width − 1)]`, from hidden states `[rows · width, d_model]`.
    fn log_probs(&self, model: &LanguageModel, hidden: Tensor<2>) -> Tensor<1> {
        let [rows, width] = self.shape();
        let tokens = &self.ints["tokens"].1;
        let int = |v: Vec<i32>| {
            let count = v.len();
            Tensor::<1, Int>::from_data(TensorData::new(v, [count]), &model.device())
        };
        let predicting: Vec<i32> =
            (0..rows * width).filter(|i| i % width + 1 < width).map(|i| i as i32).collect();
        let targets = predicting.iter().map(|&i| tokens[i as usize + 1]).collect();
        let cap = model.config().final_logit_softcapping;
        let hidden = hidden.select(0, int(predicting));
        fpo_ops::linear_log_probs(hidden, model.unembedding(), int(targets), cap)
    }

    /// Log-probability of every response token in turn.
    fn response_log_probs(&self, model: &LanguageModel) -> Tensor<1> {
        let [rows, width] = self.shape();
        let hidden = model.forward(self.tokens(&model.device()), &[]).hidden_states;
        let hidden = hidden.reshape([(rows * width) as i32, -1]);
        let response = self.response_positions();
        let count = response.len();
        let response = TensorData::new(response, [count]);
        let response = Tensor::<1, Int>::from_data(response, &model.device());
        self.log_probs(model, hidden).select(0, response)
    }

    /// Recorded gradients by parameter.
    fn gradients(&self) -> BTreeMap<&str, &Vec<f32>> {
        let named = self.floats.iter();
        named.filter_map(|(n, (_, values))| Some((n.strip_prefix("grad.")?, values))).collect()
    }

    /// Where [`Self::log_probs`] has the response tokens that the recorded gradient is of.
    fn response_positions(&self) -> Vec<i32> {
        let [_, width] = self.shape();
        let (starts, lengths) = (&self.ints["response_starts"].1, &self.ints["lengths"].1);
        let row = |(row, (start, length)): (usize, (&i32, &i32))| {
            let offset = (row * (width - 1)) as i32 - 1;
            (start + offset..length + offset).collect::<Vec<_>>()
        };
        starts.iter().zip(lengths).enumerate().flat_map(row).collect()
    }

    /// The largest difference from the tensor `[rows, positions, …]` recorded as `name`, at real
    /// positions.
    fn difference(&self, name: &str, ours: &[f32]) -> f32 {
        let (shape, theirs) = &self.floats[name];
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let [_, width] = self.shape();
        let (positions, size) = (shape[1], shape[2..].iter().product::<usize>());
        let rows = self.ints["lengths"].1.iter().enumerate().map(|(row, &length)| {
            let real = length as usize - (width - positions);
            let range = row * positions * size..(row * positions + real) * size;
            max_difference(&ours[range.clone()], &theirs[range])
        });
        rows.fold(0.0, f32::max)
    }
}

/// Gradients by the name that their parameter has in a checkpoint.
struct Named<'a> {
    path: Vec<String>,
    gradients: &'a Gradients,
    found: BTreeMap<String, Vec<f32>>,
}

impl<'a> Named<'a> {
    fn gradients(model: &LanguageModel, gradients: &'a Gradients) -> BTreeMap<String, Vec<f32>> {
        let mut named = Self { path: Vec::new(), gradients, found: BTreeMap::new() };
        model.visit(&mut named);
        named.found
    }
}

impl ModuleVisitor for Named<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad(self.gradients) {
            self.found.insert(self.path.join("."), values(gradient));
        }
    }
}

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(case)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

/// Infinite where anything is no number.
fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let difference = |(a, b): (&f32, &f32)| (a - b).abs();
    let known = |d: f32| if d.is_nan() { f32::INFINITY } else { d };
    a.iter().zip(b).map(difference).map(known).fold(0.0, f32::max)
}

/// Prints the largest difference (`cargo test -- --nocapture` shows it) and fails on all that are too large.
fn report(case: &str, what: &str, differences: &[(String, f32)], tolerance: f32) {
    let (name, largest) = differences.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    println!("{case}: {what} differ by at most {largest:.2e} ({name})");
    let wrong: Vec<_> = differences.iter().filter(|(_, d)| *d >= tolerance).collect();
    assert!(wrong.is_empty(), "{case}: {what} differ by {tolerance:.0e} or more: {wrong:?}");
}
