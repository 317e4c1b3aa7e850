//! The commands on autoencoders: each from the beginning to its end, and what each refuses.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::common::{PATIENCE, arg, fail, fpo, skip_when_quick, succeed};

/// A run up to its autoencoder: model, tokens, autoencoder.
fn run(folder: &Path) -> [String; 3] {
    let run = folder.join("run");
    succeed(&["train", "--recipe", "smoke", "--until", "sae", "--run", arg(&run)]);
    ["sft", "prepared/sft.arrow", "sae"].map(|part| arg(&run.join(part)).to_owned())
}

/// What a command printed as JSON, below the lines of its progress.
fn json(args: &[&str]) -> Value {
    let output = fpo(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_command_to_its_end() {
    if skip_when_quick("every_command_to_its_end") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [model, data, sae] = run(folder.path());
    let path = |name: &str| arg(&folder.path().join(name)).to_owned();
    let (archive, copy, page) = (path("copy/params.npz"), path("back"), path("features.html"));
    succeed(&["sae", "convert", &sae, &archive, "--compress"]);
    succeed(&["sae", "convert", &archive, &copy]);
    let weights =
        |folder: &str| fs::read(Path::new(folder).join("sae_weights.safetensors")).unwrap();
    assert!(weights(&sae) == weights(&copy), "an archive in between changed the weights");
    assert!(fail(&["sae", "convert", &sae, &copy]).contains("--force"));
    succeed(&["sae", "convert", &sae, &copy, "--force"]);
    assert!(fail(&["sae", "convert", &sae, &model, "--force"]).contains("left alone"));

    let info = json(&["sae", "info", &archive, "--json"]);
    assert_eq!((info["d_in"].as_u64(), info["format"].as_str()), (Some(32), Some("gemma-scope")));

    let common = ["--model", &model, "--data", &data];
    let measure = |sae: &str, more: &[&str]| {
        json(&[&["sae", "evaluate", "--sae", sae, "--json"], &common[..], more].concat())
    };
    let measured = measure(&sae, &["--tokens", "2000"]);
    assert!(measured["explained_variance"].as_f64().unwrap() > 0.0, "{measured}");
    // The archive says nothing of its site, which then has to be named.
    let refused = [&["sae", "evaluate", "--sae", &archive], &common[..]].concat();
    assert!(fail(&refused).contains("--site"));
    let same = measure(&archive, &["--tokens", "2000", "--site", "resid_post:0"]);
    assert_eq!(same["mse"], measured["mse"]);
    let refused =
        [&["sae", "evaluate", "--sae", &sae, "--site", "resid_post:7"], &common[..]].concat();
    assert!(fail(&refused).contains("resid_post:7"));

    succeed(
        &[&["sae", "dashboard", "--sae", &sae, "--out", &page, "--tokens", "1000"], &common[..]]
            .concat(),
    );
    assert!(fs::read_to_string(&page).unwrap().contains("Search features"));

    // Features of the decoder's own directions, in a file.
    let (input, output) = (path("decoder.safetensors"), path("features.safetensors"));
    fs::copy(Path::new(&sae).join("sae_weights.safetensors"), &input).unwrap();
    let encode = ["sae", "encode", "--sae", &sae, "--input", &input, "--out", &output];
    assert!(succeed(&[&encode[..], &["--tensor", "W_dec"]].concat()).contains("[128, 128]"));
    assert!(fail(&[&encode[..], &["--tensor", "W_enc"]].concat()).contains("width 32"));
    assert!(fail(&[&encode[..], &["--tensor", "none"]].concat()).contains("no tensor `none`"));

    // What `fpo activations` writes: the features of its activations, and its columns beside them.
    let (activations, texts) = (path("activations.safetensors"), path("texts.txt"));
    fs::write(&texts, "Say hi.\nReverse: owl, fox.\n").unwrap();
    let site = ["--site", "resid_post:0", "--data", &texts, "--out", &activations];
    succeed(&[&["activations", "--model", &model], &site[..]].concat());
    let encode = ["sae", "encode", "--sae", &sae, "--input", &activations, "--out", &output];
    succeed(&encode);
    let [before, after] = [&activations, &output].map(|path| fs::read(path).unwrap());
    let [before, after] =
        [&before, &after].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
    let features = after.tensor("activations").unwrap();
    assert_eq!(features.shape(), [before.tensor("tokens").unwrap().shape()[0], 128]);
    for column in ["tokens", "sequence", "position", "special", "response"] {
        let [a, b] = [&before, &after].map(|file| file.tensor(column).unwrap());
        assert!(a.dtype() == b.dtype() && a.data() == b.data(), "{column} differs");
    }
    let refused = fail(&["sae", "encode", "--sae", &sae, "--input", &input, "--out", &input]);
    assert!(refused.contains("would replace the input"), "{refused}");
}

#[test]
fn training_several_sites_resumes_exactly() {
    if skip_when_quick("training_several_sites_resumes_exactly") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [model, data, _] = run(folder.path());
    let start = ["sae", "train", "--recipe", "smoke", "--model", &model, "--data", &data];
    let sites = ["--site", "mlp_out:1", "--site", "attn_z:0", "--set", "sae.training.steps=400"];
    let train = |out: &str, more: &[&'static str]| {
        let out = folder.path().join(out);
        let mut args: Vec<String> =
            start.iter().chain(&sites).chain(more).map(|s| s.to_string()).collect();
        args.extend(["--out".to_owned(), arg(&out).to_owned()]);
        args
    };
    let strings = |args: &[String]| args.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    let call = |args: &[String]| succeed(&strings(args).split('\n').collect::<Vec<_>>());
    call(&train("whole", &[]));
    let files = ["mlp_out_1", "attn_z_0"].map(|site| format!("{site}/sae_weights.safetensors"));
    let weights =
        |out: &str| files.clone().map(|file| fs::read(folder.path().join(out).join(file)).unwrap());

    let args = train("killed", &[]);
    let mut child = fpo(&strings(&args).split('\n').collect::<Vec<_>>()).spawn().unwrap();
    let metrics = folder.path().join("killed.checkpoints/metrics.jsonl");
    let begun = Instant::now();
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 60 {
        assert!(begun.elapsed() < PATIENCE && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    let other = train("killed", &["--resume", "--set", "sae.training.target_l0=9"]);
    assert!(fail(&strings(&other).split('\n').collect::<Vec<_>>()).contains("(sae)"));
    assert!(call(&train("killed", &["--resume"])).contains("resumes from step"));
    assert!(weights("whole") == weights("killed"), "a resumed training ended elsewhere");
    assert!(!folder.path().join("killed.checkpoints").exists());

    let twice = train("twice", &["--site", "attn_z:0"]);
    assert!(fail(&strings(&twice).split('\n').collect::<Vec<_>>()).contains("named twice"));
}
