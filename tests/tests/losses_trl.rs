//! `fpo_losses` gives TRL's losses and TRL's gradients, in float64.
//!
//! Oracle: what trl 1.16's own trainers computed, recorded by `tests/fixtures/losses/generate.py`,
//! which also says how they were called and what TRL doesn't have.

use std::{collections::BTreeSet, fs, path::Path};

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_losses::{
    Method, Objective, Options, PairLosses, PerResponse, Quantities, aot, aot_unpaired, apo_down,
    apo_zero, bco_pair, cdpo, cpo, cpo_hinge, discopop, dpo, exo_pair, hinge, ipo, nca_pair, orpo,
    robust, sigmoid_norm, simpo, sppo_hard,
};
use serde_json::Value;

/// Of |ours − theirs| / (1 + |theirs|). Burn's softplus is the identity above 20, which is off by e^−20
/// = 2e-9; nothing else comes near.
const TOLERANCE: f64 = 1e-8;

/// Losses that TRL's fixture must hold, so that a name lost there is noticed here.
const NAMES: [&str; 18] = [
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "bco_pair",
    "cpo",
    "cpo_hinge",
    "discopop",
    "exo_pair",
    "hinge",
    "ipo",
    "nca_pair",
    "orpo",
    "robust",
    "sigmoid",
    "sigmoid_norm",
    "simpo",
    "sppo_hard",
];

/// The losses of a case from the summed log-probabilities.
fn ours(
    case: &Value,
    policy: PerResponse,
    reference: PerResponse,
    counts: PerResponse,
) -> PairLosses {
    let constant = |key: &str| case[key].as_f64().unwrap_or_else(|| panic!("no {key} in {case}"));
    let (beta, smoothing) = (constant("beta"), || constant("label_smoothing"));
    let average = || policy.clone() / counts.clone();
    let nll = || -average().chosen;
    match case["name"].as_str().unwrap() {
        "sigmoid" => dpo(policy, reference, beta),
        "sigmoid_norm" => sigmoid_norm(average(), reference / counts, beta),
        "hinge" => hinge(policy, reference, beta),
        "ipo" => ipo(average(), reference / counts, beta),
        "robust" => robust(policy, reference, beta, smoothing()),
        "exo_pair" => exo_pair(policy, reference, beta, smoothing()),
        "discopop" => discopop(policy, reference, beta, constant("tau")),
        "nca_pair" => nca_pair(policy, reference, beta),
        "bco_pair" => {
            let zero = policy.chosen.zeros_like().mean();
            bco_pair(policy, reference, beta, zero)
        }
        "sppo_hard" => sppo_hard(policy, reference, beta),
        "apo_zero" => apo_zero(policy, reference, beta),
        "apo_down" => apo_down(policy, reference, beta),
        "aot" => aot(policy, reference, beta, smoothing()),
        "aot_unpaired" => aot_unpaired(policy, reference, beta, smoothing()),
        "orpo" => orpo(average(), nll(), beta),
        "cpo" => cpo(policy.clone(), nll(), beta, smoothing(), constant("nll_weight")),
        "cpo_hinge" => cpo_hinge(policy.clone(), nll(), beta, constant("nll_weight")),
        "simpo" => simpo(average(), beta, constant("gamma")),
        name => panic!("no loss `{name}` here"),
    }
}

#[test]
fn losses_and_gradients_are_those_of_trl() {
    let fixture = fixture();
    let device = Device::flex().autodiff();
    let column = |name: &str| PerResponse {
        chosen: tensor(&numbers(&fixture[format!("{name}_chosen")]), &device),
        rejected: tensor(&numbers(&fixture[format!("{name}_rejected")]), &device),
    };
    let mut names = BTreeSet::new();
    let mut worst = [0.0_f64; 2];
    for case in fixture["cases"].as_array().unwrap() {
        names.insert(case["name"].as_str().unwrap());
        let policy = column("policy");
        let [chosen, rejected] = [policy.chosen, policy.rejected].map(|x| x.require_grad());
        let policy = PerResponse { chosen: chosen.clone(), rejected: rejected.clone() };
        let losses = ours(case, policy, column("reference"), column("counts")).losses;

        let expected = numbers(&case["losses"]);
        // A loss of the whole batch is recorded as its mean.
        let losses = if expected.len() == 1 { losses.mean() } else { losses };
        let label = format!("{} beta {}", case["name"], case["beta"]);
        worst[0] = worst[0].max(compare(&label, &values(losses.clone()), &expected));
        let gradients = losses.sum().backward();
        for (leaf, side) in [(chosen, "chosen_gradient"), (rejected, "rejected_gradient")] {
            let gradient = values(leaf.grad(&gradients).unwrap());
            let difference = compare(&format!("{label} {side}"), &gradient, &numbers(&case[side]));
            worst[1] = worst[1].max(difference);
        }
    }
    assert!(names.iter().eq(NAMES.iter()), "recorded: {names:?}");
    println!("largest difference: {:e} in losses, {:e} in gradients", worst[0], worst[1]);
}

/// TRL's CPO `sigmoid` without NLL and reference is conservative DPO against a reference of 0, which
/// TRL's DPO lacks.
#[test]
fn conservative_dpo_is_trls_cpo_without_its_nll() {
    let fixture = fixture();
    let device = Device::flex();
    let side = |name: &str| tensor(&numbers(&fixture[name]), &device);
    let policy = PerResponse { chosen: side("policy_chosen"), rejected: side("policy_rejected") };
    let zero =
        PerResponse { chosen: policy.chosen.zeros_like(), rejected: policy.chosen.zeros_like() };
    let nll = values(-side("policy_chosen") / side("counts_chosen"));
    let cases = fixture["cases"].as_array().unwrap();
    for case in cases.iter().filter(|case| case["name"] == "cpo") {
        let [beta, smoothing, weight] =
            ["beta", "label_smoothing", "nll_weight"].map(|key| case[key].as_f64().unwrap());
        let losses = values(cdpo(policy.clone(), zero.clone(), beta, smoothing).losses);
        let expected: Vec<f64> = numbers(&case["losses"])
            .iter()
            .zip(&nll)
            .map(|(loss, nll)| loss - weight * nll)
            .collect();
        compare("cdpo", &losses, &expected);
    }
}

/// `ld_alpha` and `use_weighting` on token log-probabilities: gradients go to the tokens.
#[test]
fn weights_of_tokens_and_pairs_are_those_of_trl() {
    let fixture = read("trl_tokens.json");
    let device = Device::flex().autodiff();
    let pairs = fixture["pairs"].as_array().unwrap();
    for case in fixture["cases"].as_array().unwrap() {
        let method: Method = case["loss_type"].as_str().unwrap().parse().unwrap();
        let options = Options {
            ld_alpha: case["ld_alpha"].as_f64(),
            use_weighting: case["use_weighting"].as_bool(),
            ..Options::default()
        };
        let beta = case["beta"].as_f64().unwrap();
        let objective = Objective { beta, options, ..Objective::paper(method) };
        objective.check().unwrap();
        for (i, pair) in pairs.iter().enumerate() {
            let column = |side: usize, name: &str| tensor(&numbers(&pair[side][name]), &device);
            let policy = [0, 1].map(|side| column(side, "policy").require_grad());
            let reference = [0, 1].map(|side| column(side, "reference"));
            let [of_chosen, of_rejected] = policy.each_ref().map(|x| x.dims()[0]);
            let shared = of_chosen.min(of_rejected);
            let sums = |x: &[Tensor<1>; 2], most: usize| {
                let sum = |x: &Tensor<1>| x.clone().slice(0..most.min(x.dims()[0])).sum();
                PerResponse { chosen: sum(&x[0]), rejected: sum(&x[1]) }
            };
            let aligned =
                |side: usize| (policy[side].clone() - column(side, "log_sum_sq_probs")).mean();
            let losses = objective.losses(Quantities {
                log_probs: sums(&policy, usize::MAX),
                counts: PerResponse {
                    chosen: tensor(&[of_chosen as f64], &device),
                    rejected: tensor(&[of_rejected as f64], &device),
                },
                shared: Some(sums(&policy, shared)),
                aligned: Some(PerResponse { chosen: aligned(0), rejected: aligned(1) }),
                reference: Some(sums(&reference, usize::MAX)),
                reference_shared: Some(sums(&reference, shared)),
                kl: None,
                distance: None,
            });
            let label = format!("{case}, pair {i}");
            let label = label.split(", \"losses\"").next().unwrap();
            compare(label, &values(losses.losses.clone()), &[case["losses"][i].as_f64().unwrap()]);
            let gradients = losses.losses.backward();
            for (side, leaf) in policy.iter().enumerate() {
                let expected = numbers(&case["gradients"][i][side]);
                let found = leaf.grad(&gradients).map_or(vec![0.0; expected.len()], values);
                compare(label, &found, &expected);
            }
        }
    }
}

fn fixture() -> Value {
    read("trl.json")
}

fn read(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/losses").join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The largest difference, which must be within the tolerance.
fn compare(label: &str, ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len(), "{label}");
    let mut worst = 0.0_f64;
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let difference = (a - b).abs() / (1.0 + b.abs());
        assert!(difference <= TOLERANCE, "{label}, pair {i}: {a} is not {b}");
        worst = worst.max(difference);
    }
    worst
}

fn numbers(values: &Value) -> Vec<f64> {
    values.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn tensor(values: &[f64], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), (device, DType::F64))
}

fn values(x: Tensor<1>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}
