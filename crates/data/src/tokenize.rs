//! From pairs and examples to tokens: rendering, joint tokenisation, truncation.
//!
//! Prompt and response are tokenised as one text, because a merge may cross the boundary between them. A token that crosses it
//! belongs to the response: the policy has to predict it, and no part of the response leaks into the prompt.

use crate::rendering::{End, Joined, Renderer, Rendering, Way};
use crate::source::{Pair, Prompt, Response, SftExample};
use crate::template::{TemplateChoice, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::tokens::{TokenizedExample, TokenizedPair, TokenizedResponse};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Limits on the length of a row, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truncation {
    /// Limit on prompt and response together; excess is cut from the end of the response. At least 2; `usize::MAX` for none.
    pub max_length: usize,
    /// Limit on the prompt, BOS included; excess is cut from its start, after BOS. At least 1 and below `max_length`; none if not
    /// set.
    pub max_prompt_length: Option<usize>,
}

/// Why preparing stopped.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Limits that leave no room for a response.
    #[error(
        "max_length {max_length} with max_prompt_length {max_prompt_length:?} leaves no room for a response; \
         1 ≤ max_prompt_length < max_length must hold"
    )]
    Limits {
        /// Limit on prompt and response.
        max_length: usize,
        /// Limit on the prompt.
        max_prompt_length: Option<usize>,
    },
    /// No token to end a response with.
    #[error(
        "the tokenizer has no end-of-text token; name one as `eos_token` in tokenizer_config.json"
    )]
    NoEnd,
    /// No template for [`Rendering::Template`].
    #[error(
        "rendering `template` needs a chat template, and the tokenizer has none; add chat_template.jinja to its folder, \
         or choose the rendering `auto` or `none`"
    )]
    NoTemplate,
    /// The chat template rejected an item.
    #[error("row {id}: can't render it")]
    Template {
        /// Row of the item in its source, 0-based.
        id: u64,
        /// The template's error.
        source: TemplateError,
    },
    /// The tokenizer failed on an item.
    #[error("row {id}: can't tokenise it")]
    Tokenizer {
        /// Row of the item in its source, 0-based.
        id: u64,
        /// The tokenizer's error.
        source: TokenizerError,
    },
}

/// Counts of what was tokenised. A pair is one item with two rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PrepareSummary {
    /// Items read.
    pub read: usize,
    /// Items kept.
    pub kept: usize,
    /// Items dropped because truncation left no response tokens.
    pub dropped_empty: usize,
    /// Kept items with at least one truncated row.
    pub clipped: usize,
    /// Kept rows with a truncated prompt.
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
    /// Kept rows left as they were because their prompt already contains the template's special tokens ([`Rendering::Auto`]).
    #[serde(default)]
    pub already_templated: usize,
    /// Kept rows joined as they were: under [`Rendering::None`], or without a chat template.
    #[serde(default)]
    pub as_given: usize,
}

impl PrepareSummary {
    /// Share of the kept items with a truncated row; 0 if none are kept.
    pub fn clipped_share(&self) -> f64 {
        self.clipped as f64 / self.kept.max(1) as f64
    }

    /// Share of the items read that were dropped because truncation left no response tokens.
    pub fn dropped_share(&self) -> f64 {
        self.dropped_empty as f64 / self.read.max(1) as f64
    }
}

/// Tokenises pairs and examples under fixed settings.
#[derive(Debug, Clone)]
pub struct Preparer<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) renderer: Renderer<'a>,
    pub(crate) truncation: Truncation,
    eos: Option<u32>,
}

/// A row and what was done to it.
struct Row {
    response: TokenizedResponse,
    clipped_prompt: bool,
    clipped_response: bool,
    way: Way,
}

impl<'a> Preparer<'a> {
    /// Checks that the limits leave room, that there is a token to end responses with, and a template if `rendering` needs one.
    ///
    /// # Errors
    /// [`PrepareError::Limits`], [`PrepareError::NoEnd`] and [`PrepareError::NoTemplate`].
    pub fn new(
        tokenizer: &'a Tokenizer,
        template: &'a TemplateChoice,
        rendering: Rendering,
        truncation: Truncation,
    ) -> Result<Self, PrepareError> {
        let Truncation { max_length, max_prompt_length } = truncation;
        if max_length < 2
            || max_prompt_length.is_some_and(|prompt| prompt < 1 || prompt >= max_length)
        {
            return Err(PrepareError::Limits { max_length, max_prompt_length });
        }
        let eos = match (template, rendering) {
            (TemplateChoice::None, Rendering::Template) => return Err(PrepareError::NoTemplate),
            (TemplateChoice::None, _) | (_, Rendering::None) => tokenizer.eos_id(),
            (TemplateChoice::Chat(_), _) => tokenizer.eos_id().or(tokenizer.end_of_turn_id()),
        };
        if eos.is_none() {
            return Err(PrepareError::NoEnd);
        }
        let renderer = Renderer::new(tokenizer, template, rendering);
        Ok(Self { tokenizer, renderer, truncation, eos })
    }

    /// Tokenises a pair; `None` if truncation leaves no tokens of a response.
    ///
    /// # Errors
    /// An item that the template rejects or the tokenizer fails on.
    pub fn tokenize_pair(&self, pair: &Pair) -> Result<Option<TokenizedPair>, PrepareError> {
        let rows = self.rows(pair.id, &pair.prompt, [&pair.chosen, &pair.rejected])?;
        Ok(rows.map(|[chosen, rejected]| pair_of(pair.id, chosen, rejected)))
    }

    /// Tokenises an example; `None` if truncation leaves no tokens of its response.
    ///
    /// # Errors
    /// An item that the template rejects or the tokenizer fails on.
    pub fn tokenize_example(
        &self,
        example: &SftExample,
    ) -> Result<Option<TokenizedExample>, PrepareError> {
        let rows = self.rows(example.id, &example.prompt, [&example.response])?;
        Ok(rows.map(|[row]| TokenizedExample { id: example.id, response: row.response }))
    }

    /// The tokens of a prompt alone, from which generation starts. (The last one may differ from the same prompt in a pair, where a
    /// merge may cross into the response.)
    ///
    /// # Errors
    /// A prompt that the template rejects or the tokenizer fails on; reported as row 0.
    pub fn tokenize_prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, PrepareError> {
        let text = self
            .renderer
            .prompt(prompt)
            .map_err(|source| PrepareError::Template { id: 0, source })?;
        let encoding = self
            .tokenizer
            .encode(&text)
            .map_err(|source| PrepareError::Tokenizer { id: 0, source })?;
        let mut tokens = encoding.ids;
        let mut prompt_len = tokens.len();
        self.begin_once(&mut tokens, &mut prompt_len);
        self.clip_prompt(&mut tokens, &mut prompt_len);
        Ok(tokens)
    }

    /// The tokens of a text that isn't a prompt with a response: BOS and the text as it is, without EOS.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn tokenize_text(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = self.tokenizer.encode(text)?.ids;
        let mut prompt_len = tokens.len();
        self.begin_once(&mut tokens, &mut prompt_len);
        Ok(tokens)
    }

    /// Tokenises pairs on all cores and keeps their order.
    ///
    /// # Errors
    /// The error of the first pair that can't be tokenised.
    pub fn prepare_pairs(
        &self,
        pairs: &[Pair],
    ) -> Result<(Vec<TokenizedPair>, PrepareSummary), PrepareError> {
        let rows = |pair: &Pair| self.rows(pair.id, &pair.prompt, [&pair.chosen, &pair.rejected]);
        let (kept, summary) = prepare(pairs, rows)?;
        let pair =
            |(pair, [chosen, rejected]): (&Pair, [Row; 2])| pair_of(pair.id, chosen, rejected);
        Ok((kept.into_iter().map(pair).collect(), summary))
    }

    /// Tokenises examples on all cores and keeps their order.
    ///
    /// # Errors
    /// The error of the first example that can't be tokenised.
    pub fn prepare_examples(
        &self,
        examples: &[SftExample],
    ) -> Result<(Vec<TokenizedExample>, PrepareSummary), PrepareError> {
        let rows =
            |example: &SftExample| self.rows(example.id, &example.prompt, [&example.response]);
        let (kept, summary) = prepare(examples, rows)?;
        let example = |(example, [row]): (&SftExample, [Row; 1])| TokenizedExample {
            id: example.id,
            response: row.response,
        };
        Ok((kept.into_iter().map(example).collect(), summary))
    }

    /// The rows of one item; `None` if one of them has no response left.
    fn rows<const N: usize>(
        &self,
        id: u64,
        prompt: &Prompt,
        responses: [&Response; N],
    ) -> Result<Option<[Row; N]>, PrepareError> {
        let mut rows = Vec::with_capacity(N);
        for response in responses {
            let joined = self.renderer.join(prompt, response);
            let joined = joined.map_err(|source| PrepareError::Template { id, source })?;
            match self.row(&joined).map_err(|source| PrepareError::Tokenizer { id, source })? {
                Some(row) => rows.push(row),
                None => return Ok(None),
            }
        }
        Ok(rows.try_into().ok())
    }

    fn row(&self, joined: &Joined) -> Result<Option<Row>, TokenizerError> {
        let boundary = joined.boundary;
        let encoding = self.tokenizer.encode(&joined.text)?;
        let mut tokens = encoding.ids;
        let mut prompt_len =
            encoding.offsets.iter().position(|&(_, end)| end > boundary).unwrap_or(tokens.len());
        self.begin_once(&mut tokens, &mut prompt_len);
        self.end_once(&mut tokens, prompt_len, joined.end);
        // Nothing predicts the first token of a text.
        prompt_len = prompt_len.max(1);

        let clipped_prompt = self.clip_prompt(&mut tokens, &mut prompt_len);
        let clipped_response = tokens.len() > self.truncation.max_length;
        tokens.truncate(self.truncation.max_length);
        let response = TokenizedResponse { tokens, prompt_len };
        let way = joined.way;
        let row = Row { response, clipped_prompt, clipped_response, way };
        Ok(row.response.view().is_sound().then_some(row))
    }

    /// Makes the row start with exactly one BOS, whether template or text wrote none, one or several.
    fn begin_once(&self, tokens: &mut Vec<u32>, prompt_len: &mut usize) {
        let Some(bos) = self.tokenizer.bos_id().filter(|_| self.tokenizer.adds_bos()) else {
            return;
        };
        let there = tokens[..*prompt_len].iter().take_while(|&&token| token == bos).count();
        tokens.splice(..there, [bos]);
        *prompt_len = *prompt_len + 1 - there;
    }

    /// Adds EOS unless the row already ends as it should. Where response and template both end the turn, one of the two is removed.
    fn end_once(&self, tokens: &mut Vec<u32>, prompt_len: usize, end: End) {
        let stops = |id: &u32| self.tokenizer.stop_ids().contains(id);
        if let End::Turn = end {
            while let [.., before, last] = tokens[prompt_len..]
                && before == last
                && stops(&last)
            {
                tokens.pop();
            }
        }
        let ended = tokens.last().is_some_and(|last| match end {
            End::Turn => stops(last),
            End::Eos => Some(*last) == self.eos,
            End::AsWritten => true,
        });
        if !ended {
            tokens.extend(self.eos);
        }
    }

    /// Truncates the prompt at its start, after BOS. Returns whether anything was cut.
    fn clip_prompt(&self, tokens: &mut Vec<u32>, prompt_len: &mut usize) -> bool {
        let Some(excess) =
            self.truncation.max_prompt_length.and_then(|limit| prompt_len.checked_sub(limit))
        else {
            return false;
        };
        let kept_front = usize::from(
            tokens.first().is_some_and(|&token| Some(token) == self.tokenizer.bos_id()),
        );
        tokens.drain(kept_front..kept_front + excess);
        *prompt_len -= excess;
        excess > 0
    }
}

/// The items that are kept, each with its rows, in their order.
type Kept<'a, T, const N: usize> = Vec<(&'a T, [Row; N])>;

fn prepare<T: Sync, const N: usize>(
    items: &[T],
    rows: impl Fn(&T) -> Result<Option<[Row; N]>, PrepareError> + Send + Sync,
) -> Result<(Kept<'_, T, N>, PrepareSummary), PrepareError> {
    let results: Vec<_> = items.par_iter().map(rows).collect();
    let mut summary = PrepareSummary { read: items.len(), ..Default::default() };
    let mut kept = Vec::with_capacity(items.len());
    for (item, result) in items.iter().zip(results) {
        let Some(rows) = result? else {
            summary.dropped_empty += 1;
            continue;
        };
        let lost_tokens = |row: &Row| row.clipped_prompt || row.clipped_response;
        summary.clipped += usize::from(rows.iter().any(lost_tokens));
        for row in &rows {
            let len = row.response.tokens.len();
            summary.clipped_prompts += usize::from(row.clipped_prompt);
            summary.clipped_responses += usize::from(row.clipped_response);
            match row.way {
                Way::Templated => summary.templated += 1,
                Way::AlreadyTemplated => summary.already_templated += 1,
                Way::AsGiven => summary.as_given += 1,
            }
            summary.tokens += len;
            summary.response_tokens += len - row.response.prompt_len;
            summary.longest = summary.longest.max(len);
        }
        kept.push((item, rows));
    }
    summary.kept = kept.len();
    Ok((kept, summary))
}

fn pair_of(id: u64, chosen: Row, rejected: Row) -> TokenizedPair {
    TokenizedPair { id, chosen: chosen.response, rejected: rejected.response }
}

#[cfg(test)]
mod tests;
