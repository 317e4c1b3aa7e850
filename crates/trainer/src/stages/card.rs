//! The model cards of a run: `README.md` in each model that it saves.

use std::path::Path;

use anyhow::Result;
use fpo_report::{ModelCard, TableRow};

use super::{StageName, prepare::Prepared, report::write_page};
use crate::{run::Run, trained::ADAPTER_FOLDER};

/// Writes the card of the model in `folder`, and of its adapters where there are any. `metrics` are empty until they are measured.
///
/// # Errors
/// The disk's.
pub fn write(
    run: &Run,
    prepared: &Prepared,
    stage: StageName,
    folder: &Path,
    metrics: &[TableRow],
) -> Result<()> {
    let s = &run.settings;
    let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into();
    let base: Option<String> = s.model.path.as_deref().map(name);
    let data: String = s.data.train.as_deref().map_or("built-in data".into(), name);
    let method = match stage {
        StageName::Sft => "supervised fine-tuning".to_owned(),
        _ => s.align.method.to_string(),
    };
    let facts = [
        ("Method", method.clone()),
        ("Made from", base.clone().unwrap_or("random weights".into())),
        ("Data", data.clone()),
        ("Examples, pairs, held out", counts(prepared)),
        ("Hash of the prepared data", prepared.stage.hash.clone()),
        ("Precision", s.model.precision.to_string()),
        ("Seed", s.seed.to_string()),
        ("Made with", format!("fpo {}", env!("CARGO_PKG_VERSION"))),
    ];
    let mut card = ModelCard {
        title: format!("{method} on {data}"),
        library: "transformers".into(),
        base_model: base,
        tags: vec!["fpo".into(), method],
        about: "A model in Hugging Face's layout, aligned or fine-tuned by FPO. The settings below repeat it.".into(),
        facts: facts.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        metrics: metrics.to_vec(),
        settings_toml: s.to_toml()?,
    };
    write_page(&folder.join("README.md"), &card.markdown())?;
    let adapter = folder.join(ADAPTER_FOLDER);
    if adapter.is_dir() {
        card.library = "peft".into();
        card.about = "Adapters (LoRA) in PEFT's format, of the model in the folder above.".into();
        write_page(&adapter.join("README.md"), &card.markdown())?;
    }
    Ok(())
}

fn counts(prepared: &Prepared) -> String {
    format!("{}, {}, {}", prepared.sft.len(), prepared.train.len(), prepared.held_out.len())
}
