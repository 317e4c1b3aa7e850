//! Files: written and read back, and damaged.

use std::{cell::Cell, fs, path::Path};

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

    for (from, to) in [("jumprelu", "topk"), ("\"none\"", "\"layer_norm\"")] {
        fs::write(&config, config_text.replacen(from, to, 1)).unwrap();
        assert!(refusal(folder).contains(to.trim_matches('"')));
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
    for (value, says) in [(-0.5, "negative"), (f32::NAN, "NaN")] {
        let mut threshold = plain.threshold.clone();
        threshold[2] = value;
        save_with(&threshold);
        let message = refusal(folder);
        assert!(message.contains(says) && message.contains("threshold"), "{message}");
    }
    save_with(&plain.threshold[..3]);
    assert!(refusal(folder).contains("threshold is [3]"));
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
        let arrays: [(&str, &[f32], &[u64]); 5] = [
            ("W_enc", &plain.w_enc, &[d_in as u64, d_sae as u64]),
            ("b_enc", &plain.b_enc, &[d_sae as u64]),
            ("W_dec", &plain.w_dec, &[d_sae as u64, d_in as u64]),
            ("b_dec", &plain.b_dec, &[d_in as u64]),
            ("threshold", &plain.threshold, &[d_sae as u64]),
        ];
        for (name, values, shape) in arrays.into_iter().filter(|(name, ..)| Some(*name) != skip) {
            use npyz::WriterBuilder;
            archive.start_file(format!("{name}.npy"), Default::default()).unwrap();
            let array = npyz::WriteOptions::new().default_dtype().shape(shape);
            let mut writer = array.writer(&mut archive).begin_nd().unwrap();
            writer.extend(values.iter().copied()).unwrap();
            writer.finish().unwrap();
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
