//! Progress reports. Libraries report to a [`Sink`] and print nothing themselves; the program decides what to display.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Receives progress reports, for example a terminal's progress bars.
pub trait Sink: Send + Sync {
    /// Called when a task starts; the returned watch follows it.
    fn begin(&self, task: &Task) -> Box<dyn Watch>;
    /// A permanent line such as `sft  up to date`. `stage` is its subject, or `warning`.
    fn note(&self, stage: &str, text: &str);
}

/// Receives the progress of one task. Dropped without [`Self::finish`] if the task fails.
pub trait Watch {
    /// Called after `task.done` has grown. `message` is shown beside rate and time left.
    fn advance(&mut self, task: &Task, message: &str);
    /// Called when the task is complete. `message` summarises it.
    fn finish(&mut self, task: &Task, message: &str);
}

/// How far back the rate looks: far enough to be steady, near enough to follow a change.
const WINDOW: Duration = Duration::from_secs(60);
/// Reports that the rate looks back at least, for tasks with slow units.
const REPORTS: usize = 5;

/// State of a task.
#[derive(Clone, Debug)]
pub struct Task {
    /// Name of the task, such as `align`.
    pub stage: String,
    /// Unit of the counts, plural: `steps`, `pairs`, `tokens`.
    pub unit: &'static str,
    /// Units in total.
    pub total: usize,
    /// Units done, including those of earlier processes.
    pub done: usize,
    /// Units done by earlier processes; excluded from the rate.
    earlier: usize,
    begun: Instant,
    /// When the last reports came, and what was done then in this process.
    recent: VecDeque<(Instant, usize)>,
    /// The work after this task, in multiples of it; none where nobody has said.
    later: Option<f64>,
}

impl Task {
    /// Time since the task started in this process.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Units per second over the last minute in this process.
    pub fn rate(&self) -> f64 {
        let (since, then) = self.recent.front().copied().unwrap_or((self.begun, 0));
        let done = (self.done - self.earlier).saturating_sub(then);
        done as f64 / since.elapsed().as_secs_f64().max(1e-9)
    }

    /// Such as `12.3 steps/s`, or `4.1 s/step` where it is slower than one a second.
    pub fn pace(&self) -> String {
        let rate = self.rate();
        match rate < 1.0 && rate > 0.0 {
            true => format!("{:.1} s/{}", 1.0 / rate, self.unit.trim_end_matches('s')),
            false => format!("{rate:.1} {}/s", self.unit),
        }
    }

    /// Estimated time left at [`Self::rate`].
    pub fn time_left(&self) -> Duration {
        self.time_for(self.total.saturating_sub(self.done) as f64)
    }

    /// Estimated time left of the whole run, where the work after this task is known.
    pub fn run_left(&self) -> Option<Duration> {
        let later = self.later.filter(|later| *later > 0.0)?;
        Some(self.time_left() + self.time_for(later * self.total as f64))
    }

    fn time_for(&self, units: f64) -> Duration {
        Duration::from_secs_f64((units / self.rate().max(1e-9)).min(1e9))
    }

    fn remember(&mut self) {
        self.recent.push_back((Instant::now(), self.done - self.earlier));
        while self.recent.len() > REPORTS && self.recent[0].0.elapsed() > WINDOW {
            self.recent.pop_front();
        }
    }
}

/// A handle on a [`Sink`], cheap to clone.
#[derive(Clone)]
pub struct Reporter {
    sink: Arc<dyn Sink>,
    /// The stages of a run with their work, relative to one another.
    outline: Arc<Mutex<Vec<(String, f64)>>>,
}

impl Reporter {
    /// A reporter whose reports go to `sink`.
    pub fn new(sink: impl Sink + 'static) -> Self {
        Self { sink: Arc::new(sink), outline: Arc::default() }
    }

    /// A reporter that discards everything.
    pub fn silent() -> Self {
        Self::new(Silent)
    }

    /// Says which stages follow one another and how much work each is, in any unit, so that the time left of the whole run is known.
    pub fn outline(&self, stages: &[(&str, f64)]) {
        let stages = stages.iter().map(|(name, work)| ((*name).to_owned(), *work)).collect();
        *self.outline.lock().unwrap_or_else(PoisonError::into_inner) = stages;
    }

    /// The work after a stage, in multiples of its own.
    fn later(&self, stage: &str) -> Option<f64> {
        let outline = self.outline.lock().unwrap_or_else(PoisonError::into_inner);
        let at = outline.iter().position(|(name, work)| name == stage && *work > 0.0)?;
        Some(outline[at + 1..].iter().map(|(_, work)| work).sum::<f64>() / outline[at].1)
    }

    /// Starts a task of `total` units, of which earlier processes did `done`.
    pub fn begin(&self, stage: &str, unit: &'static str, total: usize, done: usize) -> Progress {
        let begun = Instant::now();
        let (stage, later) = (stage.to_owned(), self.later(stage));
        let recent = VecDeque::from([(begun, 0)]);
        let task = Task { stage, unit, total, done, earlier: done, begun, recent, later };
        Progress { watch: self.sink.begin(&task), task }
    }

    /// Reports a permanent line about `stage`.
    pub fn note(&self, stage: &str, text: impl AsRef<str>) {
        self.sink.note(stage, text.as_ref());
    }

    /// Reports a warning: a permanent line with `warning` as its stage.
    pub fn warn(&self, text: impl AsRef<str>) {
        self.sink.note("warning", text.as_ref());
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporter")
    }
}

/// A task in progress, as [`Reporter::begin`] returns it.
pub struct Progress {
    task: Task,
    watch: Box<dyn Watch>,
}

impl Progress {
    /// Reports `units` more as done.
    pub fn advance(&mut self, units: usize, message: &str) {
        self.task.done += units;
        self.task.remember();
        self.watch.advance(&self.task, message);
    }

    /// Counts `units` as done by an earlier process, without a report.
    pub fn skip(&mut self, units: usize) {
        self.task.done += units;
        self.task.earlier += units;
    }

    /// Seconds since the task started.
    pub fn seconds(&self) -> f64 {
        self.task.elapsed().as_secs_f64()
    }

    /// Completes the task.
    pub fn finish(mut self, message: &str) {
        self.watch.finish(&self.task, message);
    }
}

struct Silent;

impl Sink for Silent {
    fn begin(&self, _task: &Task) -> Box<dyn Watch> {
        Box::new(Self)
    }

    fn note(&self, _stage: &str, _text: &str) {}
}

impl Watch for Silent {
    fn advance(&mut self, _task: &Task, _message: &str) {}

    fn finish(&mut self, _task: &Task, _message: &str) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl Lines {
        fn push(&self, line: String) {
            self.0.lock().unwrap().push(line);
        }
    }

    impl Sink for Lines {
        fn begin(&self, task: &Task) -> Box<dyn Watch> {
            self.push(format!("{} {}/{} {}", task.stage, task.done, task.total, task.unit));
            Box::new(self.clone())
        }

        fn note(&self, stage: &str, text: &str) {
            self.push(format!("{stage}: {text}"));
        }
    }

    impl Watch for Lines {
        fn advance(&mut self, task: &Task, message: &str) {
            self.push(format!("{} {message}", task.done));
        }

        fn finish(&mut self, task: &Task, message: &str) {
            self.push(format!("{} of {} {message}", task.done, task.total));
        }
    }

    #[test]
    fn what_is_reported_reaches_the_sink() {
        let lines = Lines::default();
        let reporter = Reporter::new(lines.clone());
        let mut progress = reporter.begin("sft", "steps", 10, 2);
        progress.advance(3, "loss 1");
        progress.skip(5);
        reporter.warn("look");
        progress.finish("done");
        let expected = ["sft 2/10 steps", "5 loss 1", "warning: look", "10 of 10 done"];
        assert_eq!(*lines.0.lock().unwrap(), expected);
    }

    #[test]
    fn the_rate_only_counts_this_process() {
        let mut progress = Reporter::silent().begin("sft", "steps", 100, 90);
        progress.task.recent[0].0 -= Duration::from_secs(10);
        progress.advance(5, "");
        progress.skip(1);
        assert!((progress.task.rate() - 0.5).abs() < 0.01);
        assert!((progress.task.time_left().as_secs_f64() - 8.0).abs() < 0.1);
        assert_eq!(progress.task.pace(), "2.0 s/step");
        assert_eq!(progress.task.run_left(), None);
    }

    /// A task that was slow an hour ago and is fast now ends soon.
    #[test]
    fn the_rate_is_the_recent_one() {
        let mut progress = Reporter::silent().begin("sft", "steps", 1000, 0);
        for _ in 0..20 {
            progress.advance(1, "");
        }
        for (report, (at, _)) in progress.task.recent.iter_mut().enumerate() {
            *at -= Duration::from_secs(3600 - 100 * report as u64);
        }
        let now = Instant::now();
        progress
            .task
            .recent
            .extend((0..10).map(|i| (now - Duration::from_secs(10 - i), 20 + 10 * i as usize)));
        progress.task.done = 110;
        progress.advance(10, "");
        assert!((progress.task.rate() - 10.0).abs() < 0.5, "{}", progress.task.rate());
        assert_eq!(progress.task.pace(), format!("{:.1} steps/s", progress.task.rate()));
    }

    #[test]
    fn the_whole_run_is_in_proportion() {
        let reporter = Reporter::silent();
        reporter.outline(&[("sft", 2.0), ("align", 3.0), ("evaluate", 1.0)]);
        let mut progress = reporter.begin("sft", "steps", 100, 0);
        progress.task.recent[0].0 -= Duration::from_secs(50);
        progress.advance(50, "");
        // 50 s left of 100, then twice that.
        let left = progress.task.run_left().unwrap().as_secs_f64();
        assert!((left - 250.0).abs() < 1.0, "{left}");
        assert_eq!(reporter.begin("evaluate", "items", 1, 0).task.run_left(), None);
        assert_eq!(reporter.begin("else", "items", 1, 0).task.run_left(), None);
    }
}
