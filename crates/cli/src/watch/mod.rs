//! `fpo watch`: a run's curves in the terminal, while another process writes them or afterwards.

mod screen;
mod summary;
mod view;

use std::{
    io::{IsTerminal, stdout},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use console::Key;
use fpo_track::follow::Follower;

use crate::streams::write;
use screen::Screen;
pub use screen::leave;
use view::{Choice, draw};

/// Time between looks at the logs.
const EVERY: Duration = Duration::from_millis(500);

/// Shows the training curves of a run in the terminal
///
/// It only reads: the run may be written by another process meanwhile, or be finished. Evaluations on held-out pairs
/// (evaluate.every) are drawn beside the training metric of the same name, and the answers that they sampled below.
/// Without a terminal it prints one summary and ends.
///
/// Keys: tab, → and ← choose the metric, ↑ and ↓ the stage, q ends.
///
/// Examples:
///   fpo watch runs/tiny
///   fpo watch runs/tiny/compare/dpo | cat
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Watch {
    /// The run's folder.
    #[arg(value_name = "RUN")]
    run: PathBuf,
}

impl Watch {
    pub fn run(self) -> Result<()> {
        let mut follower = Follower::open(&self.run)?;
        if !stdout().is_terminal() {
            return write(summary::of(&follower).as_bytes());
        }
        let mut screen = Screen::open(ends).context("the terminal can't be drawn on")?;
        self.show(&mut screen, &mut follower)
    }

    /// Until a key ends it. A log that can't be read any more is told, and ends it with that key.
    fn show(&self, screen: &mut Screen, follower: &mut Follower) -> Result<()> {
        let mut choice = Choice::default();
        let mut state = Ok(());
        loop {
            let trouble = state.as_ref().err().map(ToString::to_string);
            screen.draw(|frame| draw(frame, &self.run, follower.logs(), &choice, trouble))?;
            match screen.key(EVERY)? {
                Some(key) if ends(&key) => return Ok(state?),
                Some(key) => choice.press(&key, follower.logs()),
                None => {}
            }
            if state.is_ok() {
                state = follower.refresh().map(drop);
            }
        }
    }
}

fn ends(key: &Key) -> bool {
    matches!(key, Key::Char('q') | Key::Escape | Key::CtrlC)
}
