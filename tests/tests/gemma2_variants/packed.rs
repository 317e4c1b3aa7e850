//! Several texts in a batch, padded or packed: each as if it were alone.

use std::{collections::BTreeMap, ops::Range};

use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_transformer::{ForwardOutput, Input, LanguageModel, TextStarts};

use crate::common::{
    CASES, Named, all_sites, assert_equal_gradients, difference, load, noise, padded, text, values,
};

/// The texts of each row: longer and shorter than every window, one token alone; the second row and the
/// third leave room for padding.
const ROWS: [&[usize]; 3] = [&[17, 9, 1], &[5, 20], &[2]];
const WIDTH: usize = 27;

/// Oracle: each text in a batch of its own, without padding.
#[test]
fn packed_texts_equal_texts_alone() {
    let texts: Vec<Vec<u32>> = lengths().zip(1..).map(|(n, seed)| text(seed, n)).collect();
    let mut at = Vec::new();
    let mut ids = vec![0i32; ROWS.len() * WIDTH];
    for (row, lengths) in ROWS.iter().enumerate() {
        let mut first = 0;
        for &length in *lengths {
            let text = &texts[at.len()];
            at.push((row, first..first + length));
            let place = &mut ids[row * WIDTH + first..][..length];
            place.iter_mut().zip(text).for_each(|(id, &token)| *id = token as i32);
            first += length;
        }
    }
    let starts = TextStarts::new(&ROWS.map(<[usize]>::to_vec), WIDTH);
    check("packed", &texts, &at, |model| {
        let tokens = TensorData::new(ids.clone(), [ROWS.len(), WIDTH]);
        let tokens = Tensor::<2, Int>::from_data(tokens, &model.device());
        model.forward(Input::packed(tokens, &starts), &all_sites(model))
    });
}

#[test]
fn padded_texts_equal_texts_alone() {
    let texts: Vec<Vec<u32>> = lengths().zip(1..).map(|(n, seed)| text(seed, n)).collect();
    let at: Vec<_> = texts.iter().enumerate().map(|(row, text)| (row, 0..text.len())).collect();
    check("padded", &texts, &at, |model| {
        model.forward(padded(&texts, &model.device()), &all_sites(model))
    });
}

/// The texts before a text, the texts after it and the padding leave it alone to the bit.
#[test]
fn neighbours_in_a_row_are_not_seen() {
    let model = load("one_kv_head", &Device::flex());
    let starts = TextStarts::new(&[vec![6, 11, 4]], 24);
    let forward = |seed: u64| {
        let ids = [text(seed, 6), text(9, 11), text(seed + 1, 7)].concat();
        let input = Input::packed(padded(&[ids], &model.device()), &starts);
        let output = model.forward(input, &[]);
        let [_, _, width] = output.hidden_states.dims();
        values(output.hidden_states.slice([0..1, 6..17, 0..width]))
    };
    assert_eq!(forward(1), forward(5));
}

fn lengths() -> impl Iterator<Item = usize> {
    ROWS.into_iter().flatten().copied()
}

/// Holds the texts of a batch, each `at` a row and some positions, to the same texts alone: hidden states,
/// all sites, and the gradients of a loss on all of them.
fn check(
    what: &str,
    texts: &[Vec<u32>],
    at: &[(usize, Range<usize>)],
    forward: impl Fn(&LanguageModel) -> ForwardOutput,
) {
    let device = Device::flex().autodiff();
    for case in CASES {
        let model = load(case, &device);
        let together = forward(&model);
        let (mut loss, mut loss_alone): (Option<Tensor<1>>, Option<Tensor<1>>) = (None, None);
        for ((text, (row, positions)), seed) in texts.iter().zip(at).zip(1..) {
            let tokens = padded(std::slice::from_ref(text), &device);
            let alone = model.forward(tokens, &all_sites(&model));
            for (together, alone) in outputs(&together).zip(outputs(&alone)) {
                let here = together.clone().slice([*row..row + 1, positions.clone()]);
                let worst = difference(&values(here.clone()), &values(alone.clone()));
                assert!(worst < 1e-5, "{what}, {case}, {} tokens: {worst}", text.len());
                let weights = noise(alone.dims(), seed, &device);
                add(&mut loss, (here * weights.clone()).sum());
                add(&mut loss_alone, (alone.clone() * weights).sum());
            }
        }
        let gradients = [loss, loss_alone].map(|loss| {
            let mut found = BTreeMap::new();
            Named::add(&model, &loss.unwrap().backward(), &mut found);
            found
        });
        let [together, alone] = &gradients;
        assert_equal_gradients(&format!("{what}, {case}"), together, alone, 1e-5);
    }
}

fn outputs(output: &ForwardOutput) -> impl Iterator<Item = &Tensor<3>> {
    [&output.hidden_states].into_iter().chain(&output.sites)
}

fn add(sum: &mut Option<Tensor<1>>, part: Tensor<1>) {
    *sum = Some(match sum.take() {
        Some(sum) => sum + part,
        None => part,
    });
}
