//! What was done to the items of a set.

use serde::{Deserialize, Serialize};

/// Counts of what was tokenised. A pair is one item with two rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PrepareSummary {
    /// Items read.
    pub read: usize,
    /// Items kept.
    pub kept: usize,
    /// Items dropped because truncation left no response tokens, or no room for what the template writes in a prompt.
    pub dropped_empty: usize,
    /// Kept items with at least one truncated row.
    pub clipped: usize,
    /// Kept items with a truncated prompt, which the two rows of a pair share.
    pub clipped_prompts: usize,
    /// Kept rows with a truncated response.
    pub clipped_responses: usize,
    /// Tokens in all kept rows.
    pub tokens: usize,
    /// Response tokens in all kept rows.
    pub response_tokens: usize,
    /// Length of the longest kept row, in tokens.
    pub longest: usize,
    /// Kept rows that went through the chat template.
    #[serde(default)]
    pub templated: usize,
    /// Kept rows left as they were because their prompt already contains the template's special tokens ([`crate::Rendering::Auto`]).
    #[serde(default)]
    pub already_templated: usize,
    /// Kept rows joined as they were: under [`crate::Rendering::None`], or without a chat template.
    #[serde(default)]
    pub as_given: usize,
}

impl PrepareSummary {
    /// How rows were rendered, in words.
    pub fn ways(&self) -> String {
        format!(
            "{} rows went through the chat template, {} already carried it, {} are as given",
            self.templated, self.already_templated, self.as_given
        )
    }

    /// Share of the kept items with a truncated prompt; 0 if none are kept.
    pub fn clipped_prompt_share(&self) -> f64 {
        self.clipped_prompts as f64 / self.kept.max(1) as f64
    }

    /// Share of the kept rows with a truncated response; 0 if none are kept.
    pub fn clipped_response_share(&self) -> f64 {
        let rows = self.templated + self.already_templated + self.as_given;
        self.clipped_responses as f64 / rows.max(1) as f64
    }

    /// Share of the kept items with a truncated row; 0 if none are kept.
    pub fn clipped_share(&self) -> f64 {
        self.clipped as f64 / self.kept.max(1) as f64
    }

    /// Share of the items read that were dropped because truncation left no response tokens.
    pub fn dropped_share(&self) -> f64 {
        self.dropped_empty as f64 / self.read.max(1) as f64
    }
}

impl std::ops::Add for PrepareSummary {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            read: self.read + other.read,
            kept: self.kept + other.kept,
            dropped_empty: self.dropped_empty + other.dropped_empty,
            clipped: self.clipped + other.clipped,
            clipped_prompts: self.clipped_prompts + other.clipped_prompts,
            clipped_responses: self.clipped_responses + other.clipped_responses,
            tokens: self.tokens + other.tokens,
            response_tokens: self.response_tokens + other.response_tokens,
            longest: self.longest.max(other.longest),
            templated: self.templated + other.templated,
            already_templated: self.already_templated + other.already_templated,
            as_given: self.as_given + other.as_given,
        }
    }
}
