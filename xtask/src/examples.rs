//! Runs every program in an `examples/` folder of the workspace on the CPU, so that none of them goes stale.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::launch::{Error, cargo, root};

/// A program that a package shows its use with.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    package: String,
    name: String,
    /// Cargo features without which cargo leaves it out, silently.
    required: Vec<String>,
}

/// Builds all examples with one command and runs them one after another, up to the first that fails.
///
/// The features of the whole workspace are those of the tests, so that nothing is compiled a second time: `cargo run --package`
/// would compile Burn again for the features of each package.
pub fn run() -> Result<(), Error> {
    let metadata = json_lines(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let build = ["build", "--release", "--workspace", "--examples", "--message-format"];
    let built = built(&json_lines(cargo().args(build).arg("json-render-diagnostics"))?);
    for example in metadata.iter().flat_map(declared) {
        let Example { package, name, required } = example;
        let Some(program) = built.get(&(package.clone(), name.clone())) else {
            if required.is_empty() {
                return Err(Error::ExampleNotBuilt { package, name });
            }
            println!(
                "-- {name} of {package} skipped: it needs the features {}",
                required.join(", ")
            );
            continue;
        };
        println!("-- {name} of {package}");
        let status = Command::new(program).current_dir(root()).status().map_err(Error::Program)?;
        if !status.success() {
            return Err(Error::Example { package, name, status });
        }
    }
    Ok(())
}

/// Runs cargo, whose errors go to the terminal, and reads the JSON that it prints.
fn json_lines(command: &mut Command) -> Result<Vec<Value>, Error> {
    let output =
        command.current_dir(root()).stderr(Stdio::inherit()).output().map_err(Error::Cargo)?;
    if !output.status.success() {
        return Err(Error::Build(output.status));
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    Ok(stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The examples in what `cargo metadata` prints.
fn declared(metadata: &Value) -> Vec<Example> {
    let mut found = Vec::new();
    for package in items(&metadata["packages"]) {
        for target in items(&package["targets"]).filter(|target| is_example(target)) {
            let required = items(&target["required-features"]).map(text).collect();
            let (package, name) = (text(&package["name"]), text(&target["name"]));
            found.push(Example { package, name, required });
        }
    }
    found
}

/// Where the examples lie that a build made, by package and name.
fn built(messages: &[Value]) -> BTreeMap<(String, String), PathBuf> {
    let artifacts = messages.iter().filter(|m| m["reason"] == "compiler-artifact");
    let examples = artifacts.filter(|m| is_example(&m["target"]));
    let programs = examples.filter_map(|m| {
        let executable = PathBuf::from(m["executable"].as_str()?);
        Some(((package_name(m["package_id"].as_str()?), text(&m["target"]["name"])), executable))
    });
    programs.collect()
}

/// The package's name in an id such as `path+file:///fpo/crates/ops#fpo-ops@0.1.0`, or `…/xtask#0.1.0` where the folder has it.
fn package_name(id: &str) -> String {
    let (folder, rest) = id.rsplit_once('#').unwrap_or(("", id));
    let last = || folder.rsplit('/').next().unwrap_or_default();
    rest.split_once('@').map_or_else(last, |(name, _)| name).to_owned()
}

fn is_example(target: &Value) -> bool {
    items(&target["kind"]).any(|kind| kind == "example")
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn examples_are_found_with_the_features_they_need() {
        let metadata = json!({ "packages": [
            { "name": "fpo-ops", "targets": [
                { "name": "fpo_ops", "kind": ["lib"] },
                { "name": "attention", "kind": ["example"], "required-features": ["flex"] },
            ] },
            { "name": "fpo-losses", "targets": [{ "name": "one_loss", "kind": ["example"] }] },
        ] });
        let example = |package: &str, name: &str, required: &[&str]| Example {
            package: package.to_owned(),
            name: name.to_owned(),
            required: required.iter().map(|feature| (*feature).to_owned()).collect(),
        };
        let expected =
            [example("fpo-ops", "attention", &["flex"]), example("fpo-losses", "one_loss", &[])];
        assert_eq!(declared(&metadata), expected);
    }

    #[test]
    fn programs_are_found_among_the_messages_of_a_build() {
        let artifact = |id: &str, name: &str, kind: &str, executable: Option<&str>| {
            json!({
                "reason": "compiler-artifact", "package_id": id, "executable": executable,
                "target": { "name": name, "kind": [kind] },
            })
        };
        let messages = [
            artifact("path+file:///fpo/crates/ops#fpo-ops@0.1.0", "fpo_ops", "lib", None),
            artifact(
                "path+file:///fpo/crates/ops#fpo-ops@0.1.0",
                "attention",
                "example",
                Some("/t/attention"),
            ),
            artifact("path+file:///fpo/plan#0.1.0", "count", "example", Some("/t/count")),
            json!({ "reason": "build-finished", "success": true }),
        ];
        let key = |package: &str, name: &str| (package.to_owned(), name.to_owned());
        let expected = [
            (key("fpo-ops", "attention"), PathBuf::from("/t/attention")),
            (key("plan", "count"), PathBuf::from("/t/count")),
        ];
        assert_eq!(built(&messages), BTreeMap::from(expected));
    }
}
