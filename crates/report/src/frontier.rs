//! Charts of one measured quantity against another, with intervals: what a method gains by what it moves.

use std::error::Error;

use maud::{Markup, PreEscaped, html};
use plotters::prelude::*;

use crate::{
    charts::{Ink, SERIES_COLOURS, with_variables},
    curve::Axis,
    format::number,
    page::STYLE,
    text::visible_inline,
};

/// Width and height of a chart in CSS pixels.
const SIZE: (u32, u32) = (560, 360);
/// Grid cells per CSS pixel: `plotters` rounds coordinates to integers.
const FINE: u32 = 4;
/// Height of text in CSS pixels.
const TEXT: f64 = 12.0;
/// Height of a legend's line in CSS pixels.
const LINE: u32 = 20;

/// A value and its interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Ends of the interval, where there is one.
    pub range: Option<(f64, f64)>,
}

/// A point. One that isn't finite is not drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spot {
    /// Horizontal.
    pub x: Estimate,
    /// Vertical.
    pub y: Estimate,
}

/// The points of one method.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Name in the legend.
    pub name: String,
    /// In their order; the last one is drawn larger where they are joined.
    pub spots: Vec<Spot>,
    /// Whether a line goes through them.
    pub is_joined: bool,
}

/// One chart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frontier {
    /// Name of its file, without an ending.
    pub name: String,
    /// Heading.
    pub title: String,
    /// The horizontal axis.
    pub x_label: String,
    /// The vertical axis.
    pub y_label: String,
    /// Coloured by position.
    pub traces: Vec<Trace>,
}

impl Frontier {
    /// In a page, whose colours it takes, with something under it.
    pub(super) fn figure(&self, under: Markup) -> Markup {
        html! {
            figure.chart {
                figcaption {
                    strong { (self.title) } " " span.unit { (self.y_label) }
                    ul.legend {
                        @for (at, trace) in self.drawn() {
                            li {
                                span.swatch style={ "background:" (Ink::Series(at % SERIES_COLOURS).variable()) } {}
                                (trace.name)
                            }
                        }
                    }
                }
                @match self.body() {
                    Ok(Some(body)) => { (PreEscaped(svg(&html! { (self.description()) }.into_string(), SIZE.1, &body))) }
                    Ok(None) => { p.empty { "no data" } }
                    Err(error) => { p.empty { "drawing failed: " (error) } }
                }
                (under)
            }
        }
    }

    /// As a file of its own, with colours for light and dark surroundings; none without points.
    ///
    /// # Errors
    /// A chart that can't be drawn.
    pub fn svg(&self) -> Result<Option<String>, Box<dyn Error>> {
        let Some(body) = self.body()? else { return Ok(None) };
        let colours = STYLE.split("\n\n").take(2).collect::<Vec<_>>().join("\n");
        let text = |x: u32, y: u32, what: &str| {
            html! {
                text x=(x * FINE) y=(y * FINE) font-family="sans-serif" font-size=(TEXT * f64::from(FINE))
                    style={ "fill:" (Ink::Text.variable()) } { (visible_inline(what)) }
            }
        };
        let traces: Vec<(usize, &Trace)> = self.drawn().collect();
        let legend = html! {
            @for (row, (at, trace)) in traces.iter().enumerate() {
                @let y = SIZE.1 + LINE * (row as u32 + 2);
                circle cx=(18 * FINE) cy=((y - 4) * FINE) r=(5 * FINE)
                    style={ "fill:" (Ink::Series(at % SERIES_COLOURS).variable()) } {}
                (text(30, y, &trace.name))
            }
            (text(12, SIZE.1 + LINE - 4, &format!("{}: {}", self.title, self.y_label)))
        };
        let height = SIZE.1 + LINE * (traces.len() as u32 + 3);
        let background = html! {
            rect width="100%" height="100%" style="fill:var(--card)" {}
        };
        let style = html! { style { (PreEscaped(colours)) } };
        let body = body.trim_end().trim_end_matches("</svg>");
        let parts = [style, background, PreEscaped(body.to_owned()), legend];
        let inner = parts.map(Markup::into_string).join("\n") + "</svg>\n";
        let label = html! { (self.description()) }.into_string();
        let opened = svg(&label, height, &inner);
        Ok(Some(opened.replacen("<svg ", "<svg xmlns=\"http://www.w3.org/2000/svg\" ", 1)))
    }

    /// Traces with a point, by their places.
    fn drawn(&self) -> impl Iterator<Item = (usize, &Trace)> {
        self.traces.iter().enumerate().filter(|(_, trace)| trace.finite().next().is_some())
    }

    /// A description for screen readers.
    fn description(&self) -> String {
        let last = |(_, trace): (usize, &Trace)| {
            let spot = trace.finite().last().copied().unwrap_or_default();
            format!("{} at {} and {}", trace.name, number(spot.x.value), number(spot.y.value))
        };
        let all: Vec<String> = self.drawn().map(last).collect();
        format!("Chart of {} by {}: {}.", self.y_label, self.x_label, all.join("; "))
    }

    /// What stands between the tags, the closing one included; none without points.
    fn body(&self) -> Result<Option<String>, Box<dyn Error>> {
        let all = || self.traces.iter().flat_map(Trace::finite);
        if all().next().is_none() {
            return Ok(None);
        }
        let extent = |of: fn(&Spot) -> Estimate| {
            all().flat_map(move |spot| {
                let Estimate { value, range } = of(spot);
                [Some(value), range.map(|r| r.0), range.map(|r| r.1)].into_iter().flatten()
            })
        };
        let x = Axis::around(extent(|spot| spot.x), 0.04, 6);
        let y = Axis::around(extent(|spot| spot.y), 0.06, 6);
        let y_text = y.ticks.iter().map(|&tick| y.label(tick).chars().count()).max().unwrap_or(1);
        let fine = |pixels: f64| (pixels * f64::from(FINE)).round() as u32;
        let mut text = String::new();
        {
            let size = (SIZE.0 * FINE, SIZE.1 * FINE);
            let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
            let mut context = ChartBuilder::on(&root)
                .margin_top(fine(8.0))
                .margin_right(fine(18.0))
                .x_label_area_size(fine(40.0))
                .y_label_area_size(fine(12.0 + 0.64 * TEXT * y_text as f64))
                .build_cartesian_2d(x, y)?;
            // The backend divides font sizes by 1.24.
            let font = ("sans-serif", TEXT * 1.24 * f64::from(FINE)).into_font();
            let font = font.color(&Ink::Text.colour());
            context
                .configure_mesh()
                .bold_line_style(Ink::Grid.colour().stroke_width(FINE))
                .light_line_style(TRANSPARENT)
                .axis_style(TRANSPARENT)
                .set_all_tick_mark_size(fine(4.0))
                .label_style(font.clone())
                .axis_desc_style(font)
                .x_desc(visible_inline(&self.x_label))
                .draw()?;
            for (at, trace) in self.drawn() {
                let ink = Ink::Series(at % SERIES_COLOURS).colour();
                let spots: Vec<&Spot> = trace.finite().collect();
                let at = |spot: &Spot| (spot.x.value, spot.y.value);
                if trace.is_joined {
                    let line = spots.iter().map(|spot| at(spot));
                    context.draw_series(LineSeries::new(line, ink.stroke_width(fine(1.5))))?;
                }
                let bars = spots.iter().flat_map(|spot| {
                    let (x, y) = at(spot);
                    let across = spot.x.range.map(|(low, high)| vec![(low, y), (high, y)]);
                    let upright = spot.y.range.map(|(low, high)| vec![(x, low), (x, high)]);
                    [across, upright].into_iter().flatten()
                });
                let bar = |ends| PathElement::new(ends, ink.mix(0.45).stroke_width(FINE));
                context.draw_series(bars.map(bar))?;
                let last = spots.len() - 1;
                let dots = spots.iter().enumerate().map(|(place, spot)| {
                    let radius = if trace.is_joined && place < last { 2.75 } else { 4.5 };
                    Circle::new(at(spot), fine(radius), ink.filled())
                });
                context.draw_series(dots)?;
            }
            root.present()?;
        }
        let body = text.split_once(">\n").map_or("", |(_, body)| body);
        Ok(Some(with_variables(body.to_owned(), (0..SERIES_COLOURS).map(Ink::Series))))
    }
}

impl Trace {
    fn finite(&self) -> impl Iterator<Item = &Spot> {
        // With larger numbers, widths of axes would overflow.
        let drawable = |value: f64| value.abs() < 1e150;
        self.spots.iter().filter(move |spot| {
            let ends = [spot.x, spot.y].into_iter().filter_map(|e| e.range);
            let mut ends = ends.flat_map(|(low, high)| [low, high]);
            drawable(spot.x.value) && drawable(spot.y.value) && ends.all(drawable)
        })
    }
}

/// `label` is escaped.
fn svg(label: &str, height: u32, body: &str) -> String {
    let (width, height) = (SIZE.0 * FINE, height * FINE);
    format!(r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{body}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(x: f64, y: f64, half: f64) -> Spot {
        let estimate = |value: f64| Estimate { value, range: Some((value - half, value + half)) };
        Spot { x: estimate(x), y: estimate(y) }
    }

    fn chart(traces: Vec<Trace>) -> Frontier {
        let [name, title, x_label, y_label] = ["f", "Frontier", "KL", "accuracy"].map(Into::into);
        Frontier { name, title, x_label, y_label, traces }
    }

    fn trace(name: &str, spots: Vec<Spot>) -> Trace {
        Trace { name: name.into(), spots, is_joined: true }
    }

    #[test]
    fn every_point_has_its_intervals() {
        let of = trace("fpo", vec![spot(0.0, 0.5, 0.1), spot(1.0, 0.7, 0.1), spot(2.0, 0.8, 0.1)]);
        let figure = chart(vec![of]).figure(html! {}).into_string();
        assert_eq!(figure.matches("<circle").count(), 3);
        // The line, two bars a point, and the grid's lines.
        assert_eq!(figure.matches("opacity=\"0.45\"").count(), 6, "{figure}");
        assert!(figure.contains("Chart of accuracy by KL: fpo at 2 and 0.8."), "{figure}");
        assert!(!figure.contains("=\"#"), "an explicit colour is left");
    }

    #[test]
    fn what_is_not_finite_is_not_drawn() {
        let nan = Spot { x: Estimate { value: f64::NAN, range: None }, ..spot(0.0, 1.0, 0.1) };
        let wide = Spot { y: Estimate { value: 1.0, range: Some((0.0, f64::INFINITY)) }, ..nan };
        let figure =
            chart(vec![trace("a", vec![nan, wide]), trace("b", vec![spot(1.0, 1.0, 0.1)])]);
        let text = figure.figure(html! {}).into_string();
        assert_eq!(text.matches("<circle").count(), 1);
        assert!(
            !text.contains("NaN") && text.contains("--series-1") && !text.contains("--series-0")
        );
        assert_eq!(chart(vec![trace("a", vec![nan])]).svg().unwrap(), None);
        assert!(chart(vec![]).figure(html! {}).into_string().contains("no data"));
    }

    #[test]
    fn a_file_of_its_own_is_whole() {
        let name = "\"><script>alert(1)</script>";
        let chart = chart(vec![trace(name, vec![spot(1.0, 1.0, 0.1)])]);
        let svg = chart.svg().unwrap().unwrap();
        assert!(svg.starts_with("<svg xmlns=") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert_eq!((svg.matches("<svg").count(), svg.matches("</svg>").count()), (1, 1));
        assert!(!svg.contains("<script") && svg.contains("prefers-color-scheme: dark"), "{svg}");
        assert!(!chart.figure(html! {}).into_string().contains("<script"));
    }
}
