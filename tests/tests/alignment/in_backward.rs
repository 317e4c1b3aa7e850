//! The optimiser within the backward pass: the steps of one that has all gradients first.

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{DType, Tensor},
};
use fpo_config::{OptimizerKind, OptimizerSettings, Schedule};
use fpo_data::PairBatch;
use fpo_losses::{Method, Objective};
use fpo_trainer::{
    aligner::Aligner,
    alignment_step::step_gradients,
    forward::Keep,
    optim::{Optimizer, StepGradients},
};
use fpo_transformer::LanguageModel;

use crate::{
    embedding::in_parts,
    world::{World, cast, numbers, trained},
};

fn optimizer(kind: OptimizerKind, max_grad_norm: f64) -> Optimizer {
    let settings = OptimizerSettings {
        kind,
        learning_rate: 1e-3,
        warmup_steps: 3,
        schedule: Schedule::Cosine,
        weight_decay: 0.1,
        max_grad_norm,
        warmup_ratio: None,
        betas: [0.9, 0.99],
    };
    Optimizer::new(&settings, 10)
}

/// All weights, in the model's order.
fn weights(model: &LanguageModel) -> Vec<f64> {
    struct Weights(Vec<f64>);
    impl ModuleVisitor for Weights {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.extend(numbers(param.val().inner().flatten::<1>(0, D - 1)));
        }
    }
    let mut found = Weights(Vec::new());
    model.visit(&mut found);
    found.0
}

/// The weights and the norm of the gradients after each of two steps.
fn steps(
    aligner: &Aligner,
    policy: &LanguageModel,
    parts: &[PairBatch],
    mut optimizer: Optimizer,
    in_backward: bool,
) -> Vec<(Vec<f64>, f64)> {
    let mut policy = trained(policy);
    let mut found = Vec::new();
    for _ in 0..2 {
        let none = StepGradients::new(in_backward);
        let (gradients, _) = step_gradients(aligner, &policy, parts, none).unwrap();
        let blocks = gradients.iter().filter(|(path, _)| path.contains("layers")).count();
        assert_eq!(blocks == 0, in_backward, "{blocks} gradients of blocks");
        let (moved, info) = optimizer.step(policy, gradients);
        found.push((weights(&moved), info.grad_norm()));
        policy = moved;
    }
    found
}

/// Whether gradients are clipped, are below the largest norm or have none, in one and in several micro-batches, with tables whole
/// and in parts; also a loss of the whole step, and one without a constraint on a site.
#[test]
fn the_optimiser_within_the_backward_pass_makes_the_same_steps() {
    let world = World::new();
    let whole = cast(&world.policy, DType::F64);
    let adamw = OptimizerKind::Adamw;
    let cases = [
        ("fpo", adamw, 0.05, &whole),
        ("fpo", adamw, 1e6, &whole),
        ("fpo", adamw, 0.0, &in_parts(&whole, &[1, 9, 21])),
        ("fpo", OptimizerKind::Rmsprop, 0.05, &in_parts(&whole, &[30, 1])),
        ("tdpo2", adamw, 0.0, &whole),
        ("aot", adamw, 0.05, &whole),
        ("orpo", adamw, 0.0, &whole),
    ];
    for (method, kind, largest, policy) in cases {
        let method: Method = method.parse().unwrap();
        let objective = Objective::paper(method);
        let aligner = world.aligner(objective, DType::F64);
        let aligner = Aligner { keep: Keep::BlockInputs, ..aligner };
        for parts in [&[&[0, 1, 2, 3, 4, 5][..]][..], &[&[0, 3], &[1], &[2, 4, 5]]] {
            let parts: Vec<PairBatch> = parts.iter().map(|p| world.batch(p)).collect();
            let run = |in_backward| {
                steps(&aligner, policy, &parts, optimizer(kind, largest), in_backward)
            };
            let case = format!("{method}, {kind:?}, norm {largest}, {} parts", parts.len());
            for ((expected, norm), (found, found_norm)) in run(false).iter().zip(run(true)) {
                assert!((norm - found_norm).abs() < 1e-10 * norm, "{case}: {found_norm}, {norm}");
                assert!(largest != 0.05 || *norm > largest, "{case}: nothing is clipped, {norm}");
                assert_eq!(expected.len(), found.len());
                let apart = expected.iter().zip(&found).map(|(a, b)| (a - b).abs());
                let apart = apart.fold(0.0, f64::max);
                // Adam's first step is ± the learning rate, however small a gradient is.
                assert!(apart < 1e-7, "{case}: weights differ by {apart}");
            }
        }
    }
}
