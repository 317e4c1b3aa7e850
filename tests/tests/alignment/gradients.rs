//! The gradient of a whole step against finite differences in float64, and where it must vanish.

use burn::tensor::{DType, Tensor};
use fpo_data::PairBatch;
use fpo_losses::{Method, Objective, PerResponse, Quantities};
use fpo_trainer::{aligner::Aligner, alignment_step::step_gradients, optim::StepGradients};
use fpo_transformer::LanguageModel;

use crate::world::{World, cast, direction, numbers, objectives, shifted, trained};

/// The slope of the loss along a direction, from the gradients of a step.
fn slope(gradients: &StepGradients, seed: u64) -> f64 {
    let direction = direction(seed);
    let product = |(name, gradient): (&str, &Tensor<1>)| {
        let along = direction(name, gradient.dims()[0]);
        numbers((gradient.clone().cast(DType::F64) * along).sum())[0]
    };
    gradients.iter().map(product).sum()
}

/// The loss where the parameters are, but for what the method holds constant, which is taken from `fixed`.
fn loss(aligner: &Aligner, policy: &LanguageModel, batch: &PairBatch, fixed: &Quantities) -> f64 {
    let mut q = aligner.compare(policy, batch).unwrap().quantities;
    let Objective { method, stop_gradient, .. } = aligner.objective;
    let chosen_of = |x: Option<PerResponse>, fixed: &Option<PerResponse>| {
        x.zip(fixed.clone()).map(|(x, fixed)| PerResponse { chosen: fixed.chosen, ..x })
    };
    q.aligned = fixed.aligned.clone();
    if [Method::TDPO2, Method::SIMPO_KL].contains(&method) {
        q.kl = chosen_of(q.kl, &fixed.kl);
    }
    if stop_gradient {
        q.distance = chosen_of(q.distance, &fixed.distance);
    }
    numbers(aligner.objective.losses(q).losses.mean())[0]
}

/// Transformer, autoencoder and loss in one, for every method with every option that it has.
#[test]
fn a_step_goes_down_its_finite_difference() {
    let world = World::new();
    let batch = world.all();
    let policy = cast(&world.policy, DType::F64);
    let mut largest = 0.0_f64;
    for objective in objectives() {
        for stop_gradient in [true, false] {
            let mut objective = Objective { stop_gradient, ..objective };
            if objective.method.name() == "bco-pair" {
                // δ is a constant that moves with the parameters; the losses' own tests have it.
                objective.options.reward_shift = Some(false);
            }
            if !stop_gradient && objective.method != Method::FPO {
                continue;
            }
            let aligner = world.aligner(objective, DType::F64);
            let parts = std::slice::from_ref(&batch);
            let (gradients, log) =
                step_gradients(&aligner, &trained(&policy), parts, StepGradients::default())
                    .unwrap();
            let fixed = log.quantities();
            for seed in [5, 6] {
                let size = 1e-6;
                let at = |size| loss(&aligner, &shifted(&policy, seed, size), &batch, &fixed);
                let difference = (at(size) - at(-size)) / (2.0 * size);
                let found = slope(&gradients, seed);
                let error = (found - difference).abs() / (1.0 + difference.abs());
                assert!(error < 1e-6, "{objective:?}: {found} is not {difference}");
                assert!(difference.abs() > 1e-4, "{objective:?} is flat here: {difference}");
                largest = largest.max(error);
            }
        }
    }
    println!("largest error {largest:e}");
}

/// Where alignment starts, the policy is the reference: D is 0 and pulls at nothing.
#[test]
fn the_constraint_is_at_rest_at_the_start() {
    let world = World::new();
    let reference = cast(&world.reference, DType::F64);
    let batch = world.all();
    let gradients = |method, policy: &LanguageModel| {
        let aligner =
            world.aligner(Objective { beta: 0.3, ..Objective::paper(method) }, DType::F64);
        let parts = std::slice::from_ref(&batch);
        step_gradients(&aligner, &trained(policy), parts, StepGradients::default()).unwrap()
    };
    let sigmoid_norm: Method = "sigmoid-norm".parse().unwrap();
    let (with, log) = gradients(Method::FPO, &reference);
    let (without, _) = gradients(sigmoid_norm, &reference);
    let distance = log.quantities().distance.unwrap();
    for d in numbers(distance.chosen).into_iter().chain(numbers(distance.rejected)) {
        // The cache is in float32.
        assert!(d < 1e-10, "D = {d} at the start");
    }
    assert!(differ(&with, &without) < 1e-5, "{}", differ(&with, &without));
    // And it does pull once they have parted.
    let policy = cast(&world.policy, DType::F64);
    let (with, _) = gradients(Method::FPO, &policy);
    let (without, _) = gradients(sigmoid_norm, &policy);
    assert!(differ(&with, &without) > 1e-3);
}

/// FPO without α is `sigmoid_norm`, TDPO-2 without α is DPO: in the gradients of a whole step.
#[test]
fn without_alpha_the_constraint_is_gone() {
    let world = World::new();
    let policy = trained(&cast(&world.policy, DType::F64));
    let batch = world.all();
    let gradients = |method| {
        let objective = Objective { alpha: 0.0, beta: 0.3, ..Objective::paper(method) };
        let aligner = world.aligner(objective, DType::F64);
        step_gradients(&aligner, &policy, std::slice::from_ref(&batch), StepGradients::default())
            .unwrap()
            .0
    };
    let sigmoid_norm: Method = "sigmoid-norm".parse().unwrap();
    for (with, without) in [(Method::FPO, sigmoid_norm), (Method::TDPO2, Method::DPO)] {
        let difference = differ(&gradients(with), &gradients(without));
        assert!(difference < 1e-12, "{with} is not {without}: {difference}");
    }
}

/// The largest difference of two gradients, of all that is largest in them.
pub fn differ(a: &StepGradients, b: &StepGradients) -> f64 {
    assert!(a.iter().map(|(name, _)| name).eq(b.iter().map(|(name, _)| name)));
    let (mut difference, mut largest) = (0.0_f64, 0.0_f64);
    for ((_, a), (_, b)) in a.iter().zip(b.iter()) {
        for (a, b) in numbers(a.clone()).into_iter().zip(numbers(b.clone())) {
            difference = difference.max((a - b).abs());
            largest = largest.max(b.abs());
        }
    }
    assert!(largest > 0.0, "no gradient at all");
    difference / largest
}
