//! What `fpo watch` draws.

use std::path::Path;

use console::Key;
use fpo_report::text::visible_inline;
use fpo_track::{
    EVAL,
    follow::{Samples, Series, StageLog},
};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    symbols::Marker,
    text::{Line, Span},
    widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph, Wrap},
};

use super::summary::heading;

/// Points drawn of a curve: a terminal has no more columns, of two dots each.
const POINTS: usize = 600;
/// Rows from which sampled answers are shown too.
const ROOM_FOR_ANSWERS: u16 = 26;

const TRAINING: Color = Color::Cyan;
const HELD_OUT: Color = Color::Yellow;

/// What a person chose to see. By default the stage that comes last, and its first metric.
#[derive(Debug, Default)]
pub struct Choice {
    stage: Option<&'static str>,
    metric: usize,
}

impl Choice {
    /// Follows a key.
    pub fn press(&mut self, key: &Key, logs: &[StageLog]) {
        let Some(at) = self.position(logs) else { return };
        let of = |at: usize| metrics(&logs[at]).len().max(1);
        match key {
            Key::Tab | Key::ArrowRight => self.metric = (self.metric + 1) % of(at),
            Key::BackTab | Key::ArrowLeft => {
                self.metric = (self.metric.min(of(at) - 1) + of(at) - 1) % of(at);
            }
            Key::ArrowUp => self.go_to(at.saturating_sub(1), logs),
            Key::ArrowDown => self.go_to((at + 1).min(logs.len() - 1), logs),
            _ => {}
        }
    }

    /// The metric stays where the other stage has it.
    fn go_to(&mut self, stage: usize, logs: &[StageLog]) {
        let name = self.metric(logs);
        self.stage = Some(logs[stage].stage);
        let same = metrics(&logs[stage]).iter().position(|metric| Some(*metric) == name);
        self.metric = same.unwrap_or(0);
    }

    fn position(&self, logs: &[StageLog]) -> Option<usize> {
        let chosen = logs.iter().position(|log| Some(log.stage) == self.stage);
        chosen.or(logs.len().checked_sub(1))
    }

    fn metric<'a>(&self, logs: &'a [StageLog]) -> Option<&'a str> {
        let all = metrics(&logs[self.position(logs)?]);
        all.get(self.metric).or(all.last()).copied()
    }
}

/// The metrics of a log, each once, whether it is of training, of evaluations or of both.
pub fn metrics(log: &StageLog) -> Vec<&str> {
    let mut all: Vec<&str> = Vec::new();
    for series in &log.series {
        let name = series.key.strip_prefix(EVAL).unwrap_or(&series.key);
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

/// What evaluations measured of a metric.
pub fn held_out<'a>(log: &'a StageLog, metric: &str) -> Option<&'a Series> {
    log.metric(&format!("{EVAL}{metric}"))
}

/// A number in few characters.
pub fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        0.0 => "0".into(),
        1e-3..1e6 => {
            let decimals = (3 - size.log10().floor() as i32).clamp(0, 4) as usize;
            format!("{value:.decimals$}")
        }
        _ => format!("{value:.2e}"),
    }
}

/// Draws the run as it is now, or says what hinders that.
pub fn draw(
    frame: &mut Frame,
    run: &Path,
    logs: &[StageLog],
    choice: &Choice,
    trouble: Option<String>,
) {
    let area = frame.area();
    let [head, body, keys] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(3), Constraint::Length(1)])
            .areas(area);
    let run = visible_inline(&run.to_string_lossy());
    frame.render_widget(
        Line::from(" tab → ← metric   ↑ ↓ stage   q ends").style(Style::new().dark_gray()),
        keys,
    );
    if let Some(trouble) = trouble {
        frame.render_widget(Line::from(run).bold(), head);
        frame.render_widget(Paragraph::new(trouble).wrap(Wrap { trim: false }), body);
        return;
    }
    let (Some(at), Some(metric)) = (choice.position(logs), choice.metric(logs)) else {
        frame.render_widget(Line::from(run).bold(), head);
        frame.render_widget(Paragraph::new("no training of this run has begun yet"), body);
        return;
    };
    let log = &logs[at];
    let written = log.written.and_then(|written| written.elapsed().ok());
    let age = written.filter(|_| !log.finished).map(|age| format!(", {} s ago", age.as_secs()));
    let title = [run.bold(), format!("  {}{}", heading(log), age.unwrap_or_default()).into()];
    frame.render_widget(Line::from_iter(title), head);
    match &log.samples {
        Some(samples) if area.height >= ROOM_FOR_ANSWERS => {
            let parts = [Constraint::Fill(2), Constraint::Fill(1)];
            let [curves, answers] = Layout::vertical(parts).areas(body);
            chart(frame, curves, log, metric);
            frame.render_widget(spoken(samples), answers);
        }
        _ => chart(frame, body, log, metric),
    }
}

fn chart(frame: &mut Frame, area: Rect, log: &StageLog, metric: &str) {
    let points = |series: Option<&Series>| series.map_or(Vec::new(), |series| thin(&series.points));
    let (training, evaluations) = (points(log.metric(metric)), points(held_out(log, metric)));
    let all = || training.iter().chain(&evaluations);
    let (low, high) =
        all().fold((f64::MAX, f64::MIN), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
    let room = if high > low { 0.05 * (high - low) } else { (0.1 * high.abs()).max(1e-9) };
    let (low, high) = (low - room, high + room);
    let last_step = all().map(|(x, _)| *x).fold(1.0, f64::max);
    let dataset = |points, marker, colour| {
        let line = Dataset::default().data(points).graph_type(GraphType::Line);
        line.marker(marker).style(Style::new().fg(colour))
    };
    let marks = Dataset::default().data(&evaluations).marker(Marker::Dot);
    let datasets = vec![
        dataset(&training, Marker::Braille, TRAINING),
        dataset(&evaluations, Marker::Braille, HELD_OUT),
        marks.graph_type(GraphType::Scatter).style(Style::new().fg(HELD_OUT)),
    ];
    let mut title = vec![Span::from(format!(" {} ", visible_inline(metric))).bold()];
    for (name, points, colour) in
        [("training", &training, TRAINING), ("held-out", &evaluations, HELD_OUT)]
    {
        if let Some((_, value)) = points.last() {
            title.push(Span::from(format!(" {name} {} ", short(*value))).fg(colour));
        }
    }
    let labels = |low: f64, high: f64| [low, 0.5 * (low + high), high].map(short);
    let axis = Style::new().dark_gray();
    let steps = ["0".to_owned(), format!("{:.0}", last_step / 2.0), format!("step {last_step:.0}")];
    let chart = Chart::new(datasets)
        .block(Block::bordered().title(Line::from(title)).border_style(axis))
        .legend_position(None)
        .x_axis(Axis::default().bounds([0.0, last_step]).labels(steps).style(axis))
        .y_axis(Axis::default().bounds([low, high]).labels(labels(low, high)).style(axis));
    frame.render_widget(chart, area);
}

fn spoken(samples: &Samples) -> Paragraph<'static> {
    let mut lines = Vec::new();
    for (prompt, answer) in &samples.answers {
        lines.push(Line::from(visible_inline(prompt)).dark_gray());
        lines.push(Line::from(visible_inline(answer)));
    }
    let title = format!(" answers after step {} ", samples.step);
    let border = Style::new().dark_gray();
    Paragraph::new(lines)
        .wrap(Wrap { trim: false })
        .block(Block::bordered().title(title).border_style(border))
}

/// Means over equal stretches, where there are more points than can be seen.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let sum = part.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / part.len() as f64, sum.1 / part.len() as f64)
    };
    points.chunks(stretch).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use fpo_track::follow::Follower;
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    /// A run whose alignment is under way: 40 steps, two evaluations.
    fn run() -> (tempfile::TempDir, Follower) {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = String::new();
        for step in 1..=40 {
            lines += &format!("{{\"step\":{step},\"loss\":{},\"u\":1.5}}\n", 1.0 / f64::from(step));
            if step % 20 == 0 {
                lines += &format!(
                    "{{\"step\":{step},\"eval_loss\":0.5,\"eval_right\":0.25,\"eval_samples\":[{{\"prompt\":\"Say\\u001b[2J hi.\",\"response\":\"hi\"}}]}}\n"
                );
            }
        }
        for (place, text) in [("sft", "{\"step\":7,\"loss\":2.0}\n"), ("checkpoints/align", &lines)]
        {
            fs::create_dir_all(folder.path().join(place)).unwrap();
            fs::write(folder.path().join(place).join("metrics.jsonl"), text).unwrap();
        }
        let follower = Follower::open(folder.path()).unwrap();
        (folder, follower)
    }

    fn screen(logs: &[StageLog], choice: &Choice, size: (u16, u16)) -> String {
        let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
        terminal.draw(|frame| draw(frame, Path::new("runs/x"), logs, choice, None)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn keys_choose_what_is_drawn() {
        let (_folder, follower) = run();
        let logs = follower.logs();
        let mut choice = Choice::default();
        let cases = [
            (
                None,
                vec![
                    "align, 40 steps, not finished",
                    " loss ",
                    "training 0.0250",
                    "held-out 0.5000",
                ],
            ),
            (Some(Key::Tab), vec![" u ", "training 1.500"]),
            (Some(Key::ArrowRight), vec![" right ", "held-out 0.2500"]),
            (Some(Key::Tab), vec![" loss "]),
            (Some(Key::ArrowLeft), vec![" right "]),
            (Some(Key::ArrowUp), vec!["sft, 7 steps, finished", " loss ", "training 2.000"]),
            (Some(Key::ArrowUp), vec!["sft, 7 steps"]),
            (Some(Key::ArrowDown), vec!["align, 40 steps", " loss "]),
        ];
        for (key, expected) in cases {
            key.iter().for_each(|key| choice.press(key, logs));
            let screen = screen(logs, &choice, (80, 24));
            for text in expected {
                assert!(screen.contains(text), "{key:?}: no `{text}` in\n{screen}");
            }
        }
    }

    #[test]
    fn every_size_can_be_drawn() {
        let (_folder, follower) = run();
        for size in [(1, 1), (10, 4), (39, 12), (80, 24), (200, 60)] {
            screen(follower.logs(), &Choice::default(), size);
            screen(&[], &Choice::default(), size);
        }
        let tall = screen(follower.logs(), &Choice::default(), (80, 40));
        assert!(tall.contains("answers after step 40") && tall.contains("hi"), "{tall}");
        assert!(!tall.contains('\u{1b}'), "an escape sequence reaches the terminal");
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.691_234, "0.6912"),
            (12.3456, "12.35"),
            (123_456.7, "123457"),
            (1e-5, "1.00e-5"),
            (-2e9, "-2.00e9"),
        ];
        cases.iter().for_each(|(value, text)| assert_eq!(short(*value), *text));
    }
}
