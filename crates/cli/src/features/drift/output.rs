//! What was found, as a page, a table in CSV, a table for the terminal, and JSON.

use std::{
    collections::BTreeSet,
    fmt::Write,
    path::{Component, Path, PathBuf},
};

use comfy_table::{CellAlignment, Table, presets};
use fpo_interp::drift::{self, FeatureDrift, by_change, excerpt};
use fpo_report::{
    Unit,
    drift::{Change, Feature, Level, Page, Place, render},
};
use serde_json::{Value, json};

use super::inputs::{Inputs, Opened};

/// Features of the terminal's table and of JSON.
const PRINTED: usize = 15;

/// A change of so many standard errors is counted as certain: of 16,384 features that didn't change, one would get there by a normal
/// distribution, and seven by Student's with [`ENOUGH`] texts.
const CERTAIN: f64 = 4.0;

/// Texts from which on standard errors are taken at their word.
const ENOUGH: usize = 30;

/// Everything that was measured, one drift per aligned model.
pub struct Found<'a> {
    pub inputs: &'a Inputs,
    pub opened: &'a Opened,
    pub drifts: &'a [drift::Drift],
    /// Tokens shown on either side of a changed one.
    pub context: usize,
    pub csv: Option<&'a Path>,
}

impl Found<'_> {
    fn features(&self) -> usize {
        self.opened.sae.d_sae()
    }

    /// The largest change of any aligned model.
    fn change(&self, index: usize) -> f64 {
        let sizes = self.drifts.iter().map(|drift| drift.features[index].change().abs());
        sizes.fold(0.0, f64::max)
    }

    /// The `top` features that changed most, and `more`; largest change first.
    pub fn shown(&self, top: usize, more: &[usize]) -> Vec<usize> {
        let more: BTreeSet<usize> = more.iter().copied().collect();
        let order = by_change(self.features(), |index| self.change(index)).into_iter().enumerate();
        order
            .filter(|(rank, index)| *rank < top || more.contains(index))
            .map(|(_, index)| index)
            .collect()
    }

    /// Names of the model before and of the aligned ones.
    fn names(&self) -> (String, Vec<String>) {
        let paths = std::iter::once(&self.inputs.before).chain(&self.inputs.after);
        let mut names = distinct(&paths.map(PathBuf::as_path).collect::<Vec<_>>());
        (names.remove(0), names)
    }

    /// Number of features that changed for certain; none where there are too few texts to tell.
    fn certain(&self, drift: &drift::Drift) -> Option<usize> {
        let is_certain = |feature: &&FeatureDrift| {
            let error = feature.standard_error.unwrap_or(f64::INFINITY);
            feature.change().abs() > CERTAIN * error
        };
        (drift.texts >= ENOUGH).then(|| drift.features.iter().filter(is_certain).count())
    }

    pub fn page(&self, shown: &[usize]) -> String {
        let ((before, names), first) = (self.names(), &self.drifts[0]);
        let mut facts = vec![
            ("Autoencoder".to_owned(), name(&self.inputs.sae)),
            ("Site".into(), self.opened.site.to_string()),
            ("Features".into(), thousands(self.features())),
            ("Texts".into(), thousands(first.texts)),
            ("Tokens".into(), thousands(first.tokens)),
        ];
        for (name, drift) in names.iter().zip(self.drifts) {
            let title = match names.len() {
                1 => format!("Changed by more than {CERTAIN} standard errors"),
                _ => format!("Changed by more than {CERTAIN} standard errors: {name}"),
            };
            facts.extend(self.certain(drift).map(|certain| (title, thousands(certain))));
        }
        let csv = self.csv.map(|path| format!("; {} has them all", name(path)));
        render(&Page {
            title: "What alignment changed".into(),
            subtitle: format!("{before} → {}", names.join(", ")),
            facts,
            models: names,
            features: shown.iter().map(|&index| self.feature(index)).collect(),
            choice: format!(
                "{} of {} features, those whose mean activation changed most first{}.",
                thousands(shown.len()),
                thousands(self.features()),
                csv.unwrap_or_default()
            ),
            notes: notes(first.texts),
        })
    }

    fn feature(&self, index: usize) -> Feature {
        let after = self.drifts.iter().map(|drift| {
            let feature = &drift.features[index];
            Change {
                after: level(feature.after),
                change: feature.change(),
                standard_error: feature.standard_error,
                places: feature.places.iter().map(|place| self.place(place)).collect(),
            }
        });
        let before = level(self.drifts[0].features[index].before);
        Feature { index, before, after: after.collect() }
    }

    fn place(&self, place: &drift::Place) -> Place {
        let tokens = &self.opened.texts[place.text][place.sequence].tokens;
        let tokenizer = &self.opened.before.tokenizer;
        let text = |tokens: &[u32]| tokens.iter().map(|&token| tokenizer.show(token)).collect();
        let range = excerpt(place.position, self.context, tokens.len());
        Place {
            left: text(&tokens[range.start..place.position]),
            token: text(&tokens[place.position..=place.position]),
            right: text(&tokens[place.position + 1..range.end]),
            before: place.before,
            after: place.after,
        }
    }

    /// All features in the order of their numbers.
    pub fn csv(&self) -> String {
        let mut text = "feature,mean_before,firing_before".to_owned();
        for number in 1..=self.drifts.len() {
            let end = if number == 1 { String::new() } else { format!("_{number}") };
            for column in ["mean_after", "firing_after", "change", "standard_error"] {
                let _ = write!(text, ",{column}{end}");
            }
        }
        text += "\n";
        for index in 0..self.features() {
            let before = self.drifts[0].features[index].before;
            let _ = write!(text, "{index},{},{}", before.mean, before.firing);
            for drift in self.drifts {
                let feature = &drift.features[index];
                let (after, change) = (feature.after, feature.change());
                let error = feature.standard_error.map(|e| e.to_string()).unwrap_or_default();
                let _ = write!(text, ",{},{},{change},{error}", after.mean, after.firing);
            }
            text += "\n";
        }
        text
    }

    /// The first of the features shown, for a terminal.
    pub fn table(&self, shown: &[usize]) -> Table {
        let (_, names) = self.names();
        let of = |what: &str, name: &String| match names.len() {
            1 => what.to_owned(),
            _ => format!("{what}\n{name}"),
        };
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        let mut header = vec!["Feature".to_owned(), "Before".into(), "Fires on".into()];
        for name in &names {
            header.extend([of("After", name), of("Change", name), of("Fires on", name)]);
        }
        header.push("Changed most at".into());
        table.set_header(header);
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        for &index in shown.iter().take(PRINTED) {
            let feature = self.feature(index);
            let before = feature.before;
            let mut row =
                vec![index.to_string(), format!("{:.4}", before.mean), percent(before.firing)];
            for after in &feature.after {
                let error = after.standard_error.map(|e| format!(" ± {e:.4}")).unwrap_or_default();
                row.extend([
                    format!("{:.4}", after.after.mean),
                    format!("{:+.4}{error}", after.change),
                    percent(after.after.firing),
                ]);
            }
            row.push(tokens(&feature));
            table.add_row(row);
        }
        let columns = table.column_count();
        table.column_iter_mut().take(columns - 1).for_each(|column| {
            column.set_cell_alignment(CellAlignment::Right);
        });
        table
    }

    /// A line per aligned model.
    pub fn summary(&self) -> String {
        let lines = self.names().1.into_iter().zip(self.drifts).map(|(name, drift)| {
            let over = format!("over {} tokens of {} texts", drift.tokens, drift.texts);
            match self.certain(drift) {
                Some(certain) => format!(
                    "{name}: {certain} of {} features changed by more than {CERTAIN} standard errors, {over}",
                    self.features()
                ),
                None => format!("{name}: {over}; standard errors take {ENOUGH} texts to rely on"),
            }
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    pub fn json(&self, shown: &[usize], page: &Path) -> Value {
        let models = self.inputs.after.iter().zip(self.drifts).map(|(path, drift)| {
            let of = |&index: &usize| {
                let feature = &drift.features[index];
                let FeatureDrift { before, after, standard_error, .. } = feature;
                let places = feature.places.iter().map(|place| {
                    let Place { token, before, after, .. } = self.place(place);
                    json!({ "token": token, "before": before, "after": after })
                });
                json!({
                    "feature": index,
                    "mean_before": before.mean,
                    "mean_after": after.mean,
                    "change": feature.change(),
                    "standard_error": standard_error,
                    "firing_before": before.firing,
                    "firing_after": after.firing,
                    "places": places.collect::<Vec<_>>(),
                })
            };
            json!({
                "after": path.display().to_string(),
                "changed": self.certain(drift),
                "features": shown.iter().take(PRINTED).map(of).collect::<Vec<_>>(),
            })
        });
        json!({
            "before": self.inputs.before.display().to_string(),
            "sae": self.inputs.sae.display().to_string(),
            "site": self.opened.site.to_string(),
            "d_sae": self.features(),
            "texts": self.drifts[0].texts,
            "tokens": self.drifts[0].tokens,
            "models": models.collect::<Vec<_>>(),
            "page": page.display().to_string(),
            "csv": self.csv.map(|path| path.display().to_string()),
        })
    }
}

fn notes(texts: usize) -> Vec<String> {
    let mut notes = vec![
        "Before and after are a feature's mean activation over all tokens; beneath, the share of tokens on which it is active. BOS, EOS and padding don't count, and the prompt of a pair counts once.".to_owned(),
        "A change is after − before, ± its standard error, paired over texts: both models read the same texts, and a text's tokens are not independent of each other. A grey change is within two standard errors of none.".into(),
        format!("With many features some changes look certain by chance: of 16,384 features that didn't change, about 750 are beyond two standard errors, and beyond {CERTAIN} one with hundreds of texts, seven with {ENOUGH}."),
        "A feature opens to the tokens at which its activation changed most, with the activation before and after: at most one token of a text, and one where texts begin alike. Blue rose, orange fell.".into(),
    ];
    if texts < ENOUGH {
        notes.push(format!("Standard errors take {ENOUGH} texts to rely on; these are {texts}."));
    }
    notes
}

fn level(level: drift::Level) -> Level {
    Level { mean: level.mean, firing: level.firing }
}

/// The token at which each model changed a feature most.
fn tokens(feature: &Feature) -> String {
    let first = feature.after.iter().filter_map(|after| after.places.first());
    let mut tokens: Vec<String> = first.map(|place| format!("{:?}", place.token)).collect();
    tokens.dedup();
    tokens.join(" ")
}

/// The last component of a path.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The last components of paths, as many as tell them apart.
fn distinct(paths: &[&Path]) -> Vec<String> {
    let parts: Vec<Vec<_>> = paths.iter().map(|path| path.components().collect()).collect();
    let most = parts.iter().map(Vec::len).max().unwrap_or(0);
    let names = |count: usize| -> Vec<String> {
        let last = |parts: &Vec<Component>| -> PathBuf {
            parts[parts.len().saturating_sub(count)..].iter().collect()
        };
        parts.iter().map(|parts| last(parts).display().to_string()).collect()
    };
    let differ = |names: &Vec<String>| names.iter().collect::<BTreeSet<_>>().len() == names.len();
    (1..most).map(names).find(differ).unwrap_or_else(|| names(most))
}

/// Such as 16,384.
fn thousands(number: usize) -> String {
    Unit::Plain.format(number as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_models_apart() {
        for (paths, names) in [
            (&["runs/a/sft", "runs/a/align"][..], &["sft", "align"][..]),
            (
                &["sft", "r/compare/dpo/align", "r/compare/fpo/align"],
                &["sft", "dpo/align", "fpo/align"],
            ),
            (&["/m/base", "/m/base"], &["/m/base", "/m/base"]),
            (&["a/b/c", "b/c"], &["a/b/c", "b/c"]),
        ] {
            let paths: Vec<&Path> = paths.iter().map(Path::new).collect();
            assert_eq!(distinct(&paths), names);
        }
    }
}
