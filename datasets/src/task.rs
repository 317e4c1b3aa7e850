//! A task: a question, the format asked for, and how it is put. It makes the prompt and the right answer.

use serde::{Deserialize, Serialize};

use crate::format::Format;
use crate::question::{Question, texts};
use crate::words::Language;

/// Everything that a prompt and its right answer follow from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Task {
    /// What is asked.
    #[serde(flatten)]
    pub question: Question,
    /// How the answer has to look.
    pub format: Format,
    /// How the prompt is worded.
    pub phrasing: Phrasing,
}

/// One of three wordings of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phrasing {
    /// An imperative: `Name the …`
    Terse,
    /// A question: `What is …`
    Asking,
    /// A request: `Please …`
    Polite,
}

impl Phrasing {
    /// Every phrasing.
    pub const ALL: [Self; 3] = [Self::Terse, Self::Asking, Self::Polite];
}

impl Task {
    /// The instruction, one line of English.
    pub fn prompt(&self) -> String {
        let mut prompt = self.question.wording(self.phrasing);
        if let Some(request) = format_request(self.format, self.phrasing) {
            prompt.push(' ');
            prompt.push_str(request);
        }
        prompt
    }

    /// The right answer in the format asked for: what [`check`](crate::check) accepts.
    pub fn answer(&self) -> String {
        self.format.shape().render(&self.answer_items(self.format.language()))
    }

    /// The items of the right answer, in `language` and in lower case.
    pub(crate) fn answer_items(&self, language: Language) -> Vec<String> {
        texts(&self.question.answer(), language)
    }
}

/// How a prompt asks for a format; `Plain` is what nobody asks for.
fn format_request(format: Format, phrasing: Phrasing) -> Option<&'static str> {
    let [terse, asking, polite] = match format {
        Format::Plain => return None,
        Format::Json => ["As JSON.", "Answer in JSON.", "Use JSON."],
        Format::Bullets => ["As bullets.", "Answer in bullets.", "Use bullets."],
        Format::Upper => ["In upper case.", "Answer in upper case.", "Use upper case."],
        Format::Lower => ["In lower case.", "Answer in lower case.", "Use lower case."],
        Format::Quoted => ["In quotes.", "Answer in quotes.", "Use quotes."],
        Format::French => ["In French.", "Answer in French.", "Use French."],
    };
    Some(match phrasing {
        Phrasing::Terse => terse,
        Phrasing::Asking => asking,
        Phrasing::Polite => polite,
    })
}
