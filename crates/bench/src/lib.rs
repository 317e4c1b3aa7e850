//! Time and memory of training steps and of single operations, beside the rate of the machine's matrix products.
//!
//! # Invariants
//! * Measures the code that trains: the trainer's own step, not a copy of it.
//! * Counted are the products that the mathematics asks for, once each; nothing that is recomputed.

mod device_memory;
mod flops;
pub mod ops;
pub mod step;

/// The middle of some measurements; they are at least one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
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
