//! What the dashboard says of features is what the model and the autoencoder compute, and its export has the
//! shape that SAEDashboard has.
//!
//! Oracles: a slow walk over the same data, row by row; the keys recorded from SAEDashboard's own classes by
//! `tests/fixtures/sae/generate.py`.

use std::{collections::BTreeSet, fs, num::NonZeroUsize, path::Path};

use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_data::{Fingerprint, SequenceStore, TokenizedExample, TokenizedResponse};
use fpo_device::progress::Reporter;
use fpo_interp::activations::Source;
use fpo_interp::dashboard::{Export, Feature, Options, Page, batches, collect, render};
use fpo_sae::Sae;
use fpo_transformer::{LanguageModel, Site, weights};
use serde_json::Value;

const BOS: u32 = 2;

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn model() -> LanguageModel {
    weights::load(&fixtures().join("gemma2/grouped"), &Device::flex()).unwrap()
}

/// The rows on which SAELens measured, cut to different lengths.
fn rows() -> Vec<Vec<u32>> {
    let text = fs::read_to_string(fixtures().join("sae/evaluation.json")).unwrap();
    let recorded: Value = serde_json::from_str(&text).unwrap();
    let mut rows: Vec<Vec<u32>> = serde_json::from_value(recorded["tokens"].clone()).unwrap();
    rows.iter_mut().enumerate().for_each(|(i, row)| row.truncate(19 - 3 * i));
    rows
}

fn sae(site: Site) -> Sae {
    let folder = site.to_string().replace(':', "_");
    fpo_sae::load(&fixtures().join("sae/evaluation").join(folder), &Device::flex()).unwrap()
}

fn collected(site: Site, options: &Options) -> (Vec<Feature>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.arrow");
    let examples = rows().into_iter().enumerate().map(|(id, tokens)| TokenizedExample {
        id: id as u64,
        response: TokenizedResponse { tokens, prompt_len: 1 },
        context: Vec::new(),
    });
    SequenceStore::write(&path, &Fingerprint::default(), examples.collect::<Vec<_>>()).unwrap();
    let (model, data) = (model(), SequenceStore::open(&path).unwrap());
    let source = Source {
        model: &model,
        data: &data,
        excluded: vec![BOS],
        sites: vec![site],
        reporter: Reporter::silent(),
    };
    collect(&sae(site), &source, options).unwrap()
}

fn options(features: Option<Vec<usize>>) -> Options {
    Options {
        features,
        tokens: usize::MAX,
        batch_size: NonZeroUsize::new(2).unwrap(),
        examples: 3,
        context: 4,
        logits: 5,
    }
}

/// Activations of every feature at every position of a row, 0 at excluded ones.
fn slow(model: &LanguageModel, sae: &Sae, site: Site, row: &[u32]) -> Vec<Vec<f32>> {
    let tokens: Vec<i32> = row.iter().map(|&t| t as i32).collect();
    let input = TensorData::new(tokens, [1, row.len()]);
    let input = Tensor::<2, Int>::from_data(input, &Device::flex());
    let x = model.forward(input, &[site]).sites.remove(0);
    let width = x.dims()[2];
    let features = sae.encode(x.reshape([row.len(), width]));
    let values: Vec<f32> = features.into_data().iter::<f32>().collect();
    let rows = values.chunks_exact(sae.d_sae()).zip(row);
    rows.map(|(f, &t)| if t == BOS { vec![0.0; f.len()] } else { f.to_vec() }).collect()
}

#[test]
fn statistics_and_texts_are_those_of_the_data() {
    let (model, rows) = (model(), rows());
    for site in [Site::resid_post(1), "attn_z:2".parse().unwrap()] {
        let sae = sae(site);
        let all: Vec<Vec<Vec<f32>>> =
            rows.iter().map(|row| slow(&model, &sae, site, row)).collect();
        for subset in [None, Some(vec![0, 3, 4, 11])] {
            let wanted = subset.clone().unwrap_or((0..sae.d_sae()).collect());
            let (features, tokens) = collected(site, &options(subset));
            let kept = rows.iter().flatten().filter(|&&token| token != BOS).count();
            assert_eq!(tokens, kept);
            assert_eq!(features.iter().map(|f| f.index).collect::<Vec<_>>(), wanted);
            for feature in &features {
                check(feature, &all, &rows, kept);
            }
        }
    }
}

fn check(feature: &Feature, all: &[Vec<Vec<f32>>], rows: &[Vec<u32>], kept: usize) {
    let of = |row: usize| all[row].iter().map(|f| f[feature.index]).collect::<Vec<f32>>();
    let active: Vec<f32> =
        (0..rows.len()).flat_map(of).filter(|activation| *activation > 0.0).collect();
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
    let max = active.iter().copied().fold(0.0, f32::max);
    let mean = active.iter().map(|&a| f64::from(a)).sum::<f64>() / active.len().max(1) as f64;
    assert!(close(feature.density, active.len() as f64 / kept as f64), "{feature:?}");
    assert!(close(feature.max.into(), max.into()) && close(feature.mean, mean), "{feature:?}");
    let counted: u32 = feature.activations.bars().iter().map(|bar| bar.count).sum();
    assert_eq!(counted as usize, active.len());

    let mut strongest: Vec<f32> =
        (0..rows.len()).map(|row| of(row).into_iter().fold(0.0, f32::max)).collect();
    strongest.sort_by(|a, b| b.total_cmp(a));
    strongest.retain(|a| *a > 0.0);
    strongest.truncate(3);
    assert_eq!(feature.examples.len(), strongest.len());
    for (example, expected) in feature.examples.iter().zip(strongest) {
        let at = example.strongest;
        assert!(close(example.activations[at].into(), expected.into()), "{example:?} {expected}");
        // The text is a part of one of the rows, with that row's activations.
        let found = rows.iter().enumerate().any(|(row, tokens)| {
            let width = example.tokens.len();
            tokens.windows(width).zip(of(row).windows(width)).any(|(tokens, activations)| {
                let mut pairs = activations.iter().zip(&example.activations);
                tokens == example.tokens && pairs.all(|(a, b)| close((*a).into(), (*b).into()))
            })
        });
        assert!(found, "{example:?} is in no row");
        assert!(example.tokens.len() <= 9 && at <= 4);
    }
}

#[test]
fn promoted_tokens_are_the_direct_path() {
    let model = model();
    let numbers = |x: Tensor<2>| x.into_data().iter::<f32>().collect::<Vec<f32>>();
    let gain = |x: Tensor<1>| x.into_data().iter::<f32>().map(|w| 1.0 + w).collect::<Vec<f32>>();
    let (unembedding, norm) =
        (numbers(model.unembedding().joined()), gain(model.model.norm.weight.val()));
    let d = norm.len();
    for site in [Site::resid_post(1), "mlp_out:0".parse().unwrap(), "attn_z:2".parse().unwrap()] {
        let sae = sae(site);
        let decoder = numbers(sae.w_dec.clone());
        for feature in collected(site, &options(Some(vec![1, 7]))).0 {
            let direction = &decoder[feature.index * sae.d_in()..][..sae.d_in()];
            let direction: Vec<f32> = if site.to_string().starts_with("attn_z") {
                let block = &model.model.layers[site.layer];
                let output = numbers(block.self_attn.o_proj.weight.val());
                let gain = gain(block.post_attention_layernorm.weight.val());
                let product = |i: usize| {
                    let row = &output[i * sae.d_in()..][..sae.d_in()];
                    row.iter().zip(direction).map(|(a, b)| a * b).sum::<f32>() * gain[i]
                };
                (0..d).map(product).collect()
            } else {
                direction.to_vec()
            };
            let logit = |token: usize| {
                let row = &unembedding[token * d..][..d];
                (0..d).map(|i| direction[i] * norm[i] * row[i]).sum::<f32>()
            };
            let mut logits: Vec<f32> = (0..unembedding.len() / d).map(logit).collect();
            for named in feature.promoted.iter().chain(&feature.suppressed) {
                assert!((named.logit - logits[named.token as usize]).abs() < 1e-4);
            }
            logits.sort_by(f32::total_cmp);
            let lowest = feature.suppressed.iter().zip(&logits);
            let highest = feature.promoted.iter().zip(logits.iter().rev());
            for (named, expected) in lowest.chain(highest) {
                assert!((named.logit - expected).abs() < 1e-4, "{named:?}, {expected}");
            }
            let counted: u32 = feature.logits.iter().map(|bar| bar.count).sum();
            assert_eq!(counted as usize, logits.len());
        }
    }
}

#[test]
fn the_export_has_the_shape_of_sae_dashboard() {
    let keys: Value =
        serde_json::from_str(&fs::read_to_string(fixtures().join("sae/dashboard.json")).unwrap())
            .unwrap();
    let same = |name: &str, value: &Value| {
        let expected: BTreeSet<String> = serde_json::from_value(keys[name].clone()).unwrap();
        let found: BTreeSet<String> = value.as_object().unwrap().keys().cloned().collect();
        assert_eq!(found, expected, "{name}");
    };
    let features = collected(Site::resid_post(1), &options(None)).0;
    let export = Export {
        model_id: "grouped".into(),
        layer: 1,
        sae_set: "sae".into(),
        dataset: "rows".into(),
        prompts: 5,
        tokens_in_prompt: 19,
    };
    let files = batches(
        &export,
        &features,
        10,
        |token| format!("t{token}"),
        |_| vec![0.5, -2.0, 1.0, 0.25],
    );
    assert_eq!(files.len(), features.len().div_ceil(10));
    let mut seen = 0;
    for file in &files {
        same("batch", file);
        for feature in file["features"].as_array().unwrap() {
            same("feature", feature);
            assert_eq!(feature["feature_index"], seen);
            assert_eq!(feature["neuron_alignment_indices"], serde_json::json!([1, 2, 0]));
            seen += 1;
            for activation in feature["activations"].as_array().unwrap() {
                same("activation", activation);
                let count = |key: &str| activation[key].as_array().unwrap().len();
                assert_eq!(count("tokens"), count("values"));
            }
        }
    }
    assert_eq!(seen, features.len());
}

#[test]
fn nothing_in_a_token_becomes_markup() {
    let features = collected(Site::resid_post(1), &options(None)).0;
    let page = Page {
        title: "<b>title</b>".into(),
        facts: vec![("fact".into(), "<i>".into())],
        notes: vec!["note".into()],
    };
    let html = render(&page, &features, |t| format!("</script><script>alert({t})\u{202e}<!--"));
    assert!(!html.contains("<b>") && !html.contains("<i>") && !html.contains('\u{202e}'));
    assert_eq!(html.matches("<script").count(), 2);
    assert_eq!(html.matches("</script>").count(), 2);
    let data = html.split("type=\"application/json\">").nth(1).unwrap();
    let data: Value = serde_json::from_str(data.split("</script>").next().unwrap()).unwrap();
    assert_eq!(data["features"].as_array().unwrap().len(), features.len());
    assert!(data["tokens"][0].as_str().unwrap().starts_with("</script><script>alert("));
    assert!(!html.contains("http://") && !html.contains("https://"));
}
