//! `fpo watch`: a run's curves in the terminal, while another process writes them or afterwards.

mod summary;
mod view;

use std::{
    io::{IsTerminal, stdout},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use fpo_track::follow::Follower;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};

use crate::streams::write;
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
        let mut terminal = ratatui::try_init().context("the terminal can't be drawn on")?;
        let shown = self.show(&mut terminal, &mut follower);
        let restored = ratatui::try_restore().context("restoring the terminal");
        shown.and(restored)
    }

    fn show(&self, terminal: &mut DefaultTerminal, follower: &mut Follower) -> Result<()> {
        let mut choice = Choice::default();
        loop {
            terminal.draw(|frame| draw(frame, &self.run, follower.logs(), &choice))?;
            if event::poll(EVERY)? {
                match event::read()? {
                    Event::Key(key) if ends(key) => return Ok(()),
                    Event::Key(key) => choice.press(key, follower.logs()),
                    _ => {}
                }
            }
            follower.refresh()?;
        }
    }
}

fn ends(key: KeyEvent) -> bool {
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    let quits = matches!(key.code, KeyCode::Char('q') | KeyCode::Esc);
    key.kind == KeyEventKind::Press && (quits || control_c)
}
