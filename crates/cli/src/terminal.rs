//! Progress on standard error: a bar on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal, stderr},
    sync::OnceLock,
    time::{Duration, Instant},
};

use fpo_device::progress::{Reporter, Sink, Task, Watch};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::streams::say;

/// How much of the progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// Warnings alone.
    Quiet,
    /// Notes, and a bar or a line a minute.
    #[default]
    Normal,
    /// A line of every task every few seconds, on a terminal too.
    Verbose,
}

impl Verbosity {
    /// Time between plain lines of a task.
    const fn line_every(self) -> Duration {
        Duration::from_secs(match self {
            Self::Verbose => 5,
            Self::Normal | Self::Quiet => 60,
        })
    }
}

static VERBOSITY: OnceLock<Verbosity> = OnceLock::new();

/// Chosen once, before anything is reported.
pub fn set_verbosity(verbosity: Verbosity) {
    let _ = VERBOSITY.set(verbosity);
}

/// As it was chosen.
pub fn verbosity() -> Verbosity {
    VERBOSITY.get().copied().unwrap_or_default()
}

/// Where every command reports its progress.
pub fn reporter() -> Reporter {
    Reporter::new(Terminal)
}

struct Terminal;

impl Sink for Terminal {
    fn begin(&self, task: &Task) -> Box<dyn Watch> {
        match (verbosity(), stderr().is_terminal()) {
            (Verbosity::Quiet, _) => Box::new(Nothing),
            (Verbosity::Normal, true) => Box::new(Bar::new(task)),
            (Verbosity::Normal, false) | (Verbosity::Verbose, _) => Box::new(Lines { last: None }),
        }
    }

    fn note(&self, stage: &str, text: &str) {
        if verbosity() != Verbosity::Quiet || stage == "warning" {
            say!("{stage:>9}  {text}");
        }
    }
}

struct Nothing;

impl Watch for Nothing {
    fn advance(&mut self, _task: &Task, _message: &str) {}

    fn finish(&mut self, _task: &Task, _message: &str) {}
}

struct Bar(ProgressBar);

impl Bar {
    fn new(task: &Task) -> Self {
        let bar = ProgressBar::new(task.total as u64);
        let template = "{prefix:>9} [{bar:30}] {pos}/{len} {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(task.stage.clone());
        Self(bar)
    }
}

impl Watch for Bar {
    fn advance(&mut self, task: &Task, message: &str) {
        self.0.set_position(task.done as u64);
        self.0.set_message(state(task, message));
    }

    fn finish(&mut self, task: &Task, message: &str) {
        self.0.finish_and_clear();
        print_done(task, message);
    }
}

struct Lines {
    last: Option<Instant>,
}

impl Watch for Lines {
    fn advance(&mut self, task: &Task, message: &str) {
        if self.last.is_none_or(|last| last.elapsed() >= verbosity().line_every()) {
            self.last = Some(Instant::now());
            let Task { stage, done, total, .. } = task;
            say!("{stage:>9}  {done}/{total}  {}", state(task, message));
        }
    }

    fn finish(&mut self, task: &Task, message: &str) {
        print_done(task, message);
    }
}

/// Such as `12.3 steps/s, 4m left (run 20m)  loss 0.6931`.
fn state(task: &Task, message: &str) -> String {
    let left = HumanDuration(task.time_left());
    let run = match task.run_left() {
        Some(run) => format!(" (run {:#})", HumanDuration(run)),
        None => String::new(),
    };
    format!("{}, {left:#} left{run}  {message}", task.pace())
}

fn print_done(task: &Task, message: &str) {
    say!("{:>9}  done in {:.1} s  {message}", task.stage, task.elapsed().as_secs_f64());
}
