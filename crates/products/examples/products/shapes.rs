//! The matrix products of a training step.

use burn::tensor::DType;
use fpo_products::Case;

/// A product with its role in the step.
#[derive(Clone)]
pub struct Named {
    pub name: String,
    pub case: Case,
}

/// The three products of a linear map.
#[derive(Clone, Copy)]
enum Pass {
    /// `x·Wᵀ`
    Forward,
    /// `g·W`
    Input,
    /// `gᵀ·x`
    Weight,
}

const PASSES: [Pass; 3] = [Pass::Forward, Pass::Input, Pass::Weight];

/// Linear maps of a layer: name, inputs, outputs.
const LAYERS: [(&str, usize, usize); 5] = [
    ("gate and up", 2304, 9216),
    ("down", 9216, 2304),
    ("query", 2304, 2048),
    ("attention output", 2048, 2304),
    ("key and value", 2304, 1024),
];

/// Linear maps that see response tokens only: name, inputs, outputs.
const HEADS: [(&str, usize, usize); 2] = [("head", 2304, 256_000), ("SAE encoder", 2304, 16_384)];

const RESPONSE_TOKENS: usize = 512;

/// The product that ranks CubeK's kernels: the largest of a layer.
pub fn decisive() -> Named {
    named("gate and up", [1024, 2304, 9216], Pass::Forward, [DType::BF16; 2])
}

/// A step of 1,024 tokens in bfloat16.
pub fn step() -> Vec<Named> {
    let layers = LAYERS.map(|(name, inputs, outputs)| (name, [1024, inputs, outputs]));
    let heads = HEADS.map(|(name, inputs, outputs)| (name, [RESPONSE_TOKENS, inputs, outputs]));
    every_pass(layers.into_iter().take(2).chain(heads).chain(layers.into_iter().skip(2)))
}

/// The layers' products for 4,096 tokens.
pub fn long_step() -> Vec<Named> {
    every_pass(LAYERS.map(|(name, inputs, outputs)| (name, [4096, inputs, outputs])).into_iter())
}

/// The largest products in other types: gradients of weights in float32, and all float32.
pub fn other_types() -> Vec<Named> {
    let mut cases = Vec::new();
    for (name, inputs, outputs, tokens) in
        [("gate and up", 2304, 9216, 1024), ("head", 2304, 256_000, RESPONSE_TOKENS)]
    {
        cases.push(named(name, [tokens, inputs, outputs], Pass::Weight, [DType::BF16, DType::F32]));
    }
    for pass in PASSES {
        cases.push(named("gate and up", [1024, 2304, 9216], pass, [DType::F32; 2]));
    }
    cases
}

fn every_pass(maps: impl Iterator<Item = (&'static str, [usize; 3])>) -> Vec<Named> {
    maps.flat_map(|(name, sizes)| PASSES.map(|pass| named(name, sizes, pass, [DType::BF16; 2])))
        .collect()
}

/// Weights are stored `[outputs, inputs]`, activations and their gradients `[tokens, width]`.
fn named(
    name: &str,
    [tokens, inputs, outputs]: [usize; 3],
    pass: Pass,
    [factors, result]: [DType; 2],
) -> Named {
    let ([m, n, k], [lhs_transposed, rhs_transposed], pass) = match pass {
        Pass::Forward => ([tokens, outputs, inputs], [false, true], "forward"),
        Pass::Input => ([tokens, inputs, outputs], [false, false], "gradient of the input"),
        Pass::Weight => ([outputs, inputs, tokens], [true, false], "gradient of the weight"),
    };
    Named {
        name: format!("{name}, {tokens} tokens, {pass}"),
        case: Case { batch: 1, m, n, k, lhs_transposed, rhs_transposed, factors, result },
    }
}
