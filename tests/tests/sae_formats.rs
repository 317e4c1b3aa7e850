//! `fpo_sae` reads and writes what SAELens and Gemma Scope keep, and computes the same with it.
//!
//! Oracle: values recorded from SAELens 6 by `tests/fixtures/sae/generate.py`, which also opened the
//! files of ours (`formats/written…`) and found that they compute the same.

use std::{
    collections::BTreeMap,
    fs,
    io::Cursor,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor, TensorData};
use fpo_sae::{Compression, Format, Sae, load, save_npz, save_sae_lens};
use safetensors::SafeTensors;

/// Of the largest value of a tensor.
const TOLERANCE: f32 = 1e-5;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sae/formats").join(name)
}

/// What SAELens computed with the autoencoder of a case.
struct Expected(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Expected {
    fn read(case: &str) -> Self {
        let bytes = fs::read(fixture(case).join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let values = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
            (name, (view.shape().to_vec(), values.collect()))
        });
        Self(tensors.collect())
    }

    fn tensor(&self, name: &str) -> Tensor<2> {
        let (shape, values) = &self.0[name];
        Tensor::from_data(TensorData::new(values.clone(), shape.clone()), &Device::flex())
    }

    fn compare(&self, name: &str, ours: Tensor<2>) {
        let theirs = self.tensor(name);
        let largest = theirs.clone().abs().max().into_scalar::<f32>();
        let difference = (ours - theirs).abs().max().into_scalar::<f32>();
        assert!(difference < TOLERANCE * largest, "{name} differs by {difference} of {largest}");
    }
}

fn open(name: &str) -> Sae {
    load(&fixture(name), &Device::flex()).unwrap()
}

#[test]
fn every_format_computes_what_sae_lens_computes() {
    for (case, format, hook) in [
        ("sae_lens_6", Format::SaeLens, true),
        ("sae_lens_6_subtracting", Format::SaeLens, true),
        ("sae_lens_6_relu", Format::SaeLens, true),
        ("checkpoint", Format::SaeLens, true),
        ("flat", Format::SaeLens, true),
        ("gemma_scope", Format::GemmaScope, false),
        ("gemma_scope_deflated", Format::GemmaScope, false),
        ("gemma_scope_2", Format::GemmaScope2, true),
    ] {
        println!("{case}");
        assert_eq!(Format::detect(&fixture(case)).unwrap().0, format);
        let (expected, sae) = (Expected::read(case), open(case));
        let features = sae.encode(expected.tensor("x"));
        expected.compare("features", features.clone());
        expected.compare("output", sae.decode(features, expected.tensor("x")));
        expected.compare("output", sae.reconstruct(expected.tensor("x")));
        let hook_name = hook.then_some("blocks.3.hook_resid_post");
        assert_eq!(sae.provenance.hook_name.as_deref(), hook_name);
        // Where the scale of the inputs is folded too, decoder norms are measured in other units.
        if case != "checkpoint" {
            let folded = sae.fold_decoder_norms().unwrap();
            expected.compare("folded", folded.encode(expected.tensor("x")));
            expected.compare("output", folded.reconstruct(expected.tensor("x")));
        }
    }
}

#[test]
fn what_sae_lens_opened_is_what_is_written() {
    let sae = open("sae_lens_6");
    let folder = tempfile::tempdir().unwrap();
    save_sae_lens(&sae, folder.path()).unwrap();
    for file in ["cfg.json", "sae_weights.safetensors"] {
        let [written, opened] =
            [folder.path().join(file), fixture("written").join(file)].map(|p| fs::read(p).unwrap());
        assert!(written == opened, "{file} is not the one that SAELens opened");
    }
    for (file, compression) in
        [("written.npz", Compression::Stored), ("written_deflated.npz", Compression::Deflated)]
    {
        let mut written = Cursor::new(Vec::new());
        save_npz(&sae, &mut written, compression).unwrap();
        assert!(written.into_inner() == fs::read(fixture(file)).unwrap(), "{file} is another");
    }
}

#[test]
fn round_trips_through_every_pair_of_formats() {
    let folder = tempfile::tempdir().unwrap();
    let values = |sae: &Sae| {
        [&sae.encoder.w_enc, &sae.w_dec].map(|x| x.to_data().iter::<f32>().collect::<Vec<_>>())
    };
    for case in ["sae_lens_6", "sae_lens_6_subtracting", "gemma_scope_deflated", "gemma_scope_2"] {
        let sae = open(case);
        let archive = folder.path().join("params.npz");
        let file = fs::File::create(&archive).unwrap();
        save_npz(&sae, file, Compression::Deflated).unwrap();
        save_sae_lens(&load(&archive, &Device::flex()).unwrap(), folder.path()).unwrap();
        let back = load(folder.path(), &Device::flex()).unwrap();
        assert_eq!(values(&back), values(&sae));
        let expected = Expected::read(case);
        expected.compare("output", back.reconstruct(expected.tensor("x")));
        fs::remove_file(folder.path().join("cfg.json")).unwrap();
    }
}

/// What is wrong with the file or folder, as a sentence.
fn refusal(path: &Path) -> String {
    load(path, &Device::flex()).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn configurations_that_mean_something_else_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let weights = fixture("sae_lens_6").join("sae_weights.safetensors");
    fs::copy(weights, folder.path().join("sae_weights.safetensors")).unwrap();
    let refuse = |config: &str, says: &str| {
        fs::write(folder.path().join("cfg.json"), config).unwrap();
        let message = refusal(folder.path());
        assert!(message.contains(says), "{config}: {message:?} does not say {says:?}");
    };
    let jump = |more: &str| format!(r#"{{"architecture": "jumprelu", {more}}}"#);
    refuse(&jump(r#""normalize_activations": "covariance_whitening""#), "covariance_whitening");
    refuse(&jump(r#""normalize_activations": "expected_average_only_in""#), "scaling_factor");
    refuse(&jump(r#""normalize_activations": true"#), "scaling_factor");
    refuse(&jump(r#""apply_b_dec_to_input": "no""#), "apply_b_dec_to_input");
    refuse(r#"{"architecture": "topk"}"#, "`k`");
    refuse(r#"{"architecture": "standard"}"#, "holds `threshold`");
    refuse(r#"{"architecture": "gated"}"#, "gated");
    refuse(r#"{"activation_fn_str": "tanh-relu"}"#, "tanh-relu");
    refuse("[1]", "not a JSON object");
    refuse("{", "cfg.json");
    for scale in ["-1.0", "1e400", "null"] {
        let text = format!(r#"{{"scaling_factor": {scale}}}"#);
        fs::write(folder.path().join("activation_scaler.json"), text).unwrap();
        refuse(&jump(r#""normalize_activations": true"#), "scal");
    }

    let folder = tempfile::tempdir().unwrap();
    let weights = fixture("gemma_scope_2").join("params.safetensors");
    fs::copy(weights, folder.path().join("params.safetensors")).unwrap();
    load(folder.path(), &Device::flex()).unwrap();
    for (config, says) in [
        (r#"{"architecture": "batch_topk"}"#, "batch_topk"),
        (r#"{"hf_hook_point_in": "a.output", "hf_hook_point_out": "b.output"}"#, "transcoder"),
    ] {
        fs::write(folder.path().join("config.json"), config).unwrap();
        let message = refusal(folder.path());
        assert!(message.contains(says), "{config}: {message:?} does not say {says:?}");
    }
}

/// An entry of an archive: its name, what it holds, and how.
fn archive(path: &Path, entries: &[(&str, Vec<u8>)], method: zip::CompressionMethod) {
    let mut writer = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for (name, bytes) in entries {
        let options = zip::write::FileOptions::default().compression_method(method);
        writer.start_file(*name, options).unwrap();
        std::io::Write::write_all(&mut writer, bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// An array in NumPy's format 1.0 with this text as its header.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{header:<117}\n");
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", length.as_slice(), header.as_bytes(), data].concat()
}

#[test]
fn archives_that_lie_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    let (stored, deflated) = (zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated);
    let header = |descr: &str, shape: &str| {
        format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")
    };
    let cases: [(&str, Vec<u8>, &str); 9] = [
        ("W_enc.npy", npy(&header("'|O'", "(2,)"), b"code"), "pickled"),
        ("W_enc.npy", npy(&header("'<i4'", "(1,)"), b"1234"), "i4"),
        ("W_enc.npy", npy(&header("'<f4'", "(2, 3)"), b"1234"), "shape"),
        ("W_enc.npy", npy(&header("'<f4'", "(4294967296, 4294967296)"), b"1234"), "shape"),
        ("W_enc.npy", b"short".to_vec(), "shorter"),
        ("W_enc.npy", npy(&"(".repeat(1000), b""), "W_enc"),
        ("W_enc.npy", npy(&" ".repeat(59_999), b""), "header of 60000"),
        ("readme.txt", b"text".to_vec(), "readme.txt"),
        ("W_enc.npy", npy(&header("'<f4'", "(16777216,)"), &vec![0; 4 << 24]), "zip bomb"),
    ];
    for (name, bytes, says) in cases {
        let method = if bytes.len() > 1 << 20 { deflated } else { stored };
        archive(&path, &[(name, bytes)], method);
        let begun = std::time::Instant::now();
        let message = refusal(&path);
        println!("{says}: {:?}", begun.elapsed());
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
    assert!(refusal(&fixture("pickled.npz")).contains("pickled"));

    let whole = fs::read(fixture("gemma_scope/params.npz")).unwrap();
    for end in 0..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        assert!(!refusal(&path).is_empty());
    }
    // Whatever byte is another, reading ends in a value or in an error.
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(&path, bytes).unwrap();
        let _ = load(&path, &Device::flex());
    }
}
