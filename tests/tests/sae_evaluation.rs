//! What `fpo sae evaluate` measures is what SAELens measures.
//!
//! Oracle: values recorded from `sae_lens.evals` by `tests/fixtures/sae/generate.py`, on Hugging Face's
//! Gemma-2 with the weights of `tests/fixtures/gemma2/grouped`.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use fpo_data::{Fingerprint, SequenceStore, TokenizedExample, TokenizedResponse};
use fpo_device::progress::Reporter;
use fpo_interp::activations::Source;
use fpo_interp::evaluation::{SaeEvaluation, evaluate};
use fpo_transformer::{LanguageModel, Site, weights};
use serde_json::Value;

/// Relative, for means of float32.
const TOLERANCE: f64 = 1e-4;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn model() -> LanguageModel {
    weights::load(&fixtures().join("gemma2/grouped"), &Device::flex()).unwrap()
}

fn recorded() -> Value {
    serde_json::from_str(&fs::read_to_string(fixtures().join("sae/evaluation.json")).unwrap())
        .unwrap()
}

fn rows(recorded: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(recorded["tokens"].clone()).unwrap()
}

fn measure(model: &LanguageModel, site: Site, rows: &[Vec<u32>], batch: usize) -> SaeEvaluation {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.arrow");
    let examples = rows.iter().enumerate().map(|(id, tokens)| TokenizedExample {
        id: id as u64,
        response: TokenizedResponse { tokens: tokens.clone(), prompt_len: 1 },
        context: Vec::new(),
    });
    SequenceStore::write(&path, &Fingerprint::default(), examples.collect::<Vec<_>>()).unwrap();
    let data = SequenceStore::open(&path).unwrap();
    let source = Source {
        model,
        data: &data,
        excluded: vec![1, 2],
        sites: vec![site],
        reporter: Reporter::silent(),
    };
    let sae = fixtures().join("sae/evaluation").join(site.to_string().replace(':', "_"));
    let sae = fpo_sae::load(&sae, &Device::flex()).unwrap();
    evaluate(&sae, &source, usize::MAX, NonZeroUsize::new(batch).unwrap()).unwrap()
}

#[test]
fn measures_are_those_of_sae_lens() {
    let (model, recorded) = (model(), recorded());
    let sites = recorded["sites"].as_object().unwrap();
    assert_eq!(sites.len(), 4);
    for (name, theirs) in sites {
        let ours = measure(&model, name.parse().unwrap(), &rows(&recorded), 5);
        let (q, ce, kl) = (ours.quality, ours.cross_entropy, ours.kl);
        for (key, ours) in [
            ("l0", q.l0),
            ("l1", q.l1),
            ("explained_variance", q.explained_variance),
            ("mse", q.mse),
            ("cossim", q.cosine),
            ("l2_norm_in", q.l2_norm_in),
            ("l2_norm_out", q.l2_norm_out),
            ("l2_ratio", q.l2_ratio),
            ("relative_reconstruction_bias", q.relative_reconstruction_bias),
            ("ce_loss_without_sae", ce.original),
            ("ce_loss_with_sae", ce.spliced),
            ("ce_loss_with_ablation", ce.zero_ablation),
            ("ce_loss_score", ce.score),
            ("kl_div_with_sae", kl.spliced),
            ("kl_div_with_ablation", kl.zero_ablation),
            ("kl_div_score", kl.score),
        ] {
            let theirs = theirs[key].as_f64().unwrap();
            println!("{name} {key}: {ours} {theirs}");
            // A score is a ratio of small differences, and may be next to 0.
            let close = (ours - theirs).abs() <= TOLERANCE * theirs.abs().max(0.1);
            assert!(close, "{name}: {key} is {ours}, SAELens' {theirs}");
        }
        let densities: Vec<f64> =
            serde_json::from_value(theirs["feature_density"].clone()).unwrap();
        let dead = densities.iter().filter(|d| **d == 0.0).count();
        assert_eq!((q.dead_features * densities.len() as f64).round() as usize, dead);
        let bars: usize = ours.density_histogram.iter().map(|bar| bar.features).sum();
        assert_eq!(bars, densities.len() - dead);
    }
}

/// Rows of other lengths beside a row, and the padding after it, change nothing.
#[test]
fn padding_is_in_no_measure() {
    let (model, recorded) = (model(), recorded());
    let mut rows = rows(&recorded);
    rows[0].truncate(6);
    rows[2].truncate(11);
    let site = Site::resid_post(1);
    let [together, alone] = [5, 1].map(|batch| measure(&model, site, &rows, batch));
    assert_eq!(together.quality.tokens, alone.quality.tokens);
    for (together, alone) in [
        (together.cross_entropy.original, alone.cross_entropy.original),
        (together.cross_entropy.spliced, alone.cross_entropy.spliced),
        (together.cross_entropy.zero_ablation, alone.cross_entropy.zero_ablation),
        (together.kl.spliced, alone.kl.spliced),
        (together.quality.explained_variance, alone.quality.explained_variance),
    ] {
        assert!((together - alone).abs() < 1e-5, "{together} and {alone}");
    }
}
