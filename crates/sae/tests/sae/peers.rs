//! Files of other software: what it computed is what we compute.
//!
//! Oracle: values recorded by `tests/fixtures/sae/generate_kinds.py`.

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor, TensorData};
use fpo_sae::{Compression, Format, Sae, hash_encoder, load, save_npz, save_sae_lens};
use proptest::{prelude::any, sample::Index};
use safetensors::SafeTensors;

use crate::support;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/sae/formats").join(name)
}

/// The message with which a file or folder is refused.
fn refusal(path: &Path) -> String {
    load(path, &Device::flex()).map(|_| ()).unwrap_err().to_string()
}

fn check(case: &str, sae: &Sae) {
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
fn every_kind_and_every_publisher() {
    let hook = "blocks.3.hook_resid_post";
    for (case, format, hook) in [
        ("gemma_scope_types", Format::GemmaScope, None),
        ("negative_thresholds", Format::SaeLens, Some(hook)),
        ("topk", Format::SaeLens, Some(hook)),
        ("topk_subtracting", Format::SaeLens, Some(hook)),
        ("topk_rescaled", Format::SaeLens, Some(hook)),
        ("topk_flat", Format::SaeLens, Some(hook)),
        ("batchtopk_checkpoint", Format::SaeLens, Some(hook)),
        ("jumprelu_layer_norm", Format::SaeLens, Some(hook)),
        ("jumprelu_constant_norm_rescale", Format::SaeLens, Some(hook)),
        ("topk_layer_norm", Format::SaeLens, Some(hook)),
        ("topk_constant_norm_rescale", Format::SaeLens, Some(hook)),
        ("relu_layer_norm", Format::SaeLens, Some(hook)),
        ("relu_constant_norm_rescale", Format::SaeLens, Some(hook)),
        ("llama_scope", Format::LlamaScope, Some(hook)),
        ("sparsify/layers.3", Format::Sparsify, Some(hook)),
        ("SAE-Res-Qwen3-1.7B-Base-W32K-L0_5", Format::QwenScope, Some(hook)),
        ("dictionary_learning_relu", Format::DictionaryLearning, Some(hook)),
        ("dictionary_learning_topk", Format::DictionaryLearning, Some(hook)),
        ("dictionary_learning_batch_topk", Format::DictionaryLearning, Some(hook)),
        ("dictionary_learning_jumprelu", Format::DictionaryLearning, Some(hook)),
    ] {
        println!("{case}");
        assert_eq!(Format::detect(&fixture(case)).unwrap().0, format);
        let sae = load(&fixture(case), &Device::flex()).unwrap();
        assert_eq!(sae.provenance.hook_name.as_deref(), hook);
        check(case, &sae);
        // What we write of it computes the same, and has the same features for feature files and caches.
        let folder = tempfile::tempdir().unwrap();
        save_sae_lens(&sae, folder.path()).unwrap();
        let back = load(folder.path(), &Device::flex()).unwrap();
        check(case, &back);
        assert_eq!(hash_encoder(&back.encoder), hash_encoder(&sae.encoder));
        assert_eq!(back.provenance.hook_name, sae.provenance.hook_name);
    }
}

/// SAELens opened these configurations, and computed with them what the cases do.
#[test]
fn what_sae_lens_opened_is_what_is_written() {
    for case in [
        "topk",
        "topk_subtracting",
        "topk_layer_norm",
        "sae_lens_6_relu",
        "relu_constant_norm_rescale",
        "jumprelu_layer_norm",
    ] {
        let sae = load(&fixture(case), &Device::flex()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        save_sae_lens(&sae, folder.path()).unwrap();
        let written = fs::read_to_string(folder.path().join("cfg.json")).unwrap();
        let opened = fs::read_to_string(fixture(&format!("written_{case}.json"))).unwrap();
        assert_eq!(written, opened, "{case}");
    }
}

/// A copy of a case, in which some text of a configuration is another.
fn altered(case: &str, config: &str, from: &str, to: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for part in ["", "checkpoints"] {
        let Ok(listed) = fs::read_dir(fixture(case).join(part)) else { continue };
        fs::create_dir_all(folder.path().join(part)).unwrap();
        for entry in listed.flatten().filter(|entry| entry.path().is_file()) {
            fs::copy(entry.path(), folder.path().join(part).join(entry.file_name())).unwrap();
        }
    }
    let path = folder.path().join(config);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text} has no {from}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
    folder
}

#[test]
fn what_means_something_else_is_refused_by_name() {
    let glu = ("\"use_glu_encoder\": false", "\"use_glu_encoder\": true");
    let (llama, sparsify) =
        (("llama_scope", "hyperparams.json"), ("sparsify/layers.3", "cfg.json"));
    let dictionary = ("dictionary_learning_relu", "config.json");
    for ((case, config), (from, to), says) in [
        (llama, glu, "use_glu_encoder"),
        (llama, ("dataset-wise", "token-wise"), "token-wise"),
        (llama, ("\"act_fn\": \"jumprelu\"", "\"act_fn\": \"topk\""), "topk"),
        (
            llama,
            ("\"hook_point_out\": \"blocks.3.", "\"hook_point_out\": \"blocks.4."),
            "transcoder",
        ),
        (llama, ("jump_relu_threshold", "jump"), "jump_relu_threshold"),
        (llama, ("\"in\": 3.7", "\"in\": -1"), "dataset_average_activation_norm.in"),
        (llama, ("\"d_sae\": 11", "\"d_sae\": 12"), "d_sae"),
        (sparsify, ("\"transcode\": false", "\"transcode\": true"), "transcode"),
        (sparsify, ("\"skip_connection\": false", "\"skip_connection\": true"), "skip_connection"),
        (sparsify, ("\"topk\"", "\"groupmax\""), "groupmax"),
        (sparsify, ("\"k\": 3", "\"k\": 12"), "k = 12"),
        (sparsify, ("\"k\": 3", "\"k\": 0"), "k = 0"),
        (dictionary, ("AutoEncoder", "GatedAutoEncoder"), "GatedAutoEncoder"),
        (dictionary, ("AutoEncoder", "AutoEncoderTopK"), "trainer.k"),
        (dictionary, ("AutoEncoder", "JumpReluAutoEncoder"), "threshold"),
        (dictionary, ("dict_class", "class"), "dict_class"),
    ] {
        let folder = altered(case, config, from, to);
        let message = refusal(folder.path());
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
    // A threshold that the class doesn't have.
    let folder =
        altered("dictionary_learning_batch_topk", "config.json", "BatchTopKSAE", "AutoEncoder");
    assert!(refusal(folder.path()).contains("holds `threshold`"));

    // Qwen-Scope's k is in the name of the folder, and a folder of several layers names none.
    let case = "SAE-Res-Qwen3-1.7B-Base-W32K-L0_5";
    let whole = fs::read(fixture(case).join("layer3.sae.pt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("layer3.sae.pt"), &whole).unwrap();
    assert!(refusal(folder.path()).contains("k isn't in the file"));
    fs::write(folder.path().join("layer4.sae.pt"), &whole).unwrap();
    assert!(refusal(folder.path()).contains("2 autoencoders"));
}

/// Nothing is run: the pickle that calls `os.system` is torch-file's own fixture.
#[test]
fn torch_files_are_read_safely() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("SAE-Res-Qwen3-1.7B-Base-W32K-L0_5");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("layer3.sae.pt");
    let command = fixture("../../torch-file/command.pt");
    fs::copy(command, &path).unwrap();
    assert!(refusal(&path).contains("system"));
    let whole = fs::read(fixture("SAE-Res-Qwen3-1.7B-Base-W32K-L0_5/layer3.sae.pt")).unwrap();
    for end in (0..whole.len()).step_by(7) {
        fs::write(&path, &whole[..end]).unwrap();
        assert!(!refusal(&path).is_empty(), "{end} of {} bytes were enough", whole.len());
    }
    support::check(200, (any::<Index>(), any::<u8>()), |(at, byte)| {
        let mut bytes = whole.clone();
        bytes[at.index(whole.len())] = byte;
        fs::write(&path, bytes).unwrap();
        let _ = load(&path, &Device::flex());
    });
}

/// What Gemma Scope 2's folders without a configuration say by their names.
#[test]
fn gemma_scope_2_folders() {
    let root = tempfile::tempdir().unwrap();
    let weights = fixture("gemma_scope_2/params.safetensors");
    for (kind, hook) in [
        ("resid_post", "blocks.12.hook_resid_post"),
        ("attn_out_all", "blocks.12.attn.hook_z"),
        ("mlp_out", "blocks.12.hook_mlp_out"),
        ("transcoder_all", "transcoder"),
    ] {
        let folder =
            root.path().join("gemma-scope-2-1b-it").join(kind).join("layer_12_width_16k_l0_small");
        fs::create_dir_all(&folder).unwrap();
        fs::copy(&weights, folder.join("params.safetensors")).unwrap();
        match load(&folder, &Device::flex()) {
            Ok(sae) => {
                assert_eq!(sae.provenance.hook_name.as_deref(), Some(hook));
                assert_eq!(sae.provenance.model_name.as_deref(), Some("google/gemma-3-1b-it"));
            }
            Err(error) => assert!(error.to_string().contains(hook), "{error}"),
        }
    }
}

/// Their features are compared with each other, and inputs aren't scaled by a constant.
#[test]
fn what_gemma_scope_cannot_hold_is_not_written_as_such() {
    for case in ["topk", "jumprelu_layer_norm"] {
        let sae = load(&fixture(case), &Device::flex()).unwrap();
        let mut output = Cursor::new(Vec::new());
        let error = save_npz(&sae, &mut output, Compression::Stored).unwrap_err();
        assert!(error.to_string().contains("SAELens"), "{error}");
        assert!(output.into_inner().is_empty());
    }
    let sae = load(&fixture("topk"), &Device::flex()).unwrap();
    assert!(sae.fold_decoder_norms().unwrap_err().to_string().contains("TopK"));
    // A ReLU is a JumpReLU with thresholds of 0.
    let sae = load(&fixture("sae_lens_6_relu"), &Device::flex()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = fs::File::create(folder.path().join("params.npz")).unwrap();
    save_npz(&sae, file, Compression::Stored).unwrap();
    let back = load(folder.path(), &Device::flex()).unwrap();
    assert_eq!(hash_encoder(&back.encoder), hash_encoder(&sae.encoder));
    check("sae_lens_6_relu", &back);
}
