//! Models, texts, and gradients by name.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Gradients, Int, Tensor, TensorData},
};
use fpo_transformer::{LanguageModel, Site, SiteKind, Tape, weights};

/// Gemma-2 with grouped, full and single key-value heads, one to six layers, with and without soft-caps, windows of three to seven
/// tokens; and the other families.
pub const CASES: [&str; 15] = [
    "grouped",
    "full_heads",
    "one_kv_head",
    "one_layer",
    "six_layers",
    "defaults",
    "llama_grouped",
    "llama_odd_heads",
    "qwen2_odd_heads",
    "qwen2_tied",
    "qwen3_odd_heads",
    "qwen3_tied",
    "gemma3_windows",
    "gemma3_layers",
    "gemma3_multimodal",
];

pub fn fixture(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder)
}

/// The folder of a case: Gemma-2's are apart from those of the other families.
pub fn checkpoint(case: &str) -> PathBuf {
    let folder = fixture("families").join(case);
    if folder.exists() { folder } else { fixture("gemma2").join(case) }
}

pub fn load(case: &str, device: &Device) -> LanguageModel {
    weights::load(&checkpoint(case), device).unwrap()
}

/// Every kind of site in every layer.
pub fn all_sites(model: &LanguageModel) -> Vec<Site> {
    let kinds = [SiteKind::ResidPre, SiteKind::ResidPost, SiteKind::MlpOut, SiteKind::AttnZ];
    let layers = 0..model.config().num_hidden_layers;
    layers.flat_map(|layer| kinds.map(|kind| Site { kind, layer })).collect()
}

/// A beginning-of-sequence token and random ones after it, below 50, which every model has.
pub fn text(seed: u64, length: usize) -> Vec<u32> {
    let mut random = Random(seed);
    let rest = std::iter::repeat_with(|| 3 + random.below(46) as u32);
    std::iter::once(2).chain(rest).take(length).collect()
}

/// Texts padded on the right with zeros.
pub fn padded(rows: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    let width = rows.iter().map(Vec::len).max().unwrap();
    let mut ids = vec![0i32; rows.len() * width];
    for (ids, row) in ids.chunks_exact_mut(width).zip(rows) {
        ids.iter_mut().zip(row).for_each(|(id, &token)| *id = token as i32);
    }
    Tensor::from_data(TensorData::new(ids, [rows.len(), width]), device)
}

/// Numbers from −1 to 1.
pub fn noise<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let mut random = Random(seed);
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|_| random.signed()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The values of every parameter's gradient, by its path.
pub struct Named<'a> {
    path: Vec<String>,
    gradients: &'a Gradients,
    found: &'a mut BTreeMap<String, Vec<f32>>,
}

impl Named<'_> {
    /// Adds the gradients to those found before.
    pub fn add(
        model: &LanguageModel,
        gradients: &Gradients,
        found: &mut BTreeMap<String, Vec<f32>>,
    ) {
        model.visit(&mut Named { path: Vec::new(), gradients, found });
    }

    /// The same with those of a tape, from the gradients of its outputs.
    pub fn add_of_tape(
        tape: Tape,
        model: &LanguageModel,
        outputs: &mut Gradients,
        found: &mut BTreeMap<String, Vec<f32>>,
    ) {
        let mut pass = tape.begin(outputs);
        while pass.step(model, |part| Named::add(model, &part, found)) {}
        let mut tables = BTreeMap::new();
        pass.embedded(model).into_iter().for_each(|rows| rows.add_to(&mut tables));
        for (name, table) in tables {
            let sum =
                found.remove(&name).map(|before| before.into_iter().zip(values(table.clone())));
            let sum = sum.map(|pairs| pairs.map(|(a, b)| a + b).collect());
            found.insert(name, sum.unwrap_or_else(|| values(table)));
        }
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
        let Some(gradient) = param.val().grad(self.gradients) else { return };
        let gradient = values(gradient);
        match self.found.get_mut(&self.path.join(".")) {
            Some(sum) => sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g),
            None => drop(self.found.insert(self.path.join("."), gradient)),
        }
    }
}

pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

/// The largest difference in relation to the largest of `expected`; infinite where anything is no number.
pub fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
    let known = |d: f32| if d.is_nan() { f32::INFINITY } else { d };
    let differences = found.iter().zip(expected).map(|(a, b)| known((a - b).abs()));
    differences.fold(0.0, f32::max) / (largest + 1e-12)
}

/// Fails where gradients differ by more than `tolerance`, or not the same parameters have one.
pub fn assert_equal_gradients(
    what: &str,
    found: &BTreeMap<String, Vec<f32>>,
    expected: &BTreeMap<String, Vec<f32>>,
    tolerance: f32,
) {
    assert!(!expected.is_empty() && found.keys().eq(expected.keys()), "{what}: {:?}", found.keys());
    let all = found.iter().map(|(name, found)| (difference(found, &expected[name]), name));
    let worst = all.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    println!("{what}: gradients differ by at most {:.1e} ({})", worst.0, worst.1);
    assert!(worst.0 <= tolerance, "{what}: {worst:?}");
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Between −1 and 1.
    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
