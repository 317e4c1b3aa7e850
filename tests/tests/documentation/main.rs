//! Every command in the documentation is one that the program takes, and every link leads somewhere.
//!
//! The oracle is the program: it ends with status 2 on a command line that it doesn't understand.

mod commands;
mod docker;

use std::{
    fs,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// A command that still runs by then was understood, and is ended.
const LONG: Duration = Duration::from_secs(5);

/// An assignment that no settings take, so that a run ends before it starts, after all assignments before it were understood.
const WRONG: [&str; 2] = ["--set", "wrong"];

#[test]
fn the_program_takes_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let printed = commands::printed(&[
        "cargo xtask fpo -- ",
        "cargo xtask train",
        "cargo xtask compare",
        "cargo xtask study",
        "fpo ",
    ]);
    let mut tried = 0;
    for commands::Printed { page, words } in printed {
        let own: Vec<&str> = words.iter().map(String::as_str).filter(|w| *w != "--nvrtc").collect();
        let args = match own[..] {
            ["cargo", "xtask", "fpo", "--", ref args @ ..] => args,
            ["cargo", "xtask", ref args @ ..] => args,
            // A name, not a command.
            ["fpo", _] | ["fpo", "sae" | "features" | "bench" | "data", _] => continue,
            ["fpo", ref args @ ..] => args,
            _ => continue,
        };
        let is_run = ["train", "compare", "study"].contains(&args[0])
            && !args.iter().any(|arg| arg.starts_with("--help") || *arg == "--print-plan");
        // A run opens its device before it reads its settings, and this program may have been built for the CPU only.
        let args = args.iter().map(|arg| if is_run && *arg == "cuda" { "cpu" } else { arg });
        let mut child = Command::new(env!("CARGO_BIN_EXE_fpo-under-test"))
            .args(args)
            .args(is_run.then_some(WRONG).into_iter().flatten())
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            match begun.elapsed() < LONG {
                true => sleep(Duration::from_millis(10)),
                false => child.kill().unwrap(),
            }
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let where_ = format!("{}: {}\n{said}", page.display(), words.join(" "));
        assert_ne!(output.status.code(), Some(2), "{where_}");
        assert!(!is_run || said.contains("--set wrong"), "{where_}");
        tried += 1;
    }
    assert!(tried > 20, "only {tried} commands were found");
}

#[test]
fn every_link_leads_to_a_file() {
    let mut links = 0;
    for page in commands::pages() {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            let file = target.split('#').next().unwrap_or(target);
            let path = page.parent().unwrap().join(file);
            assert!(path.exists(), "{} links to {target}", page.display());
            links += 1;
        }
    }
    assert!(links > 20, "only {links} links were found");
}
