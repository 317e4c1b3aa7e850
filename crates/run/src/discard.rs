//! What a call would discard.

use std::path::PathBuf;

/// The folders of the stages, in their order: each depends on those before it.
pub(crate) const ORDER: [&str; 6] = ["prepared", "sft", "sae", "reference", "align", "evaluate"];

/// A stage that isn't up to date.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.message())]
pub struct Stale {
    /// The first such stage.
    pub stage: String,
    /// The run's folder.
    pub folder: PathBuf,
    /// What differs from what is in the folder.
    pub changes: String,
    /// Finished stages and checkpoints that would be lost; none where the stage was never made.
    pub discards: Vec<String>,
}

impl Stale {
    fn message(&self) -> String {
        let Self { stage, folder, changes, discards } = self;
        let folder = folder.display();
        if discards.is_empty() {
            return format!("stage {stage}: {folder} doesn't have it yet");
        }
        format!(
            "stage {stage}: the work in {folder} was made from other settings or data:\n  {changes}\nThis call would discard {}. To \
             continue with the folder's own settings, leave out --recipe, --config and the --set options that differ; to keep both, \
             choose another --run; to make the stages again, add --overwrite",
            discards.join(", ")
        )
    }

    /// For a note.
    pub(crate) fn overwrites(&self) -> String {
        format!("discards {} (--overwrite)", self.discards.join(", "))
    }
}
