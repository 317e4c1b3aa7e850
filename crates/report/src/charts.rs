//! Curves as small inline SVG charts.
//!
//! `plotters` only writes fixed colours. Charts are drawn in placeholder colours, which are then replaced by CSS variables, so that
//! an SVG follows the page's light or dark scheme.

use std::{error::Error, ops::Range};

use maud::{Markup, PreEscaped, html};
use plotters::{
    coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter},
    prelude::*,
};

use crate::{
    Chart, Series, StageCurves, Stroke, course,
    curve::{Axis, Curve},
    format::number,
    text::visible_inline,
};

/// Width and height of a chart in CSS pixels, before the page scales it to its column.
const SIZE: (u32, u32) = (380, 230);
/// Grid cells per CSS pixel: `plotters` rounds coordinates to integers.
const FINE: u32 = 4;
/// Height of axis text in CSS pixels.
const TEXT: f64 = 11.5;
/// Number of series colours in the style sheet; further series reuse them.
pub(super) const SERIES_COLOURS: usize = 8;
/// Dashes of the lines of several runs, in CSS pixels, so that they differ without colours too; then they are reused.
const DASHES: [&[u32]; 5] = [&[], &[7, 4], &[2, 3], &[8, 3, 2, 3], &[14, 5]];
/// Curves with at most this many points have dots, and those of rings about so many rings.
const DOTTED: usize = 30;

/// A curve with its colour and what the legend says.
struct Drawn<'a> {
    colour: usize,
    name: &'a str,
    stroke: Stroke,
    curve: Curve,
}

impl<'a> Drawn<'a> {
    /// The series at a position; none where it has no point.
    fn new(position: usize, series: &'a Series) -> Option<Self> {
        let (colour, curve) = match series.stroke {
            Stroke::Line => (position, Curve::new(&series.points)?),
            Stroke::Run(run) => (run, Curve::new(&series.points)?),
            Stroke::Rings(colour) => (colour, Curve::exact(&series.points)?),
        };
        let (colour, stroke) = (colour % SERIES_COLOURS, series.stroke);
        Some(Self { colour, name: &series.name, stroke, curve })
    }

    /// What its line is drawn with.
    fn ink(&self) -> Ink {
        match self.stroke {
            Stroke::Run(run) => Ink::Run(run % RUN_INKS),
            Stroke::Line | Stroke::Rings(_) => Ink::Series(self.colour),
        }
    }
}

/// The charts of one stage.
pub(super) fn stage(stage: &StageCurves) -> Markup {
    html! {
        h3 { (stage.stage) }
        @if !stage.caption.is_empty() { p.caption { (stage.caption) } }
        div.charts { @for chart in &stage.charts { (figure(chart)) } }
        (course::section(&stage.answers))
    }
}

fn figure(chart: &Chart) -> Markup {
    let series = chart.series.iter().enumerate();
    let curves: Vec<Drawn> = series.filter_map(|(at, series)| Drawn::new(at, series)).collect();
    html! {
        figure.chart {
            figcaption {
                strong { (chart.title) }
                @if !chart.y_label.is_empty() { " " span.unit { (chart.y_label) } }
                ul.legend {
                    @for Drawn { colour, name, stroke, curve } in &curves {
                        li {
                            @if curves.len() > 1 || *name != chart.title {
                                @match stroke {
                                    Stroke::Line => span.swatch style={ "background:" (Ink::Series(*colour).variable()) } {},
                                    Stroke::Run(run) => (run_swatch(*run)),
                                    Stroke::Rings(_) => span.swatch.ring style={ "border-color:" (Ink::Series(*colour).variable()) } {},
                                }
                                (name) " "
                            }
                            span.end title="last value" { (number(curve.last())) }
                        }
                    }
                }
            }
            @if curves.is_empty() {
                p.empty { "no data" }
            } @else {
                @match draw(chart, &curves) {
                    Ok(svg) => { (PreEscaped(svg)) }
                    Err(error) => { p.empty { "drawing failed: " (error) } }
                }
            }
        }
    }
}

/// The line of a run as charts draw it.
pub(super) fn run_swatch(run: usize) -> Markup {
    let style = Ink::Run(run % RUN_INKS).style("stroke", 1);
    html! { svg.line viewBox="0 0 30 6" aria-hidden="true" { line x1="1" y1="3" x2="29" y2="3" style=(style) {} } }
}

/// A description for screen readers.
fn description(chart: &Chart, curves: &[Drawn]) -> String {
    let names: Vec<String> = curves
        .iter()
        .map(|Drawn { name, curve, .. }| {
            format!("{name} from {} to {}", number(curve.first()), number(curve.last()))
        })
        .collect();
    format!("Line chart of {} by {}: {}.", chart.title, chart.x_label, names.join("; "))
}

fn draw(chart: &Chart, curves: &[Drawn]) -> Result<String, Box<dyn Error>> {
    let points = || curves.iter().flat_map(|drawn| drawn.curve.raw.iter());
    let x = Axis::around(points().map(|p| p.0).chain(origin(points().map(|p| p.0))), 0.0, 5);
    let y = Axis::around(points().map(|p| p.1), 0.06, 6);
    let y_text = y.ticks.iter().map(|&t| y.label(t).chars().count()).max().unwrap_or(1);
    let fine = |pixels: f64| (pixels * f64::from(FINE)).round() as u32;

    let mut svg = String::new();
    {
        let root =
            SVGBackend::with_string(&mut svg, (SIZE.0 * FINE, SIZE.1 * FINE)).into_drawing_area();
        let mut context = ChartBuilder::on(&root)
            .margin_top(fine(8.0))
            .margin_right(fine(18.0))
            .x_label_area_size(fine(38.0))
            .y_label_area_size(fine(12.0 + 0.64 * TEXT * y_text as f64))
            .build_cartesian_2d(x, y)?;
        // The backend divides font sizes by 1.24.
        let text =
            ("sans-serif", TEXT * 1.24 * f64::from(FINE)).into_font().color(&Ink::Text.colour());
        context
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(Ink::Grid.colour().stroke_width(FINE))
            .light_line_style(TRANSPARENT)
            .axis_style(TRANSPARENT)
            .set_all_tick_mark_size(fine(4.0))
            .label_style(text.clone())
            .axis_desc_style(text)
            .x_desc(visible_inline(&chart.x_label))
            .draw()?;
        for drawn in curves {
            let (ink, Drawn { stroke, curve, .. }) = (drawn.ink().colour(), drawn);
            let raw = || curve.raw.iter().copied();
            if let Stroke::Rings(_) = stroke {
                context.draw_series(LineSeries::new(raw(), ink.stroke_width(FINE)))?;
                let every = curve.raw.len().div_ceil(DOTTED);
                // From the last one backwards, which is the one that the legend has.
                let ring = |point| Circle::new(point, fine(3.25), ink.stroke_width(fine(1.5)));
                context.draw_series(raw().rev().step_by(every).map(ring))?;
                continue;
            }
            match &curve.smooth {
                Some(smooth) => {
                    // The noise of several runs would hide their lines.
                    if *stroke == Stroke::Line {
                        context
                            .draw_series(LineSeries::new(raw(), ink.mix(0.3).stroke_width(FINE)))?;
                    }
                    context.draw_series(LineSeries::new(
                        smooth.iter().copied(),
                        ink.stroke_width(2 * FINE),
                    ))?;
                }
                None => {
                    context.draw_series(LineSeries::new(raw(), ink.stroke_width(fine(1.75))))?;
                    if curve.raw.len() <= DOTTED && *stroke == Stroke::Line || curve.raw.len() == 1
                    {
                        context.draw_series(
                            raw().map(|point| Circle::new(point, fine(2.5), ink.filled())),
                        )?;
                    }
                }
            }
        }
        root.present()?;
    }
    let body = svg.split_once(">\n").map_or("", |(_, body)| body);
    let opening = html! { (description(chart, curves)) }.into_string();
    let (width, height) = (SIZE.0 * FINE, SIZE.1 * FINE);
    let svg =
        format!(r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{opening}">{body}"#);
    Ok(with_variables(svg, curves.iter().map(Drawn::ink)))
}

/// Zero, if an axis starts close to it: the first step is usually logged as 1 or 10.
fn origin(xs: impl Iterator<Item = f64>) -> Option<f64> {
    let (low, high) = xs.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
    (low > 0.0 && low <= 0.1 * high).then_some(0.0)
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.label(*value)
    }
}

/// The role of a colour; the style sheet defines its value.
#[derive(Clone, Copy)]
pub(super) enum Ink {
    Text,
    Grid,
    Series(usize),
    /// The colour and the dashes of a run.
    Run(usize),
}

/// Combinations of colour and dashes; further runs reuse them.
const RUN_INKS: usize = SERIES_COLOURS * DASHES.len();

impl Ink {
    /// The placeholder that `plotters` draws with.
    pub(super) fn colour(self) -> RGBAColor {
        let (kind, code) = match self {
            Ink::Text => (0, 0),
            Ink::Grid => (0, 1),
            Ink::Series(index) => (0, 2 + index as u8),
            Ink::Run(index) => (1, index as u8),
        };
        RGBColor(1, kind, code).to_rgba()
    }

    pub(super) fn variable(self) -> String {
        match self {
            Ink::Text => "var(--muted)".to_owned(),
            Ink::Grid => "var(--line)".to_owned(),
            Ink::Series(index) | Ink::Run(index) => {
                format!("var(--series-{})", index % SERIES_COLOURS)
            }
        }
    }

    /// Declarations for a property, with `scale` units per CSS pixel.
    fn style(self, property: &str, scale: u32) -> String {
        let mut style = format!("{property}:{}", self.variable());
        if let (Ink::Run(index), "stroke") = (self, property) {
            let dashes = DASHES[index % DASHES.len()].iter().map(|dash| (dash * scale).to_string());
            let dashes: Vec<String> = dashes.collect();
            if !dashes.is_empty() {
                style += &format!(";stroke-dasharray:{}", dashes.join(" "));
            }
        }
        style
    }
}

/// Replaces the placeholders by CSS variables. Text in the SVG can't be mistaken for one, because its quotation marks are escaped.
pub(super) fn with_variables(svg: String, inks: impl Iterator<Item = Ink>) -> String {
    [Ink::Text, Ink::Grid].into_iter().chain(inks).fold(svg, |svg, ink| {
        let RGBAColor(r, g, b, _) = ink.colour();
        ["fill", "stroke"].into_iter().fold(svg, |svg, property| {
            let placeholder = format!("{property}=\"#{r:02X}{g:02X}{b:02X}\"");
            svg.replace(&placeholder, &format!("style=\"{}\"", ink.style(property, FINE)))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.into(), points, ..Series::default() }
    }

    fn chart(series: Vec<(&str, Vec<(f64, f64)>)>) -> String {
        let series = series.into_iter().map(|(name, points)| line(name, points)).collect();
        figure(&Chart {
            title: "loss".into(),
            x_label: "step".into(),
            y_label: "nats".into(),
            series,
        })
        .into_string()
    }

    #[test]
    fn a_chart_without_finite_points_has_no_svg() {
        for series in
            [vec![], vec![("a", vec![])], vec![("a", vec![(0.0, f64::NAN), (f64::INFINITY, 1.0)])]]
        {
            let html = chart(series);
            assert!(html.contains("no data") && !html.contains("<svg"), "{html}");
        }
    }

    #[test]
    fn nan_is_skipped() {
        let html = chart(vec![("train", vec![(0.0, 3.0), (1.0, f64::NAN), (2.0, 1.0)])]);
        assert!(!html.contains("NaN") && !html.contains("inf"));
        assert_eq!(html.matches("<circle").count(), 2);
        assert!(html.contains("Line chart of loss by step: train from 3 to 1."));
    }

    #[test]
    fn colours_are_css_variables() {
        let series = (0..10).map(|i| ("s", vec![(0.0, i as f64), (1.0, i as f64 + 1.0)])).collect();
        let html = chart(series);
        assert!(!html.contains("=\"#"), "an explicit colour is left");
        assert!(html.contains("stroke:var(--series-0)") && html.contains("stroke:var(--series-7)"));
        assert!(!html.contains("--series-8"));
    }

    #[test]
    fn a_noisy_curve_has_a_smoothed_one() {
        let noisy = chart(vec![("train", (0..5000).map(|i| (i as f64, (i % 2) as f64)).collect())]);
        assert_eq!(noisy.matches("<polyline").count(), 2);
        let calm = chart(vec![("train", (0..20).map(|i| (i as f64, 1.0)).collect())]);
        assert_eq!((calm.matches("<polyline").count(), calm.matches("<circle").count()), (1, 20));
    }

    #[test]
    fn rings_have_the_colour_of_their_line() {
        let train = line("train", (0..50).map(|i| (i as f64, 1.0)).collect());
        let of = |steps: usize| Series {
            name: "held-out".into(),
            stroke: Stroke::Rings(0),
            points: (0..steps).map(|i| (i as f64, 0.5 + (i % 2) as f64)).collect(),
        };
        for (evaluations, rings) in [(1, 1), (30, 30), (31, 16), (500, 30)] {
            let series = vec![train.clone(), of(evaluations)];
            let chart = Chart { title: "loss".into(), series, ..Chart::default() };
            let html = figure(&chart).into_string();
            assert_eq!(html.matches("<circle").count(), rings, "{evaluations}");
            // Not smoothed, however many there are.
            assert_eq!(html.matches("<polyline").count(), 2, "{evaluations}");
            assert!(!html.contains("--series-1"));
            assert!(html.contains("swatch ring\" style=\"border-color:var(--series-0)"));
        }
    }

    #[test]
    fn runs_differ_without_colours() {
        let run = |run: usize, points: usize| Series {
            name: format!("run {run}"),
            stroke: Stroke::Run(run),
            points: (0..points).map(|i| (i as f64, (i % 2 + run) as f64)).collect(),
        };
        let series: Vec<Series> = (0..10).map(|at| run(at, 400)).collect();
        let chart = Chart { title: "loss".into(), series, ..Chart::default() };
        let html = figure(&chart).into_string();
        // Smoothed lines alone, each in its own colour and dashes, in the legend too.
        assert_eq!(html.matches("<polyline").count(), 10);
        assert!(!html.contains("=\"#"), "an explicit colour is left");
        let mut styles: Vec<&str> = html
            .match_indices("<line x1=\"1\"")
            .map(|(at, _)| html[at..].split("style=\"").nth(1).unwrap().split('"').next().unwrap())
            .collect();
        assert_eq!(styles.len(), 10);
        assert!(
            styles[..2]
                == ["stroke:var(--series-0)", "stroke:var(--series-1);stroke-dasharray:7 4"]
        );
        styles.sort_unstable();
        styles.dedup();
        assert_eq!(styles.len(), 10, "{styles:?}");
        // A run with one point is seen too.
        let chart = Chart { title: "loss".into(), series: vec![run(3, 1)], ..Chart::default() };
        assert_eq!(figure(&chart).into_string().matches("<circle").count(), 1);
    }

    #[test]
    fn names_cannot_break_out_of_the_svg() {
        let html = chart(vec![("\"><script>alert(1)</script>", vec![(0.0, 1.0), (1.0, 2.0)])]);
        assert!(!html.contains("<script"));
    }
}
