//! What alignment changed of features, and where.

use std::num::NonZeroUsize;

use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_device::progress::Reporter;
use fpo_interp::drift::{Comparison, Drift, Place, Sequence, Text};
use fpo_ops::Activation;
use fpo_sae::Sae;
use fpo_transformer::{LanguageModel, Site};

use crate::world::{D_MODEL, D_SAE, Random, World, each, numbers};

const BOS: u32 = 1;
const PLACES: usize = 3;

/// Texts of one or two sequences of random tokens, of different lengths; one has BOS alone.
fn texts() -> Vec<Text> {
    let mut random = Random(5);
    let mut sequence = |length: usize, from: usize| {
        let others = (1..length).map(|_| 1 + ((random.signed() + 1.0) * 14.0) as u32);
        Sequence { tokens: std::iter::once(BOS).chain(others).collect(), from }
    };
    let mut texts: Vec<Text> = (0..9).map(|i| vec![sequence(3 + 5 * i % 11, 0)]).collect();
    texts[2].push(sequence(9, 4));
    texts[5].push(sequence(2, 1));
    texts.insert(4, vec![sequence(1, 0)]);
    texts
}

fn measured(
    models: [&LanguageModel; 2],
    sae: &Sae,
    site: Site,
    texts: &[Text],
    texts_at_once: usize,
) -> Drift {
    let comparison = Comparison {
        before: models[0],
        after: models[1],
        sae,
        site,
        excluded: &[BOS],
        texts_at_once: NonZeroUsize::new(texts_at_once).unwrap(),
        places: PLACES,
        reporter: &Reporter::silent(),
    };
    comparison.measure(texts).unwrap()
}

/// Features at the counted positions of a text, sequence by sequence, in float64 from the definition of a JumpReLU.
fn slow(model: &LanguageModel, sae: &Sae, site: Site, text: &Text) -> Vec<Vec<f64>> {
    let flat = |x: Tensor<2>| x.into_data().iter::<f64>().collect::<Vec<f64>>();
    let (w, b) = (flat(sae.encoder.w_enc.clone()), numbers(sae.encoder.b_enc.clone()));
    let Activation::JumpRelu { threshold } = &sae.encoder.activation else { panic!("a JumpReLU") };
    let threshold = numbers(threshold.clone());
    let mut found = Vec::new();
    for Sequence { tokens, from } in text {
        let ids: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
        let input = TensorData::new(ids, [1, tokens.len()]);
        let x = model.activations(Tensor::<2, Int>::from_data(input, &Device::flex()), &[site]);
        let x = flat(x.into_iter().next().unwrap().squeeze_dim(0));
        for at in (*from..tokens.len()).filter(|&at| tokens[at] != BOS) {
            let x = &x[at * D_MODEL..][..D_MODEL];
            let feature = |f: usize| {
                let z = b[f] + (0..D_MODEL).map(|i| x[i] * w[i * D_SAE + f]).sum::<f64>();
                if z > threshold[f] { z } else { 0.0 }
            };
            found.push((0..D_SAE).map(feature).collect());
        }
    }
    found
}

/// Oracle: everything encoded at once, then plain averages in float64, residuals of texts, and a sorted list of all changes.
#[test]
fn drift_is_the_average_over_all_tokens() {
    let (world, site, texts) = (World::new(), Site::resid_post(1), texts());
    let of = |model: &LanguageModel| -> Vec<Vec<Vec<f64>>> {
        texts.iter().map(|text| slow(model, &world.sae, site, text)).collect()
    };
    let (before, after) = (of(&world.reference), of(&world.policy));
    let counted: Vec<usize> = before.iter().map(Vec::len).collect();
    let tokens = counted.iter().sum::<usize>();
    let read = counted.iter().filter(|count| **count > 0).count() as f64;
    let near = |a: f64, b: f64| (a - b).abs() <= 2e-5 * b.abs().max(1.0);

    let drift = measured([&world.reference, &world.policy], &world.sae, site, &texts, 4);
    assert_eq!((drift.texts, drift.tokens, drift.features.len()), (9, tokens, D_SAE));
    for (f, found) in drift.features.iter().enumerate() {
        let mean =
            |of: &[Vec<Vec<f64>>]| of.iter().flatten().map(|x| x[f]).sum::<f64>() / tokens as f64;
        let firing = |of: &[Vec<Vec<f64>>]| {
            of.iter().flatten().filter(|x| x[f] > 0.0).count() as f64 / tokens as f64
        };
        for (level, of) in [(found.before, &before), (found.after, &after)] {
            assert!(near(level.mean, mean(of)), "feature {f}: {level:?}, {}", mean(of));
            assert_eq!(level.firing, firing(of), "feature {f}");
        }
        let change = mean(&after) - mean(&before);
        let squares = before.iter().zip(&after).map(|(before, after)| {
            let residuals = before.iter().zip(after).map(|(b, a)| a[f] - b[f] - change);
            residuals.sum::<f64>().powi(2)
        });
        let error = (read / (read - 1.0) * squares.sum::<f64>()).sqrt() / tokens as f64;
        assert!(near(found.standard_error.unwrap(), error), "feature {f}: {found:?}, {error}");

        // The strongest change of each text, strongest text first, and once where texts begin alike.
        let size = |b: &Vec<f64>, a: &Vec<f64>| (a[f] - b[f]).abs();
        let mut strongest: Vec<(f64, &[u32])> = Vec::new();
        for (text, (before, after)) in texts.iter().zip(before.iter().zip(&after)) {
            let places = text.iter().flat_map(|sequence| {
                sequence.counted(&[BOS]).map(|at| &sequence.tokens[..=at]).collect::<Vec<_>>()
            });
            let sizes = before.iter().zip(after).map(|(b, a)| size(b, a)).zip(places);
            let best = sizes.fold((0.0, &[][..]), |best, it| if it.0 > best.0 { it } else { best });
            let known = strongest.iter().any(|(_, tokens)| *tokens == best.1);
            if best.0 > 0.0 && !known {
                strongest.push(best);
            }
        }
        strongest.sort_by(|a, b| b.0.total_cmp(&a.0));
        strongest.truncate(PLACES);
        let strongest: Vec<f64> = strongest.into_iter().map(|(size, _)| size).collect();
        assert_eq!(found.places.len(), strongest.len());
        for (place, expected) in found.places.iter().zip(strongest) {
            assert!(near(place.size(), expected), "feature {f}: {place:?}, {expected}");
            // It is where it says.
            let alone = vec![texts[place.text][place.sequence].clone()];
            let at = alone[0].counted(&[BOS]).position(|at| at == place.position).unwrap();
            let there = |model| slow(model, &world.sae, site, &alone)[at][f];
            assert!(near(place.before.into(), there(&world.reference)), "{place:?}");
            assert!(near(place.after.into(), there(&world.policy)), "{place:?}");
        }
    }

    // Whichever texts are read together, and in whichever order, up to rounding.
    for (texts_at_once, texts) in [(1, texts.clone()), (64, texts.iter().rev().cloned().collect())]
    {
        let other =
            measured([&world.reference, &world.policy], &world.sae, site, &texts, texts_at_once);
        for (a, b) in drift.features.iter().zip(&other.features) {
            assert!(near(a.change(), b.change()) && a.before.firing == b.before.firing);
            assert!(near(a.standard_error.unwrap(), b.standard_error.unwrap()));
            assert_eq!(a.places.len(), b.places.len());
        }
    }
}

/// Identity: texts of one length have the textbook's standard error of a paired mean, s/√n of the texts' mean changes.
#[test]
fn texts_of_one_length_have_the_paired_standard_error() {
    let (world, site) = (World::new(), Site::resid_post(1));
    let mut texts = texts();
    texts.retain(|text| text[0].tokens.len() > 5);
    for text in &mut texts {
        text.truncate(1);
        text[0].tokens.truncate(6);
        text[0].tokens[1..].iter_mut().for_each(|token| *token = (*token).max(BOS + 1));
    }
    let drift = measured([&world.reference, &world.policy], &world.sae, site, &texts, 3);
    let n = texts.len() as f64;
    for (f, found) in drift.features.iter().enumerate() {
        let mean = |model, text| {
            let values = slow(model, &world.sae, site, text);
            values.iter().map(|x| x[f]).sum::<f64>() / values.len() as f64
        };
        let changes: Vec<f64> = texts
            .iter()
            .map(|text| mean(&world.policy, text) - mean(&world.reference, text))
            .collect();
        let average = changes.iter().sum::<f64>() / n;
        let variance = changes.iter().map(|x| (x - average).powi(2)).sum::<f64>() / (n - 1.0);
        let expected = (variance / n).sqrt();
        assert!((found.standard_error.unwrap() - expected).abs() < 1e-5, "{found:?} {expected}");
    }
    let one = measured([&world.reference, &world.policy], &world.sae, site, &texts[..1], 3);
    assert!(one.features.iter().all(|feature| feature.standard_error.is_none()));
}

/// Texts that begin alike show what they have in common once, from the first of them.
#[test]
fn the_same_beginning_is_shown_once() {
    let (world, site) = (World::new(), Site::resid_post(1));
    let mut texts = texts();
    texts.truncate(1);
    let mut longer = texts[0].clone();
    longer[0].tokens.push(9);
    texts.extend([longer, texts[0].clone(), texts[0].clone()]);
    let drift = measured([&world.reference, &world.policy], &world.sae, site, &texts, 2);
    for feature in &drift.features {
        let tokens = |place: &Place| &texts[place.text][0].tokens[..=place.position];
        for (i, place) in feature.places.iter().enumerate() {
            assert!(feature.places[..i].iter().all(|other| tokens(other) != tokens(place)));
            assert!(place.text < 2, "{place:?}");
        }
        assert!(feature.places.len() <= 2);
    }
    assert!(drift.features.iter().any(|feature| !feature.places.is_empty()));
}

/// Identity: a model compared with itself changed nothing, to the bit.
#[test]
fn the_same_model_changes_nothing() {
    let world = World::new();
    let both = [&world.policy, &world.policy];
    let drift = measured(both, &world.sae, Site::resid_post(0), &texts(), 4);
    assert!(drift.features.iter().any(|feature| feature.before.mean > 0.0));
    for feature in drift.features {
        assert_eq!((feature.change(), feature.standard_error), (0.0, Some(0.0)));
        assert_eq!(feature.before, feature.after);
        assert!(feature.places.is_empty());
    }
}

/// A model whose embeddings were moved along one feature's decoder direction moves that feature most, at every token.
#[test]
fn a_planted_direction_comes_first() {
    const PLANTED: usize = 7;
    let (world, site) = (World::new(), "resid_pre:0".parse().unwrap());
    let mut sae = world.sae.clone();
    // As of a trained autoencoder: the encoder reads along the decoder's directions, which have unit norm.
    let norms = sae.w_dec.clone().square().sum_dim(1).sqrt();
    sae.w_dec = sae.w_dec / norms;
    sae.encoder.w_enc = sae.w_dec.clone().transpose();
    let direction: Tensor<2> = sae.w_dec.clone().narrow(0, PLANTED, 1);
    let after = each(&world.reference, |name, x| match name {
        "model.embed_tokens.weight" => {
            let rows = x.dims()[0] / D_MODEL;
            let moved = x.reshape([rows, D_MODEL]) + direction.clone();
            moved.flatten(0, 1)
        }
        _ => x,
    });
    let drift = measured([&world.reference, &after], &sae, site, &texts(), 4);
    let change = |f: usize| drift.features[f].change().abs();
    let others = (0..D_SAE).filter(|&f| f != PLANTED).map(change).fold(0.0, f64::max);
    assert!(drift.features[PLANTED].change() > 0.0 && change(PLANTED) > others, "{others}");
    // Embeddings are multiplied by √d_model, which is how far an active feature moves; one that wasn't also passes its threshold,
    // which is below 0.3.
    let far = (D_MODEL as f64).sqrt();
    for place in &drift.features[PLANTED].places {
        let over = place.size() - far;
        assert!(over.abs() < 1e-4 || place.before == 0.0 && over < 0.3, "{place:?}");
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let (world, site) = (World::new(), Site::resid_post(0));
    let broken = each(&world.policy, |_, x| x * f32::NAN);
    let refused = |after: &LanguageModel, texts: &[Text]| {
        let comparison = Comparison {
            before: &world.reference,
            after,
            sae: &world.sae,
            site,
            excluded: &[BOS],
            texts_at_once: NonZeroUsize::MIN,
            places: 1,
            reporter: &Reporter::silent(),
        };
        format!("{:#}", comparison.measure(texts).unwrap_err())
    };
    let says = refused(&broken, &texts());
    assert!(says.contains("aligned model") && says.contains("aren't finite"), "{says}");
    let nothing = vec![Sequence { tokens: vec![BOS, BOS], from: 0 }];
    assert!(refused(&world.policy, &[nothing]).contains("no text has a token"));
    assert!(refused(&world.policy, &[]).contains("no text has a token"));
}
