//! `fpo study`: methods over learning rates, constants and seeds.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use fpo_run::Existing;
use fpo_study::{Part, Plan, Progress, Study as Open, carry_out, draw};

use crate::{
    interrupt,
    loaded::DeviceArg,
    streams::{out, write},
    terminal::reporter,
};

/// Tunes methods with the same number of trials each, then measures the best of each with several seeds
///
/// The held-out prompts are split in two. Every trial (a learning rate with constants) of every method is aligned and
/// measured on validation prompts; the best trial of each is then aligned with every seed and measured on test prompts,
/// along the way too. Then one thing at a time is changed in the best trial of one method (ablate), and the features of a
/// kind of prompts are held in place or released (control). All methods start from the same model and read the same reference.
///
/// The study's folder gets
///   plan.toml       the plan
///   bases/          what alignments start from: data, fine-tuned model, autoencoder, reference
///   tune/, measure/, ablate/, control/
///                   one folder per run, METHOD/CONSTANTS/seed-N (ablate/ and control/: METHOD/CONSTANTS/CHANGE/seed-N)
///   study.json      everything that was measured
///   cost.json       time and memory of each method
///   study.html      all of it on a page, with the frontier; figures/ has its charts as SVG and CSV, tables/ its tables
/// Called again with the same folder it continues, whenever it was stopped. Runs that were made from another plan are
/// refused, unless --overwrite is given; runs that are no longer in the plan stay where they are.
///
/// Examples:
///   fpo study --plan tiny --run runs/study
///   fpo study --plan tiny --run runs/study --only tune
///   fpo study --plan mine.toml --run runs/mine --dry-run
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Study {
    /// A plan that is compiled in (tiny, smollm2, smoke) or a TOML file.
    #[arg(long, value_name = "PLAN", default_value = "tiny")]
    plan: String,
    /// Sets one setting of all runs, such as model.path=FOLDER, after those of the plan; can be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder of the study.
    #[arg(long = "run", value_name = "FOLDER", default_value = "runs/study")]
    folder: PathBuf,
    /// Does only these parts, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<PartArg>,
    /// Says what there is to do and what is done, and how long the rest may take, without doing it.
    #[arg(long)]
    dry_run: bool,
    /// Prints the plan as TOML and stops.
    #[arg(long, conflicts_with = "dry_run")]
    print_plan: bool,
    /// Makes runs again that were made from another plan, which discards what is there. Without it such a call is refused.
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    device: DeviceArg,
}

#[derive(Clone, Copy, ValueEnum)]
enum PartArg {
    /// Every trial, on validation prompts.
    Tune,
    /// The best trials with every seed, on test prompts.
    Measure,
    /// One change at a time in the best trial of one method, with the first seed.
    Ablate,
    /// FPO with the features of a kind of prompts held in place, or released, with the first seed.
    Control,
}

impl PartArg {
    fn part(self) -> Part {
        match self {
            Self::Tune => Part::Tune,
            Self::Measure => Part::Measure,
            Self::Ablate => Part::Ablate,
            Self::Control => Part::Control,
        }
    }
}

impl Study {
    pub fn run(self) -> Result<()> {
        if self.print_plan {
            return write(Plan::source(&self.plan)?.as_bytes());
        }
        let plan = Plan::load(&self.plan, &self.set)?;
        let existing = match self.overwrite {
            true => Existing::Overwrite,
            false => Existing::Keep,
        };
        let device = self.device.open()?;
        interrupt::continue_with_this_call();
        let study = Open::open(plan, &self.folder, device, existing, reporter())?;
        if self.dry_run {
            return out!("{}", Progress::of(&study)?);
        }
        let parts = match self.only.is_empty() {
            true => Part::ALL.to_vec(),
            false => Part::ALL
                .into_iter()
                .filter(|part| self.only.iter().any(|only| only.part() == *part))
                .collect(),
        };
        let results = carry_out(&study, &parts)?;
        results.write(&study)?;
        let drawn = draw(&study, &results)?;
        out!("{}\npage  {}", drawn.table, drawn.page.display())
    }
}
