//! Files: written and read back, and damaged.

use std::{cell::Cell, fs, io::Write, path::Path};

use burn::tensor::Device;
use fpo_ops::Activation;
use fpo_sae::{Compression, hash_encoder, load, save_npz, save_sae_lens};
use proptest::{num::f32, prelude::*, sample::Index};
use safetensors::SafeTensors;

use crate::support::{Plain, check, tensor, threshold, to_vec};

/// Any values that a file may hold.
fn finite() -> impl Strategy<Value = f32> + Clone {
    f32::NORMAL | f32::SUBNORMAL | f32::ZERO
}

#[test]
fn a_sae_lens_folder_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    check(50, Plain::any(finite()), |plain| {
        let sae = plain.sae();
        save_sae_lens(&sae, folder.path()).unwrap();
        let back = load(folder.path(), &Device::flex()).unwrap();
        assert_eq!(to_vec(back.encoder.w_enc.clone()), plain.w_enc);
        assert_eq!(to_vec(back.encoder.b_enc.clone()), plain.b_enc);
        assert_eq!(threshold(&back), plain.threshold);
        assert_eq!(to_vec(back.w_dec.clone()), plain.w_dec);
        assert_eq!(to_vec(back.b_dec.clone()), plain.b_dec);
        assert_eq!(back.provenance, sae.provenance);
        assert_eq!((back.d_in(), back.d_sae()), (plain.d_in, plain.d_sae));
    });
}

#[test]
fn an_encoder_has_one_hash_in_every_format() {
    let [sae_lens, gemma_scope, gemma_scope_2] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    check(50, Plain::any(finite()), |plain| {
        let sae = plain.sae();
        save_sae_lens(&sae, sae_lens.path()).unwrap();
        let archive = fs::File::create(gemma_scope.path().join("params.npz")).unwrap();
        save_npz(&sae, archive, Compression::Deflated).unwrap();
        // Gemma Scope 2 has the same tensors under names in lower case.
        let bytes = fs::read(sae_lens.path().join("sae_weights.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        let lower_case = tensors.into_iter().map(|(name, view)| (name.to_lowercase(), view));
        let path = gemma_scope_2.path().join("params.safetensors");
        safetensors::serialize_to_file(lower_case, None, &path).unwrap();

        for folder in [&sae_lens, &gemma_scope, &gemma_scope_2] {
            let back = load(folder.path(), &Device::flex()).unwrap();
            assert_eq!(hash_encoder(&back.encoder), hash_encoder(&sae.encoder));
        }
    });
}

/// The message with which `folder` is refused.
fn refusal(folder: &Path) -> String {
    load(folder, &Device::flex()).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn damaged_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(refusal(folder).contains("no sparse autoencoder"));
    let plain = Plain::random(4, 3, 4);
    let mut sae = plain.sae();
    save_sae_lens(&sae, folder).unwrap();
    let (config, weights) = (folder.join("cfg.json"), folder.join("sae_weights.safetensors"));
    let (config_text, whole) = (fs::read_to_string(&config).unwrap(), fs::read(&weights).unwrap());

    for (from, to, says) in [
        ("jumprelu", "gated", "gated"),
        ("jumprelu", "topk", "`k`"),
        ("\"jumprelu\"", "\"topk\", \"k\": 5", "k = 5"),
        ("\"jumprelu\"", "\"topk\", \"k\": 2", "threshold"),
        // Not read as a ReLU, with the thresholds thrown away.
        ("jumprelu", "standard", "holds `threshold`"),
        ("\"none\"", "\"covariance_whitening\"", "covariance_whitening"),
        ("\"d_in\": 3", "\"d_in\": 5", "d_in"),
        ("\"d_sae\": 4", "\"d_sae\": 5", "d_sae"),
    ] {
        assert!(config_text.contains(from), "{from}");
        fs::write(&config, config_text.replacen(from, to, 1)).unwrap();
        let message = refusal(folder);
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
    fs::write(&config, "{").unwrap();
    assert!(refusal(folder).contains("cfg.json"));
    fs::write(&config, &config_text).unwrap();

    for end in 0..whole.len() {
        fs::write(&weights, &whole[..end]).unwrap();
        assert!(
            load(folder, &Device::flex()).is_err(),
            "{end} of {} bytes were enough",
            whole.len()
        );
    }
    // Whichever byte is changed, loading gives an autoencoder or an error.
    let read = Cell::new(0);
    check(300, (any::<Index>(), any::<u8>()), |(at, byte)| {
        let mut bytes = whole.clone();
        bytes[at.index(whole.len())] = byte;
        fs::write(&weights, bytes).unwrap();
        read.set(read.get() + usize::from(load(folder, &Device::flex()).is_ok()));
    });
    assert!(read.get() < 300, "no damage was noticed");

    let mut save_with = |values: &[f32]| {
        let threshold = tensor(values, [values.len()]);
        sae.encoder.activation = Activation::JumpRelu { threshold };
        save_sae_lens(&sae, folder).unwrap();
    };
    let mut threshold = plain.threshold.clone();
    threshold[2] = f32::NAN;
    save_with(&threshold);
    let message = refusal(folder);
    assert!(message.contains("NaN") && message.contains("threshold"), "{message}");
    save_with(&plain.threshold[..3]);
    assert!(refusal(folder).contains("threshold is [3]"));
}

/// An array in NumPy's format 1.0.
fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let order = if fortran { "True" } else { "False" };
    let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
    let header = format!("{header:<117}\n");
    [b"\x93NUMPY\x01\x00\x76\x00", header.as_bytes(), data].concat()
}

/// Gemma Scope's file, written here array by array from the description of the formats (.npy 1.0, zip).
#[test]
fn gemma_scope_params_npz() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    let (d_in, d_sae) = (3, 5);
    let plain = Plain::random(6, d_in, d_sae);
    let write = |skip: Option<&str>| {
        let mut archive = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        let arrays: [(&str, &[f32], String); 5] = [
            ("W_enc", &plain.w_enc, format!("({d_in}, {d_sae})")),
            ("b_enc", &plain.b_enc, format!("({d_sae},)")),
            ("W_dec", &plain.w_dec, format!("({d_sae}, {d_in})")),
            ("b_dec", &plain.b_dec, format!("({d_in},)")),
            ("threshold", &plain.threshold, format!("({d_sae},)")),
        ];
        for (name, values, shape) in arrays.into_iter().filter(|(name, ..)| Some(*name) != skip) {
            let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            archive.start_file(format!("{name}.npy"), Default::default()).unwrap();
            archive.write_all(&npy("<f4", false, &shape, &data)).unwrap();
        }
        archive.finish().unwrap();
    };
    write(None);
    for named in [path.as_path(), folder.path()] {
        let sae = load(named, &Device::flex()).unwrap();
        assert_eq!(to_vec(sae.encoder.w_enc.clone()), plain.w_enc);
        assert_eq!(threshold(&sae), plain.threshold);
        assert_eq!(to_vec(sae.w_dec), plain.w_dec);
    }
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    load(&path, &Device::flex()).map(|_| ()).unwrap_err();
    write(Some("threshold"));
    assert!(refusal(&path).contains("no `threshold`"));
}

/// What `load` makes of a params.npz whose W_enc is this `.npy` file and whose other arrays fit a `[2, 3]` one.
fn w_enc(path: &Path, array: &[u8]) -> Result<Vec<f32>, String> {
    let zeros = |shape: &str, count: usize| npy("<f4", false, shape, &vec![0; 4 * count]);
    let mut archive = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for (name, bytes) in [
        ("W_enc", array),
        ("b_enc", &zeros("(3,)", 3)),
        ("W_dec", &zeros("(3, 2)", 6)),
        ("b_dec", &zeros("(2,)", 2)),
        ("threshold", &zeros("(3,)", 3)),
    ] {
        archive.start_file(format!("{name}.npy"), Default::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
    let sae = load(path, &Device::flex()).map_err(|e| e.to_string())?;
    Ok(to_vec(sae.encoder.w_enc))
}

/// The oracle is the description of the `.npy` format.
#[test]
fn every_kind_of_numpy_array_is_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    let values = [1.5f32, -2.0, 0.25, 3.0, 0.0, -0.125];
    let single: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let double: Vec<u8> = values.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect();
    let half: Vec<u8> = values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
    for (descr, data) in [("<f2", &half), ("<f4", &single), ("<f8", &double)] {
        assert_eq!(w_enc(&path, &npy(descr, false, "(2, 3)", data)).unwrap(), values);
        let columns = [1.5, 0.25, 0.0, -2.0, 3.0, -0.125];
        assert_eq!(w_enc(&path, &npy(descr, true, "(2, 3)", data)).unwrap(), columns);
    }
    // Version 2 has a longer length.
    let first = npy("<f4", false, "(2, 3)", &single);
    let second = [b"\x93NUMPY\x02\x00", &first[8..10], b"\0\0", &first[10..]].concat();
    assert_eq!(w_enc(&path, &second).unwrap(), values);
    let third = [b"\x93NUMPY\x04\x00", &second[8..]].concat();
    // The padding of the header, taken for the data.
    let shorter = [b"\x93NUMPY\x01\x00\x57\x00", &first[10..10 + 0x57 + 24]].concat();
    for (array, says) in [
        (third.as_slice(), "version 4"),
        (&shorter, "header"),
        (&npy(">f4", false, "(2, 3)", &single), ">f4"),
        (&npy("<c8", false, "(3,)", &single), "<c8"),
        (&npy("<f4", true, "(1, 2, 3)", &single), "Fortran"),
        (&npy("<f4", false, "(2, -3)", &single), "header"),
        (&npy("<f4', 'more': '", false, "(2, 3)", &single), "header"),
        (&first[..100], "shorter"),
        (&first[..140], "shape"),
    ] {
        let message = w_enc(&path, array).unwrap_err();
        assert!(message.contains(says) && message.contains("W_enc"), "{message}");
    }
    // Whatever is changed or missing, reading gives an autoencoder or an error.
    let read = Cell::new(0);
    check(500, (any::<Index>(), any::<u8>(), any::<Index>()), |(at, byte, end)| {
        let mut bytes = first.clone();
        bytes[at.index(first.len())] = byte;
        read.set(read.get() + usize::from(w_enc(&path, &bytes).is_ok()));
        bytes.truncate(end.index(first.len()));
        assert!(w_enc(&path, &bytes).is_err());
    });
    assert!((1..500).contains(&read.get()), "{} of 500 were read", read.get());
}
