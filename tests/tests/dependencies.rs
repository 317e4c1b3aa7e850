//! Holds the shape of the workspace: who may depend on whom, who may choose a backend, how large a crate may grow, and that every
//! crate states its invariants.
//!
//! The oracle is [`TABLE`]. Everything is read from manifests and sources, so the test takes seconds and no Burn.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Burn's features and crates that bring a backend along.
const BACKENDS: [&str; 12] = [
    "cpu", "cubecl", "cuda", "flex", "metal", "ndarray", "remote", "rocm", "tch", "vulkan",
    "webgpu", "wgpu",
];

/// Every crate with the crates of this workspace that it may use, from the bottom up.
const TABLE: &[(&str, &[&str])] = &[
    ("fpo-products", &[]),
    ("fpo-ops", &["fpo-products"]),
    ("fpo-files", &[]),
    ("fpo-data", &["fpo-files"]),
    ("fpo-datasets", &[]),
    ("fpo-report", &[]),
    ("fpo-track", &["fpo-files"]),
    ("fpo-losses", &["fpo-ops"]),
    ("fpo-torch-file", &[]),
    ("fpo-transformer", &["fpo-ops", "fpo-torch-file"]),
    ("fpo-sae", &["fpo-ops", "fpo-torch-file"]),
    ("fpo-device", &["fpo-ops"]),
    ("fpo-metrics", &["fpo-losses", "fpo-report", "fpo-track"]),
    (
        "fpo-config",
        &["fpo-data", "fpo-losses", "fpo-metrics", "fpo-sae", "fpo-track", "fpo-transformer"],
    ),
    ("fpo-plan", &["fpo-config", "fpo-device", "fpo-losses", "fpo-transformer"]),
    ("fpo-optim", &["fpo-config", "fpo-ops", "fpo-transformer"]),
    (
        "fpo-interp",
        &[
            "fpo-data",
            "fpo-device",
            "fpo-losses",
            "fpo-ops",
            "fpo-report",
            "fpo-sae",
            "fpo-track",
            "fpo-transformer",
        ],
    ),
    (
        "fpo-run",
        &[
            "fpo-config",
            "fpo-data",
            "fpo-device",
            "fpo-interp",
            "fpo-ops",
            "fpo-plan",
            "fpo-transformer",
        ],
    ),
    (
        "fpo-pages",
        &[
            "fpo-config",
            "fpo-data",
            "fpo-metrics",
            "fpo-report",
            "fpo-run",
            "fpo-track",
            "fpo-losses",
        ],
    ),
    ("fpo-trainer", LIBRARIES.split_at(19).0),
    ("fpo-bench", LIBRARIES.split_at(20).0),
    ("fpo-study", LIBRARIES.split_at(20).0),
    ("fpo-judge", &["fpo-files"]),
    ("fpo-benchmarks", &["fpo-files"]),
    ("fpo-cli", LIBRARIES.split_at(24).0),
    ("fpo-tests", LIBRARIES),
    ("xtask", &[]),
];

/// All that may be depended on, in the order of the table.
const LIBRARIES: &[&str] = &[
    "fpo-products",
    "fpo-ops",
    "fpo-files",
    "fpo-data",
    "fpo-datasets",
    "fpo-report",
    "fpo-track",
    "fpo-losses",
    "fpo-torch-file",
    "fpo-transformer",
    "fpo-sae",
    "fpo-device",
    "fpo-metrics",
    "fpo-config",
    "fpo-plan",
    "fpo-optim",
    "fpo-interp",
    "fpo-run",
    "fpo-pages",
    "fpo-trainer",
    "fpo-bench",
    "fpo-study",
    "fpo-judge",
    "fpo-benchmarks",
    "fpo-cli",
];

/// Lines of Rust in the trainer's `src`, at most: it joins the other crates and leaves to them what they can do.
const TRAINER_LINES: usize = 3000;
/// No crate holds more than one in this many of the lines in all `src` folders.
const LARGEST_SHARE: usize = 5;

/// Crates that know no tensor.
const WITHOUT_BURN: [&str; 9] = [
    "fpo-files",
    "fpo-data",
    "fpo-datasets",
    "fpo-report",
    "fpo-torch-file",
    "fpo-benchmarks",
    "fpo-judge",
    "fpo-track",
    "xtask",
];
/// Crates that may offer a feature which compiles a backend in: `products` and `ops` for their own paths, `device` to open devices, the binary for its
/// users, the tests to run on it.
const MAY_OFFER_BACKENDS: [&str; 5] =
    ["fpo-products", "fpo-ops", "fpo-device", "fpo-cli", "fpo-tests"];
/// Crates that a person builds, so a backend may be on by default.
const MAY_DEFAULT_TO_A_BACKEND: [&str; 2] = ["fpo-cli", "fpo-tests"];

/// What a crate may use of this workspace.
fn allowed(krate: &str) -> Option<&'static [&'static str]> {
    TABLE.iter().find(|(name, _)| *name == krate).map(|(_, allowed)| *allowed)
}

#[test]
fn the_arrows_only_go_down() {
    for (row, (name, allowed)) in TABLE.iter().enumerate() {
        for to in *allowed {
            let above = TABLE[..row].iter().any(|(name, _)| name == to);
            assert!(above, "{name} -> {to}: {to} has to come before {name} in the table");
        }
    }
}

/// Prints the table on every run, not only on failure.
#[test]
fn no_crate_outgrows_its_place() {
    let members = members();
    let names: Vec<&str> = members.keys().map(String::as_str).collect();
    let lines: BTreeMap<&str, usize> = members
        .iter()
        .map(|(name, (folder, _))| (name.as_str(), lines(&folder.join("src"))))
        .collect();
    let total: usize = lines.values().sum();

    let mut table = format!("{:<16}{:>7}{:>9}  uses\n", "crate", "lines", "share");
    for (name, _) in TABLE {
        let Some((_, manifest)) = members.get(*name) else { continue };
        let share = 100.0 * lines[name] as f64 / total as f64;
        let mut uses: Vec<&str> = dependencies(manifest)
            .filter(|(kind, to, _)| !kind.contains("dev-") && names.contains(to))
            .map(|(_, to, _)| to.trim_start_matches("fpo-"))
            .collect();
        uses.sort_unstable();
        table += &format!("{name:<16}{:>7}{share:>7.1} %  {}\n", lines[name], uses.join(", "));
    }
    table += &format!("{:<16}{total:>7}\n", "all");
    // The test harness captures println!, but not this.
    io::stdout().write_all(table.as_bytes()).unwrap();

    let found = too_large(&lines);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_crate_that_is_too_large_is_named() {
    let ten_crates = |largest: usize| {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
        names.into_iter().zip((0..9).map(|_| 1000).chain([largest])).collect()
    };
    let cases: [(BTreeMap<&str, usize>, &[&str]); 4] = [
        (ten_crates(2250), &[]),
        (ten_crates(2251), &["j has 2251 of 11251 lines"]),
        (BTreeMap::from([("fpo-trainer", 3000), ("a", 12_000)]), &["a has 12000 of 15000 lines"]),
        (
            BTreeMap::from([("fpo-trainer", 3001), ("a", 12_004)]),
            &["a has 12004 of 15005 lines", "fpo-trainer has 3001 lines, 3000 at most"],
        ),
    ];
    for (lines, expected) in cases {
        let found = too_large(&lines);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }
}

#[test]
fn dependencies_point_the_allowed_way() {
    let members = members();
    let names: Vec<&str> = members.keys().map(String::as_str).collect();
    let found: Vec<String> = members
        .values()
        .flat_map(|(_, manifest)| [edges(manifest, &names), backends(manifest)].concat())
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));

    let workspace = read(&root().join("Cargo.toml"));
    let burn = &workspace["workspace"]["dependencies"]["burn"];
    assert_eq!(
        burn.get("default-features"),
        Some(&Value::Boolean(false)),
        "the workspace's burn has default features"
    );
    assert_eq!(
        backends_in(burn),
        Vec::<String>::new(),
        "every crate that uses the workspace's burn would get these"
    );
}

#[test]
fn every_crate_opens_with_its_invariants() {
    let silent: Vec<String> = members()
        .into_iter()
        .filter_map(|(name, (folder, _))| {
            let file = ["src/lib.rs", "src/main.rs"]
                .map(|file| folder.join(file))
                .into_iter()
                .find(|file| file.is_file());
            let Some(file) = file else {
                return Some(format!("{name} has neither src/lib.rs nor src/main.rs"));
            };
            let source = fs::read_to_string(&file).unwrap();
            let mut opening = source.lines().take_while(|line| line.starts_with("//!"));
            let file = file.strip_prefix(root()).unwrap_or(&file).display();
            (!opening.any(|line| line.contains("Invariants"))).then(|| {
                format!("{name}: the //! comment that opens {file} has no line \"Invariants\"")
            })
        })
        .collect();
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}

/// The rules themselves, applied to manifests that break them.
#[test]
fn a_wrong_manifest_is_named() {
    let names: Vec<&str> = TABLE.iter().map(|(name, _)| *name).collect();
    let cases = [
        ("fpo-sae", "[dependencies]\nfpo-ops.workspace = true\nburn.workspace = true", vec![]),
        (
            "fpo-sae",
            "[dev-dependencies]\nburn = { workspace = true, features = [\"flex\"] }",
            vec![],
        ),
        ("fpo-ops", "[features]\nflex = [\"burn/flex\"]", vec![]),
        (
            "fpo-cli",
            "[features]\ndefault = [\"flex\"]\nflex = [\"burn/flex\", \"fpo-ops/flex\"]",
            vec![],
        ),
        ("fpo-device", "[features]\ncuda = [\"burn/cuda\"]", vec![]),
        (
            "fpo-trainer",
            "[features]\ndefault = [\"flex\"]\nflex = [\"burn/flex\", \"fpo-ops/flex\"]",
            vec!["fpo-trainer: feature flex", "fpo-trainer: default feature flex"],
        ),
        (
            "fpo-report",
            "[dependencies]\nfpo-losses.workspace = true",
            vec!["fpo-report -> fpo-losses"],
        ),
        (
            "fpo-interp",
            "[dependencies]\nfpo-trainer.workspace = true",
            vec!["fpo-interp -> fpo-trainer"],
        ),
        ("fpo-bench", "[dependencies]\nfpo-cli.workspace = true", vec!["fpo-bench -> fpo-cli"]),
        (
            "fpo-sae",
            "[dependencies]\nfpo-transformer.workspace = true",
            vec!["fpo-sae -> fpo-transformer"],
        ),
        (
            "fpo-sae",
            "[dev-dependencies]\nfpo-data = { path = \"../data\" }",
            vec!["fpo-sae -> fpo-data"],
        ),
        ("fpo-ops", "[build-dependencies]\nfpo-sae.workspace = true", vec!["fpo-ops -> fpo-sae"]),
        (
            "fpo-losses",
            "[target.'cfg(unix)'.dependencies]\nfpo-data.workspace = true",
            vec!["fpo-losses -> fpo-data"],
        ),
        (
            "fpo-ops",
            "[dependencies]\ncore = { package = \"fpo-losses\", path = \"x\" }",
            vec!["fpo-ops -> fpo-losses"],
        ),
        (
            "fpo-trainer",
            "[dependencies]\nxtask = { path = \"x\" }\nfpo-sae = \"1\"",
            vec!["fpo-trainer -> xtask"],
        ),
        ("xtask", "[dependencies]\nburn.workspace = true", vec!["xtask -> burn"]),
        ("fpo-data", "[dev-dependencies]\nburn-flex = \"0.22\"", vec!["fpo-data -> burn-flex"]),
        ("fpo-new", "", vec!["fpo-new is not in the table"]),
        (
            "fpo-sae",
            "[dependencies]\nburn = { workspace = true, features = [\"wgpu\"] }",
            vec!["fpo-sae -> burn: wgpu"],
        ),
        ("fpo-sae", "[dependencies]\nburn-cuda = \"0.22\"", vec!["fpo-sae -> burn-cuda"]),
        (
            "fpo-sae",
            "[dependencies]\nfpo-ops = { workspace = true, features = [\"flex\"] }",
            vec!["fpo-sae -> fpo-ops: flex"],
        ),
        ("fpo-sae", "[features]\nfast = [\"burn/cuda\"]", vec!["fpo-sae: feature fast"]),
        (
            "fpo-ops",
            "[features]\ndefault = [\"cpu\"]\ncpu = [\"burn/flex\"]",
            vec!["fpo-ops: default feature cpu"],
        ),
    ];
    for (name, manifest, expected) in cases {
        let manifest: Table = format!("[package]\nname = \"{name}\"\n{manifest}").parse().unwrap();
        let found = [edges(&manifest, &names), backends(&manifest)].concat();
        assert_eq!(found.len(), expected.len(), "{manifest}\n{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{manifest}\n{found:?}");
        }
    }
}

/// Crates that exceed their size.
fn too_large(lines: &BTreeMap<&str, usize>) -> Vec<String> {
    let total: usize = lines.values().sum();
    let mut found = Vec::new();
    for (name, lines) in lines {
        if lines * LARGEST_SHARE > total {
            found.push(format!(
                "{name} has {lines} of {total} lines, more than one in {LARGEST_SHARE}: move a subject out of it"
            ));
        }
        if *name == "fpo-trainer" && *lines > TRAINER_LINES {
            found.push(format!(
                "{name} has {lines} lines, {TRAINER_LINES} at most: move a subject out of it"
            ));
        }
    }
    found
}

/// Lines of all Rust files in a folder and its subfolders.
fn lines(folder: &Path) -> usize {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let count = |path: PathBuf| match path.extension() {
        _ if path.is_dir() => lines(&path),
        Some(extension) if extension == "rs" => fs::read_to_string(&path).unwrap().lines().count(),
        _ => 0,
    };
    entries.map(|entry| count(entry.unwrap().path())).sum()
}

/// Dependencies that point the wrong way. Those of tests and build scripts count too.
fn edges(manifest: &Table, members: &[&str]) -> Vec<String> {
    let name = name(manifest);
    let Some(allowed) = allowed(name) else {
        return vec![format!("{name} is not in the table of allowed dependencies")];
    };
    dependencies(manifest)
        .filter_map(|(kind, to, _)| {
            let burn = to == "burn" || to.starts_with("burn-");
            if members.contains(&to) && !allowed.contains(&to) {
                Some(format!("{name} -> {to} ({kind}): it may use {allowed:?} of this workspace"))
            } else if burn && WITHOUT_BURN.contains(&name) {
                Some(format!("{name} -> {to} ({kind}): it must not use Burn"))
            } else {
                None
            }
        })
        .collect()
}

/// Places where a crate chooses a backend although it may not. Dev-dependencies don't count, because tests have to run on one.
fn backends(manifest: &Table) -> Vec<String> {
    let name = name(manifest);
    let mut found = Vec::new();
    if !MAY_DEFAULT_TO_A_BACKEND.contains(&name) {
        for (kind, to, dependency) in
            dependencies(manifest).filter(|(kind, ..)| !kind.contains("dev-"))
        {
            let is_ours = to == "burn" || to.starts_with("fpo-");
            let chosen = if is_ours { backends_in(dependency) } else { Vec::new() };
            let optional = dependency.get("optional") == Some(&Value::Boolean(true));
            let is_backend = to.strip_prefix("burn-").is_some_and(is_backend);
            if !chosen.is_empty() {
                found.push(format!(
                    "{name} -> {to}: {} ({kind}): a library chooses no backend",
                    chosen.join(", ")
                ));
            } else if is_backend && !optional && !WITHOUT_BURN.contains(&name) {
                found.push(format!("{name} -> {to} ({kind}): a library chooses no backend"));
            }
        }
    }
    let Some(features) = manifest.get("features").and_then(Value::as_table) else {
        return found;
    };
    let with_backend =
        |feature: &str| strings(features.get(feature)).iter().any(|part| names_backend(part));
    for feature in features.keys().filter(|feature| *feature != "default" && with_backend(feature))
    {
        if !MAY_OFFER_BACKENDS.contains(&name) {
            found.push(format!("{name}: feature {feature} brings a backend; only {MAY_OFFER_BACKENDS:?} may offer one"));
        }
    }
    if !MAY_DEFAULT_TO_A_BACKEND.contains(&name) {
        let on = strings(features.get("default"));
        for feature in on.iter().filter(|feature| names_backend(feature) || with_backend(feature)) {
            found.push(format!(
                "{name}: default feature {feature} brings a backend; a library chooses none"
            ));
        }
    }
    found
}

/// Whether a part of a feature, such as `burn/flex`, `burn?/cuda` or `dep:burn-wgpu`, turns a backend on.
fn names_backend(part: &str) -> bool {
    match (part.strip_prefix("dep:burn-"), part.split_once('/')) {
        (Some(krate), _) => is_backend(krate),
        (None, Some((krate, feature))) => {
            let krate = krate.trim_end_matches('?');
            (krate.starts_with("burn") || krate.starts_with("fpo-")) && is_backend(feature)
        }
        (None, None) => false,
    }
}

fn is_backend(name: &str) -> bool {
    BACKENDS.contains(&name)
}

fn backends_in(dependency: &Value) -> Vec<String> {
    strings(dependency.get("features")).into_iter().filter(|feature| is_backend(feature)).collect()
}

/// All dependencies of a manifest as (table, package, entry), including platform-specific ones.
fn dependencies(manifest: &Table) -> impl Iterator<Item = (String, &str, &Value)> {
    const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flatten();
    let places = targets
        .filter_map(|(target, value)| Some((format!("target.{target}."), value.as_table()?)));
    std::iter::once((String::new(), manifest)).chain(places).flat_map(|(place, table)| {
        KINDS.into_iter().flat_map(move |kind| {
            let place = format!("{place}{kind}");
            table.get(kind).and_then(Value::as_table).into_iter().flatten().map(
                move |(key, entry)| {
                    let package = entry.get("package").and_then(Value::as_str).unwrap_or(key);
                    (place.clone(), package, entry)
                },
            )
        })
    })
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let parts = value.and_then(Value::as_array).into_iter().flatten();
    parts.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn name(manifest: &Table) -> &str {
    manifest["package"]["name"].as_str().expect("a package has a name")
}

/// The folder and manifest of every member, by name.
fn members() -> BTreeMap<String, (PathBuf, Table)> {
    let workspace = read(&root().join("Cargo.toml"));
    let mut members = BTreeMap::new();
    for pattern in strings(workspace["workspace"].get("members")) {
        let folders = match pattern.strip_suffix("/*") {
            Some(parent) => fs::read_dir(root().join(parent))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect(),
            None => vec![root().join(pattern)],
        };
        for folder in folders.into_iter().filter(|folder| folder.join("Cargo.toml").is_file()) {
            let manifest = read(&folder.join("Cargo.toml"));
            members.insert(name(&manifest).to_owned(), (folder, manifest));
        }
    }
    let missing: Vec<&str> =
        TABLE.iter().map(|(name, _)| *name).filter(|name| !members.contains_key(*name)).collect();
    assert!(missing.is_empty(), "in the table and not in the workspace: {missing:?}");
    members
}

fn read(path: &Path) -> Table {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace")
}
