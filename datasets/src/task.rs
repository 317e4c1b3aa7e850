//! Tasks: a question, the requested format and a phrasing, which determine the prompt and the right answer.

use serde::{Deserialize, Serialize};

use crate::format::Format;
use crate::question::{Question, texts};
use crate::words::Language;

/// Determines a prompt and its right answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Task {
    /// The question.
    #[serde(flatten)]
    pub question: Question,
    /// The requested format.
    pub format: Format,
    /// The wording of the prompt.
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
    /// All phrasings.
    pub const ALL: [Self; 3] = [Self::Terse, Self::Asking, Self::Polite];
}

impl Task {
    /// The instruction: one line of English.
    pub fn prompt(&self) -> String {
        let mut prompt = self.question.wording(self.phrasing);
        if let Some(request) = format_request(self.format, self.phrasing) {
            prompt.push(' ');
            prompt.push_str(request);
        }
        prompt
    }

    /// The right answer in the requested format, as [`check`](crate::check) accepts it.
    pub fn answer(&self) -> String {
        self.format.shape().render(&self.answer_items(self.format.language()))
    }

    /// The items of the right answer in `language`, in lower case.
    pub(crate) fn answer_items(&self, language: Language) -> Vec<String> {
        texts(&self.question.answer(), language)
    }
}

/// The request for a format; `None` for `Plain`, which isn't requested.
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
