//! What there is to see of a run where there is no terminal.

use comfy_table::{CellAlignment, Table, presets};
use fpo_track::follow::{Follower, Series, StageLog};

use super::view::{held_out, metrics, short};

/// A table for each training that has begun: every metric when it began and now, in training and on held-out pairs.
pub fn of(follower: &Follower) -> String {
    match follower.logs() {
        [] => "no training of this run has begun yet\n".into(),
        logs => logs.iter().map(table).collect::<Vec<_>>().join("\n"),
    }
}

/// Such as `align, 250 steps, finished`.
pub fn heading(log: &StageLog) -> String {
    let state = if log.finished { "finished" } else { "not finished" };
    format!("{}, {} steps, {state}", log.stage, log.steps)
}

fn table(log: &StageLog) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["metric", "first", "last", "held-out, first", "last"]);
    for metric in metrics(log) {
        type Place = fn(&[(f64, f64)]) -> Option<&(f64, f64)>;
        let value = |series: Option<&Series>, at: Place| {
            series.and_then(|series| at(&series.points)).map(|(_, value)| short(*value))
        };
        let held_out = held_out(log, metric);
        let cells = [
            value(log.metric(metric), <[_]>::first),
            value(log.metric(metric), <[_]>::last),
            value(held_out, <[_]>::first),
            value(held_out, <[_]>::last),
        ];
        let cells = cells.map(Option::unwrap_or_default);
        table.add_row([&[metric.to_owned()][..], &cells].concat());
    }
    table.column_iter_mut().skip(1).for_each(|column| {
        column.set_cell_alignment(CellAlignment::Right);
    });
    format!("{}\n{}\n", heading(log), table.trim_fmt())
}
