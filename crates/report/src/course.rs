//! Answers that were sampled while a model was trained.

use maud::{Markup, html};

use crate::{AnswerCourse, text::visible};

/// A closed element per prompt, so that they don't push the next stage's charts away.
pub(super) fn section(courses: &[AnswerCourse]) -> Markup {
    html! {
        @for course in courses {
            details.course {
                summary { "Answers on the way: " span.text { (visible(&course.prompt)) } }
                dl {
                    @for (step, answer) in &course.answers {
                        div { dt { "step " (step) } dd.text { (visible(answer)) } }
                    }
                }
            }
        }
    }
}
