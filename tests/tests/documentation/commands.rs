//! The commands that the documentation prints. The launcher's tests read them from here too.

use std::fs;
use std::path::{Path, PathBuf};

/// A command as it is printed, and the page it is on.
pub struct Printed {
    pub page: PathBuf,
    pub words: Vec<String>,
}

/// All pages of the documentation.
pub fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut pages: Vec<PathBuf> = [root, &root.join("docs/src"), &root.join("datasets")]
        .into_iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.sort();
    pages
}

/// The commands that begin with one of `programs`, in `sh` blocks and in code between backticks. Those with an ellipsis stand for
/// others and are left out.
pub fn printed(programs: &[&str]) -> Vec<Printed> {
    let mut found = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap().replace("\\\n", " ");
        for code in code(&text).into_iter().filter(|code| !code.contains('…')) {
            let words = words(code);
            let line = words.join(" ");
            if programs.iter().any(|program| line.starts_with(program)) {
                found.push(Printed { page: page.clone(), words });
            }
        }
    }
    found
}

/// Lines of `sh` blocks, and what stands between backticks elsewhere.
fn code(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (i, part) in text.split("```").enumerate() {
        match (i % 2, part.split_once('\n')) {
            (1, Some(("sh", block))) => found.extend(block.lines()),
            (1, _) => {}
            _ => found.extend(part.split('`').skip(1).step_by(2)),
        }
    }
    found
}

/// The words of a line of shell, up to a comment; quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (i, part) in line.split('"').enumerate() {
        if i % 2 == 1 {
            words.push(part.to_owned());
            continue;
        }
        for word in part.split_whitespace() {
            if word.starts_with('#') {
                return words;
            }
            words.push(word.to_owned());
        }
    }
    words
}
