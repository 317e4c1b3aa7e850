//! Files of other software: what it computed is what we compute.
//!
//! Oracle: values recorded by `tests/fixtures/sae/generate_kinds.py`.

use std::{fs, path::PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use fpo_sae::load;
use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/sae/formats").join(name)
}

fn check(case: &str) {
    let sae = load(&fixture(case), &Device::flex()).unwrap();
    let bytes = fs::read(fixture(case).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |name: &str| -> Tensor<2> {
        let view = file.tensor(name).unwrap();
        let values: Vec<f32> =
            view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Tensor::from_data(TensorData::new(values, view.shape().to_vec()), &Device::flex())
    };
    let compare = |name: &str, ours: Tensor<2>| {
        let theirs = tensor(name);
        let largest = theirs.clone().abs().max().into_scalar::<f32>();
        let difference = (ours - theirs).abs().max().into_scalar::<f32>();
        assert!(difference < 1e-5 * largest, "{case}: {name} differs by {difference} of {largest}");
    };
    compare("features", sae.encode(tensor("x")));
    compare("output", sae.reconstruct(tensor("x")));
}

#[test]
fn every_type_of_floats_that_numpy_writes() {
    check("gemma_scope_types");
}
