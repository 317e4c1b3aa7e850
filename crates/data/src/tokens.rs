//! Tokenised pairs and examples, owned and borrowed.

/// A prompt and its response as one sequence of tokens. `1 ≤ prompt_len < tokens.len()` always holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedResponse {
    /// Prompt and response: BOS first if the model has one, end token last unless truncated.
    pub tokens: Vec<u32>,
    /// Number of prompt tokens.
    pub prompt_len: usize,
}

/// A tokenised preference pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedPair {
    /// The pair's row in its source, 0-based.
    pub id: u64,
    /// Prompt and chosen response.
    pub chosen: TokenizedResponse,
    /// Prompt and rejected response.
    pub rejected: TokenizedResponse,
}

/// A tokenised example for supervised fine-tuning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedExample {
    /// The example's row in its source, 0-based.
    pub id: u64,
    /// Prompt and response.
    pub response: TokenizedResponse,
    /// Tokens after the prompt that aren't learned, such as later turns of the user: their positions, ascending, all above
    /// `prompt_len`.
    pub context: Vec<u32>,
}

/// A borrowed [`TokenizedResponse`], for instance from a memory-mapped store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseView<'a> {
    /// Prompt and response.
    pub tokens: &'a [u32],
    /// Number of prompt tokens.
    pub prompt_len: usize,
}

/// A borrowed [`TokenizedPair`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairView<'a> {
    /// The pair's row in its source, 0-based.
    pub id: u64,
    /// Prompt and chosen response.
    pub chosen: ResponseView<'a>,
    /// Prompt and rejected response.
    pub rejected: ResponseView<'a>,
}

/// A borrowed [`TokenizedExample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExampleView<'a> {
    /// The example's row in its source, 0-based.
    pub id: u64,
    /// Prompt and response.
    pub response: ResponseView<'a>,
    /// Positions after the prompt that aren't learned, ascending, all above `prompt_len`.
    pub context: &'a [u32],
}

impl TokenizedResponse {
    /// A borrowed view.
    pub fn view(&self) -> ResponseView<'_> {
        ResponseView { tokens: &self.tokens, prompt_len: self.prompt_len }
    }
}

impl TokenizedPair {
    /// A borrowed view.
    pub fn view(&self) -> PairView<'_> {
        PairView { id: self.id, chosen: self.chosen.view(), rejected: self.rejected.view() }
    }
}

impl TokenizedExample {
    /// A borrowed view.
    pub fn view(&self) -> ExampleView<'_> {
        ExampleView { id: self.id, response: self.response.view(), context: &self.context }
    }
}

impl ResponseView<'_> {
    /// Whether `1 ≤ prompt_len < tokens.len()` holds.
    pub fn is_sound(&self) -> bool {
        1 <= self.prompt_len && self.prompt_len < self.tokens.len()
    }

    /// An owned copy.
    pub fn to_owned(&self) -> TokenizedResponse {
        TokenizedResponse { tokens: self.tokens.to_vec(), prompt_len: self.prompt_len }
    }
}

impl PairView<'_> {
    /// Tokens of the longer row, prompt included: it sets the width of a batch.
    pub fn longest(&self) -> usize {
        self.chosen.tokens.len().max(self.rejected.tokens.len())
    }

    /// Tokens that both rows begin with: the prompt, and what the responses have in common at their beginning.
    pub fn shared(&self) -> usize {
        let both = self.chosen.tokens.iter().zip(self.rejected.tokens);
        both.take_while(|(chosen, rejected)| chosen == rejected).count()
    }

    /// An owned copy.
    pub fn to_owned(&self) -> TokenizedPair {
        TokenizedPair {
            id: self.id,
            chosen: self.chosen.to_owned(),
            rejected: self.rejected.to_owned(),
        }
    }
}

impl ExampleView<'_> {
    /// Number of tokens that are learned; at least 1.
    pub fn learned(&self) -> usize {
        self.response.tokens.len() - self.response.prompt_len - self.context.len()
    }

    /// Whether `1 ≤ prompt_len < tokens.len()` holds, and the first token after the prompt is learned.
    pub fn is_sound(&self) -> bool {
        let first = self.response.prompt_len;
        let ascending = self.context.is_sorted_by(|a, b| a < b);
        let above = self.context.first().is_none_or(|&position| position as usize > first);
        let below = self.context.last().is_none_or(|&t| (t as usize) < self.response.tokens.len());
        self.response.is_sound() && ascending && above && below
    }

    /// An owned copy.
    pub fn to_owned(&self) -> TokenizedExample {
        let context = self.context.to_vec();
        TokenizedExample { id: self.id, response: self.response.to_owned(), context }
    }
}
