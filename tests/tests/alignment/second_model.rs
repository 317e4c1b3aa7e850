//! No method loads a second model but those whose constraint is over the whole vocabulary.

use std::fs;

use burn::tensor::Device;
use fpo_config::Settings;
use fpo_device::progress::Reporter;
use fpo_losses::{Method, Needs, Objective};
use fpo_trainer::{
    run::{Existing, Run},
    stages::{Base, StageName, align::training_aligner},
};

/// Once the cache stands, the reference's weights are taken away: what still needs them shows itself.
#[test]
fn training_needs_no_reference_model() {
    let folder = tempfile::tempdir().unwrap();
    let shrink = ["sft.epochs=0", "sae.training.steps=3", "data.built_in.pairs=16"];
    let shrink: Vec<String> = shrink.map(str::to_owned).to_vec();
    let settings = Settings::resolve("smoke", None, &shrink).unwrap();
    let run = Run::open(
        folder.path(),
        settings.clone(),
        Device::flex(),
        Existing::Keep,
        Reporter::silent(),
    )
    .unwrap();
    let base = Base::make(&run, StageName::Reference, true).unwrap();
    let base = base.unwrap_or_else(|| panic!("the stages before alignment were asked for"));
    fs::remove_file(base.sft.folder.join("model.safetensors")).unwrap();
    for method in Method::all() {
        let settings = Settings { align: settings.align.for_method(method), ..settings.clone() };
        let run = run.nested(method.name(), settings).unwrap();
        let Needs { token_kl, features, .. } = Objective::paper(method).needs();
        match training_aligner(&run, &base, None) {
            Ok(aligner) => {
                assert!(!token_kl, "{method} did without the reference that it needs");
                assert!(aligner.reference_model.is_none(), "{method}");
                assert_eq!(aligner.features.is_some(), features, "{method}");
            }
            Err(error) => {
                assert!(token_kl, "{method} looked for a reference model: {error:#}");
                assert!(format!("{error:#}").contains("model.safetensors"), "{error:#}");
            }
        }
    }
}
