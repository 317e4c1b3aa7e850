//! Encoding and decoding, and what identifies an encoder.

use std::cell::Cell;

use fpo_ops::Activation;
use fpo_sae::{Description, check_width, hash_encoder};
use proptest::{collection::vec, prelude::*};

use crate::support::{Plain, check, tensor, to_vec};

/// Multiples of 1/16 in −1..1: their sums of products are exact in float32, so that scalar arithmetic gives the same bits, and some
/// pre-activations are equal to their threshold.
fn sixteenths() -> impl Strategy<Value = f32> + Clone {
    (-16..=16i8).prop_map(|x| f32::from(x) / 16.0)
}

#[test]
fn encode_and_decode_are_their_sums() {
    let inputs = Plain::any(sixteenths()).prop_flat_map(|plain| {
        let x = (1..6usize).prop_flat_map({
            let d_in = plain.d_in;
            move |tokens| vec(sixteenths(), tokens * d_in)
        });
        (Just(plain), x)
    });
    let (active, total) = (Cell::new(0), Cell::new(0));
    check(200, inputs, |(plain, x)| {
        let Plain { d_in, d_sae, .. } = plain;
        let (sae, tokens) = (plain.sae(), x.len() / d_in);
        let features = to_vec(sae.encode(tensor(&x, [tokens, d_in])));
        let decoded =
            to_vec(sae.decode(tensor(&features, [tokens, d_sae]), tensor(&x, [tokens, d_in])));
        for t in 0..tokens {
            let (x, features) = (&x[t * d_in..][..d_in], &features[t * d_sae..][..d_sae]);
            for (j, &feature) in features.iter().enumerate() {
                let terms = (0..d_in).map(|i| x[i] * plain.w_enc[i * d_sae + j]);
                let z = plain.b_enc[j] + terms.sum::<f32>();
                let expected = if z > plain.threshold[j] { z } else { 0.0 };
                assert_eq!(feature, expected, "token {t}, feature {j}");
                active.set(active.get() + usize::from(expected > 0.0));
            }
            for i in 0..d_in {
                let terms = (0..d_sae).map(|j| features[j] * plain.w_dec[j * d_in + i]);
                let expected = plain.b_dec[i] + terms.sum::<f32>();
                assert_eq!(decoded[t * d_in + i], expected, "token {t}, dimension {i}");
            }
        }
        total.set(total.get() + features.len());
    });
    let (active, total) = (active.get(), total.get());
    assert!(active > 0 && active < total, "the threshold decides nothing here");
}

/// Feature files store this hash: the value was computed by another implementation of BLAKE3 and must not change.
#[test]
fn the_hash_of_an_encoder_is_pinned() {
    let mut sae = Plain::random(1, 2, 3).sae();
    sae.encoder.w_enc = tensor(&[1.0, 0.0, -0.5, 2.0, 0.25, 8.0], [2, 3]);
    sae.encoder.b_enc = tensor(&[0.0, -1.0, 0.5], [3]);
    sae.encoder.activation = Activation::JumpRelu { threshold: tensor(&[0.5, 0.0, 1.5], [3]) };
    let expected = "b989d9c880a42e7f04f5d921bd991e6669b5b0598cd62062961c277cea599d65";
    assert_eq!(hash_encoder(&sae.encoder), expected);
}

#[test]
fn the_hash_is_of_the_encoder_alone_and_of_all_of_it() {
    check(100, Plain::any(sixteenths()), |plain| {
        let hash = |change: fn(&mut Plain)| {
            let mut plain = plain.clone();
            change(&mut plain);
            hash_encoder(&plain.sae().encoder)
        };
        let original = hash(|_| ());
        assert_eq!(hash(|p| p.w_dec[0] += 1.0), original);
        assert_eq!(hash(|p| p.b_dec[0] += 1.0), original);
        assert_ne!(hash(|p| p.w_enc[0] += 1.0), original);
        assert_ne!(hash(|p| p.b_enc[0] += 1.0), original);
        assert_ne!(hash(|p| p.threshold[0] += 1.0), original);
    });
}

#[test]
fn another_width_is_refused_by_the_site() {
    let encoder = Plain::random(2, 6, 9).sae().encoder;
    check_width(&encoder, "resid_post:3", 6).unwrap();
    let message = check_width(&encoder, "resid_post:3", 8).unwrap_err().to_string();
    for part in ["width 6", "resid_post:3", "width 8"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_description_names_the_activation_and_its_parameters() {
    let plain = Plain::random(3, 6, 9);
    let value = serde_json::to_value(Description::of(&plain.sae())).unwrap();
    assert_eq!(value["activation"], "JumpReLU");
    let largest = plain.threshold.iter().copied().fold(0.0, f32::max);
    assert_eq!(value["threshold"]["max"], f64::from(largest));
}
