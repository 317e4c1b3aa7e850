//! Benchmarks of a training step, of single operations and of loading: time, memory, where the time goes, and the shares of what
//! the device reaches in products and in memory.
//!
//! # Invariants
//! * What is measured is the code that trains: the trainer's own forward pass, loss, backward pass and optimiser.
//! * FLOPs are those of the model's matrix products; recomputed products and elementwise operations don't count.

mod device_memory;
mod flops;
mod lengths;
pub mod load;
pub mod ops;
pub mod profile;
mod running;
pub mod step;

pub use flops::{matmul_rate, memory_rate};
pub use lengths::LengthsError;

/// The median; `values` must not be empty.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// The mean; `values` must not be empty.
pub(crate) fn mean(values: Vec<f64>) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_is_in_the_middle() {
        let cases: [(&[f64], f64); 4] = [
            (&[3.0], 3.0),
            (&[2.0, 1.0], 1.5),
            (&[9.0, 1.0, 2.0], 2.0),
            (&[4.0, 1.0, 2.0, 3.0], 2.5),
        ];
        for (values, expected) in cases {
            assert_eq!(super::median(values.to_vec()), expected, "{values:?}");
        }
    }
}
