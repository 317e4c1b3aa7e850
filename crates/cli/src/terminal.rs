//! Progress on standard error: a bar on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use fpo_device::progress::{Reporter, Sink, Task, Watch};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Minimum time between plain lines of a task.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where every command reports its progress.
pub fn reporter() -> Reporter {
    Reporter::new(Terminal)
}

struct Terminal;

impl Sink for Terminal {
    fn begin(&self, task: &Task) -> Box<dyn Watch> {
        match stderr().is_terminal() {
            true => Box::new(Bar::new(task)),
            false => Box::new(Lines { last: None }),
        }
    }

    fn note(&self, stage: &str, text: &str) {
        eprintln!("{stage:>9}  {text}");
    }
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
        if self.last.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            self.last = Some(Instant::now());
            let Task { stage, done, total, .. } = task;
            eprintln!("{stage:>9}  {done}/{total}  {}", state(task, message));
        }
    }

    fn finish(&mut self, task: &Task, message: &str) {
        print_done(task, message);
    }
}

/// Such as `12.3 steps/s, 4m left  loss 0.6931`.
fn state(task: &Task, message: &str) -> String {
    let left = HumanDuration(task.time_left());
    format!("{:.1} {}/s, {left:#} left  {message}", task.rate(), task.unit)
}

fn print_done(task: &Task, message: &str) {
    eprintln!("{:>9}  done in {:.1} s  {message}", task.stage, task.elapsed().as_secs_f64());
}
