//! What is recorded in the autodiff graph.

use burn::tensor::{Device, GradientCheckpointingStrategy, Tensor};
use fpo_ops::{
    AttentionOptions, Gain, geglu, linear, linear_bf16, linear_kl, linear_log_probs, linear_of,
    linear_of_bf16, rms_norm,
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::support::{Numbers, autodiff, close, vec};

#[test]
fn plain_tensors_stay_plain() {
    let device = Device::flex();
    let mut numbers = Numbers(30);
    let x: Tensor<2> = numbers.tensor([4, 6], 1.0, &device);
    let w: Tensor<2> = numbers.tensor([5, 6], 1.0, &device);
    let output = linear(geglu(x.clone(), x), w);
    assert!(!output.is_autodiff());
}

#[test]
fn untracked_tensors_on_an_autodiff_device_stay_untracked() {
    let mut numbers = Numbers(31);
    let x: Tensor<2> = numbers.tensor([4, 6], 1.0, &autodiff());
    let output = geglu(x.clone(), x);
    assert!(output.is_autodiff() && !output.is_tracked());
}

#[test]
fn a_constant_weight_may_be_outside_autodiff() {
    let mut numbers = Numbers(32);
    let hidden = numbers.tensor::<2>([4, 6], 1.0, &autodiff()).require_grad();
    let weight: Tensor<2> = numbers.tensor([9, 6], 1.0, &Device::flex());
    let targets = numbers.indices(4, 9, &Device::flex());
    let gradients = linear_log_probs(hidden.clone(), weight, targets, None).backward();
    assert!(hidden.grad(&gradients).is_some());
}

#[test]
fn the_reference_of_a_kl_gets_no_gradient() {
    let mut numbers = Numbers(33);
    let mut leaf = |rows| numbers.tensor::<2>([rows, 6], 1.0, &autodiff()).require_grad();
    let [r_h, r_w, h, w] = [leaf(4), leaf(9), leaf(4), leaf(9)];
    let kl = linear_kl(r_h.clone(), r_w.clone(), h.clone(), w.clone(), Some(5.0));
    let gradients = kl.backward();
    assert!(r_h.grad(&gradients).is_none() && r_w.grad(&gradients).is_none());
    assert!(h.grad(&gradients).is_some() && w.grad(&gradients).is_some());
}

/// A tensor that is used twice, intermediate results, and Burn's own recomputation of cheap operations around these.
#[test]
fn gradients_pass_through_a_chain_under_both_checkpointing_strategies() {
    let mut results = Vec::new();
    for strategy in
        [GradientCheckpointingStrategy::Disabled, GradientCheckpointingStrategy::Balanced]
    {
        let mut numbers = Numbers(34);
        let mut leaf = |shape| {
            numbers
                .tensor::<2>(shape, 1.0, &autodiff())
                .with_gradient_checkpointing_strategy(strategy)
                .require_grad()
        };
        let (x, weight) = (leaf([6, 8]), leaf([8, 8]));
        let norm = leaf([1, 8]).squeeze_dim::<1>(0);
        let h = rms_norm(x.clone() * 2.0, norm, Gain::OnePlusWeight, 1e-6);
        let q = linear(h.clone().exp(), weight.clone()).reshape([2, 3, 2, 4]);
        let options = AttentionOptions { scale: 0.5, softcap: Some(5.0), window: Some(2) };
        let mixed = fpo_ops::causal_attention(q.clone(), q.clone(), q, &options);
        let output = geglu(mixed.reshape([6, 8]), h) + x.clone();
        let gradients = output.sum().backward();
        results.push([x, weight].map(|leaf| leaf.grad(&gradients).expect("tracked")));
    }
    for (a, b) in results[0].iter().zip(&results[1]) {
        close("both strategies", a, b, 1e-6);
    }
}

#[test]
#[should_panic(expected = "linear_log_probs: the index 9 is not in 0..9")]
fn an_index_beyond_the_vocabulary_is_refused() {
    let device = Device::flex();
    let (h, w) = (Tensor::zeros([1, 6], &device), Tensor::zeros([9, 6], &device));
    linear_log_probs(h, w, Tensor::from_ints([9], &device), None);
}

#[test]
#[should_panic(expected = "linear: x has 6 features, but the weight takes 5")]
fn a_wrong_shape_is_refused() {
    let device = Device::flex();
    linear(Tensor::<2>::zeros([1, 6], &device), Tensor::zeros([9, 5], &device));
}

type Linear = fn(Tensor<2>, Tensor<2>) -> Tensor<2>;
type LinearOf = fn(Tensor<2>, Box<dyn Fn() -> Tensor<2> + Send + Sync>, Tensor<2>) -> Tensor<2>;

/// The same bits as with a kept input; it is computed once more, and only for the gradient of a weight.
#[test]
fn an_input_is_computed_again_instead_of_kept() {
    let both: [(Linear, LinearOf); 2] = [(linear, linear_of), (linear_bf16, linear_of_bf16)];
    for (kept, again) in both {
        let run = |calls: Option<&Arc<AtomicUsize>>, weight_tracked: bool| {
            let mut numbers = Numbers(35);
            let [gate, up] =
                [(); 2].map(|()| numbers.tensor::<2>([7, 6], 1.0, &autodiff()).require_grad());
            let mut weight = numbers.tensor::<2>([5, 6], 1.0, &autodiff());
            if weight_tracked {
                weight = weight.require_grad();
            }
            let x = geglu(gate.clone(), up.clone());
            let output = match calls {
                None => kept(x, weight.clone()),
                Some(calls) => {
                    let (calls, [gate, up]) =
                        (calls.clone(), [&gate, &up].map(|x| x.clone().without_autodiff()));
                    let compute = move || {
                        calls.fetch_add(1, Ordering::Relaxed);
                        geglu(gate.clone(), up.clone())
                    };
                    again(x, Box::new(compute), weight.clone())
                }
            };
            let gradients = output.clone().sum().backward();
            let of = |leaf: Tensor<2>| leaf.grad(&gradients).map(|gradient| vec(&gradient));
            (vec(&output), [gate, up, weight].map(of))
        };
        for weight_tracked in [true, false] {
            let calls = Arc::new(AtomicUsize::new(0));
            let expected = run(None, weight_tracked);
            assert_eq!(expected.1.iter().flatten().count(), 2 + usize::from(weight_tracked));
            assert!(run(Some(&calls), weight_tracked) == expected);
            assert_eq!(calls.load(Ordering::Relaxed), usize::from(weight_tracked));
        }
    }
}
