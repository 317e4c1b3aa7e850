//! What a long stage shows: a bar on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Plain lines come at most this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The progress of one stage, on standard error.
pub struct Progress {
    stage: String,
    unit: &'static str,
    total: usize,
    done: usize,
    /// What a resumed stage had done before: not part of the rate.
    before: usize,
    begun: Instant,
    /// Absent where standard error is no terminal.
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Progress {
    /// A stage of `total` units, `done` of which were done earlier.
    pub fn new(stage: &str, unit: &'static str, total: usize, done: usize) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64);
            let template = "{prefix:>9} [{bar:30}] {pos}/{len} {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(stage.to_owned());
            bar
        });
        let begun = Instant::now();
        Self {
            stage: stage.to_owned(),
            unit,
            total,
            done,
            before: done,
            begun,
            bar,
            last_line: None,
        }
    }

    /// Notes that so many more units are done; `message` is shown beside rate and time left.
    pub fn advance(&mut self, units: usize, message: &str) {
        self.done += units;
        let seconds = self.begun.elapsed().as_secs_f64().max(1e-9);
        let rate = (self.done - self.before) as f64 / seconds;
        let left = self.total.saturating_sub(self.done) as f64 / rate.max(1e-9);
        let left = HumanDuration(Duration::from_secs_f64(left.min(1e9)));
        let text = format!("{rate:.1} {}/s, {left:#} left  {message}", self.unit);
        if let Some(bar) = &self.bar {
            bar.set_position(self.done as u64);
            bar.set_message(text);
        } else if self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            eprintln!("{:>9}  {}/{}  {text}", self.stage, self.done, self.total);
        }
    }

    /// Notes units that were done by an earlier process: not part of the rate.
    pub fn skip(&mut self, units: usize) {
        self.done += units;
        self.before += units;
    }

    /// Seconds since the beginning.
    pub fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Ends the stage with one line that stays.
    pub fn finish(self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let took = self.begun.elapsed().as_secs_f64();
        eprintln!("{:>9}  done in {took:.1} s  {message}", self.stage);
    }
}
