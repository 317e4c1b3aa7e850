//! Logs a training step of two unequal micro-batches, whose loss is computed once.
//!
//! `cargo run -p fpo-metrics --example log_a_step`

use burn::tensor::{Device, Tensor};
use fpo_losses::{Objective, PerResponse, Quantities};
use fpo_metrics::{Pairs, log, means};

fn main() {
    let device = Device::flex().autodiff();
    let split = |values: &[f32]| PerResponse::split(Tensor::from_floats(values, &device));
    // The chosen responses, then the rejected ones: log-probabilities of policy and reference in nats, and tokens.
    let micro_batches = [
        (
            &[-12.1, -30.4, -14.9, -28.0][..],
            &[-13.0, -31.0, -14.0, -29.5][..],
            &[10.0, 24.0, 12.0, 20.0][..],
        ),
        (&[-8.2, -9.9], &[-8.0, -9.0], &[6.0, 8.0]),
    ];
    let objective = Objective::paper("dpo".parse().expect("a method's name"));
    let mut pairs = Pairs::default();
    for (policy, reference, tokens) in micro_batches {
        let log_probs = split(policy).map(Tensor::require_grad);
        let reference = Some(split(reference));
        let quantities = Quantities { reference, ..Quantities::new(log_probs, split(tokens)) };
        let losses = objective.losses(quantities.clone());
        pairs.add(&quantities);
        pairs.add_losses(&losses);
        // The mean over the three pairs of the step; a trainer adds its gradients up.
        let _gradients = (losses.losses.sum() / 3.0).backward();
    }

    let values = pairs.read();
    let (loss, rest) = log(&values);
    println!("loss {loss}");
    for (key, value) in rest {
        println!("{key} {value}");
    }
    println!("\nas a table of means");
    for (title, value) in means(&values) {
        println!("{title:<45} {value:>10}");
    }
}
