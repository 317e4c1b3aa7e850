//! The section of sample responses before and after alignment.

use maud::{Markup, html};

use crate::{
    Sample, SampleGroup,
    changes::{self, Change, Mark, plain as text},
};

/// How alignment changed the correctness of a response.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Fixed,
    Broken,
    Right,
    Wrong,
    Unjudged,
}

impl Outcome {
    fn of(sample: &Sample) -> Self {
        match (sample.before_right, sample.after_right) {
            (Some(false), Some(true)) => Outcome::Fixed,
            (Some(true), Some(false)) => Outcome::Broken,
            (Some(true), Some(true)) => Outcome::Right,
            (Some(false), Some(false)) => Outcome::Wrong,
            _ => Outcome::Unjudged,
        }
    }

    /// Class in the style sheet.
    fn class(self) -> &'static str {
        match self {
            Outcome::Fixed => "fixed",
            Outcome::Broken => "broken",
            Outcome::Right => "right",
            Outcome::Wrong => "wrong",
            Outcome::Unjudged => "unjudged",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Outcome::Fixed => "Fixed",
            Outcome::Broken => "Broken",
            Outcome::Right => "Right both times",
            Outcome::Wrong => "Wrong both times",
            Outcome::Unjudged => "Not judged",
        }
    }
}

pub(super) fn section(groups: &[SampleGroup]) -> Markup {
    let all: Vec<&Sample> = groups.iter().flat_map(|group| &group.samples).collect();
    html! {
        (filter(&all))
        @for group in groups {
            h3 { (group.title) }
            p.caption { (group.choice) }
            (articles(&group.samples))
        }
    }
}

fn articles(samples: &[Sample]) -> Markup {
    html! {
        @for sample in samples {
            article class={ "sample " (Outcome::of(sample).class()) } {
                div.prompt {
                    h3 { "Prompt" }
                    (text(&sample.prompt))
                    @if let Some((name, other)) = &sample.other {
                        h4 { (name) }
                        (text(other))
                    }
                }
                (answers(sample))
            }
        }
    }
}

/// Both answers, with what changed marked.
fn answers(sample: &Sample) -> Markup {
    let Sample { before, after, before_right, after_right, note_before, note_after, .. } = sample;
    let change = changes::compare(before, after);
    let (old, new) = match &change {
        Change::Marked { before, after } => {
            (changes::pieces(before, Mark::Gone), changes::pieces(after, Mark::New))
        }
        _ => (text(before), text(after)),
    };
    html! {
        div.answers {
            (answer(&html! { "Before" }, old, *before_right, note_before.as_deref(), ""))
            (answer(&html! { "After" }, new, *after_right, note_after.as_deref(), about(&change)))
        }
    }
}

/// What an answer without marks is; empty where there are some.
pub(super) fn about(change: &Change) -> &'static str {
    match change {
        Change::Same => "the same",
        Change::Marked { .. } => "",
        Change::Rewritten => "other words throughout",
        Change::TooLong => "too long to mark what changed",
    }
}

/// Radio buttons that filter the samples by CSS alone. Browsers without `:has` show all samples.
fn filter(samples: &[&Sample]) -> Markup {
    let outcomes =
        [Outcome::Fixed, Outcome::Broken, Outcome::Right, Outcome::Wrong, Outcome::Unjudged];
    let count = |outcome| samples.iter().filter(|sample| Outcome::of(sample) == outcome).count();
    let present: Vec<_> = outcomes
        .into_iter()
        .map(|o| (o.class(), o.label(), count(o)))
        .filter(|c| c.2 > 0)
        .collect();
    html! {
        @if present.len() > 1 {
            fieldset.filter {
                legend.hidden { "Show samples" }
                label { input type="radio" name="show" value="all" checked; "All " span.unit { (samples.len()) } }
                @for (class, label, count) in present {
                    label { input type="radio" name="show" value=(class); (label) " " span.unit { (count) } }
                }
            }
        }
    }
}

/// An answer below its heading.
pub(super) fn answer(
    title: &Markup,
    answer: Markup,
    right: Option<bool>,
    note: Option<&str>,
    about: &str,
) -> Markup {
    html! {
        div.answer {
            h4 {
                (title)
                (badge(right))
                @if !about.is_empty() { " " span.about { (about) } }
            }
            (answer)
            @if let Some(note) = note { p.note { (note) } }
        }
    }
}

/// Whether an answer is right, where that was judged.
pub(super) fn badge(right: Option<bool>) -> Markup {
    html! {
        @match right {
            Some(true) => { " " span.badge.better { "✓ right" } }
            Some(false) => { " " span.badge.worse { "✗ wrong" } }
            None => {}
        }
    }
}
