//! The Dockerfile, as far as it can be read without Docker.

use std::{collections::BTreeSet, fs, path::Path};

/// Instructions of Dockerfiles (docs.docker.com/reference/dockerfile).
const INSTRUCTIONS: [&str; 17] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

#[test]
fn the_dockerfile_is_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("Dockerfile")).unwrap();
    let joined = text.replace("\\\n", " ");
    let lines: Vec<&str> =
        joined.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    assert!(lines[0].starts_with("FROM "), "{}", lines[0]);
    let mut stages = BTreeSet::new();
    for line in lines {
        let (instruction, rest) = line.split_once(' ').unwrap_or((line, ""));
        assert!(INSTRUCTIONS.contains(&instruction), "{line}");
        assert!(!rest.trim().is_empty(), "{line}");
        let words: Vec<&str> = rest.split_whitespace().collect();
        match instruction {
            "FROM" => drop(stages.insert(words.last().unwrap().to_string())),
            "ENTRYPOINT" | "CMD" => {
                serde_json::from_str::<Vec<String>>(rest).unwrap_or_else(|e| panic!("{line}: {e}"));
            }
            "COPY" => match words[0].strip_prefix("--from=") {
                Some(stage) => assert!(stages.contains(stage), "{line}: no stage {stage}"),
                None => {
                    for source in &words[..words.len() - 1] {
                        assert!(root.join(source).exists(), "{line}: no {source}");
                    }
                }
            },
            _ => {}
        }
    }
    for stage in ["build", "cpu", "cuda"] {
        assert!(stages.contains(stage), "no stage {stage}");
    }
    // The compiler is the one that the repository asks for.
    let toolchain = fs::read_to_string(root.join("rust-toolchain.toml")).unwrap();
    let toolchain: toml::Table = toml::from_str(&toolchain).unwrap();
    let channel = toolchain["toolchain"]["channel"].as_str().unwrap().trim_end_matches(".0");
    assert!(text.contains(&format!("FROM rust:{channel}-")), "another compiler than {channel}");
}
