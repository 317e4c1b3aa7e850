//! The section on SAE features whose activation changed.

use maud::{Markup, html};

use crate::{
    FeatureMove, TokenContext,
    format::{Unit, fixed, fixed_or_short, number},
    text::visible_inline,
};

/// Features whose examples are unfolded initially.
const OPEN: usize = 3;

pub(super) fn section(features: &[FeatureMove]) -> Markup {
    let largest = features
        .iter()
        .map(|f| (f.after - f.before).abs())
        .filter(|c| c.is_finite())
        .fold(0.0, f64::max);
    html! {
        @for (position, feature) in features.iter().enumerate() {
            details.feature open[position < OPEN] {
                summary { (headline(feature, largest)) }
                (examples(feature))
            }
        }
    }
}

fn headline(feature: &FeatureMove, largest: f64) -> Markup {
    let change = feature.after - feature.before;
    let share = if largest > 0.0 && change.is_finite() { change / largest } else { 0.0 };
    let (left, width) = (50.0 + 50.0 * share.min(0.0), 50.0 * share.abs());
    html! {
        strong { "Feature " (feature.index) }
        span.move {
            span.bar aria-hidden="true" {
                span.up[change > 0.0].down[change < 0.0] style=(format!("left:{left:.1}%;width:{width:.1}%")) {}
            }
            span.delta { (change_text(change)) }
        }
        span.facts {
            "mean activation " (fixed_or_short(feature.before, 3)) " → " (fixed_or_short(feature.after, 3))
            @if let Some(density) = feature.density { " · active on " (Unit::Percent.format(density)) " of tokens" }
        }
    }
}

fn change_text(change: f64) -> String {
    let sign = if change > 0.0 { "+" } else { "" };
    format!("{sign}{}", fixed_or_short(change, 3))
}

fn examples(feature: &FeatureMove) -> Markup {
    let activations = feature.examples.iter().flat_map(|example| &example.activations).copied();
    let strongest = activations.filter(|a| a.is_finite()).fold(0.0, f32::max);
    html! {
        @if feature.examples.is_empty() {
            p.empty { "no examples" }
        } @else {
            ol.contexts { @for example in &feature.examples { li dir="auto" { (context(example, strongest)) } } }
        }
    }
}

/// A text whose tokens are highlighted in proportion to their activation.
fn context(example: &TokenContext, strongest: f32) -> Markup {
    let activations = example.activations.iter().copied().chain(std::iter::repeat(0.0));
    html! {
        @for (token, activation) in example.tokens.iter().zip(activations) {
            @let value = number(f64::from(activation));
            @let heat = if strongest > 0.0 { (activation / strongest).clamp(0.0, 1.0) } else { 0.0 };
            @if heat > 0.0 {
                mark style={ "--heat:" (fixed(f64::from(heat), 2)) } title=(value) { (visible_inline(token)) }
            } @else {
                span title=(value) { (visible_inline(token)) }
            }
        }
    }
}
