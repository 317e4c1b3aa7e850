//! What asking will cost, before anything is asked.

use serde::Serialize;
use serde_json::Value;

use crate::Usage;

/// Characters per token, about, of English text under the tokenizers of today's judges.
const CHARACTERS: usize = 4;
/// Tokens around each message.
const OVERHEAD: usize = 4;

/// Prices per million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Prices {
    /// Of tokens that are sent.
    pub input: f64,
    /// Of tokens that are received.
    pub output: f64,
}

impl Prices {
    /// The price of these tokens.
    pub fn cost(&self, usage: Usage) -> f64 {
        let millions = |tokens: u64| tokens as f64 / 1e6;
        self.input * millions(usage.prompt_tokens) + self.output * millions(usage.completion_tokens)
    }
}

/// Tokens of requests, estimated: four characters each, and one token for each reply.
pub fn usage<'a>(requests: impl Iterator<Item = &'a [Value]>) -> Usage {
    let length = |message: &Value| {
        let text = message.get("content").and_then(Value::as_str).unwrap_or_default();
        (text.chars().count().div_ceil(CHARACTERS) + OVERHEAD) as u64
    };
    requests.fold(Usage::default(), |sum, messages| Usage {
        prompt_tokens: sum.prompt_tokens + messages.iter().map(length).sum::<u64>(),
        completion_tokens: sum.completion_tokens + 1,
    })
}
