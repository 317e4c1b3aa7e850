//! From pairs and examples to tokens: rendering, joint tokenisation, truncation.
//!
//! Prompt and response are tokenised as one text, because a merge may cross the boundary between them. The responses of a pair
//! share one prompt, as in TRL: the longest beginning that the prompt alone and both joint tokenisations have in common. What
//! follows belongs to the response: the policy has to predict it, and no part of a response leaks into the prompt.

mod summary;

pub use summary::PrepareSummary;

use crate::rendering::{Cuts, End, Joined, Renderer, Rendering, Split, Turns, Way};
use crate::source::{Pair, Prompt, SftExample};
use crate::template::{TemplateChoice, TemplateError};
use crate::tokenizer::{Encoding, Tokenizer, TokenizerError};
use crate::tokens::{TokenizedExample, TokenizedPair, TokenizedResponse};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

/// Limits on the length of a row, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truncation {
    /// Limit on prompt and response together; excess is cut from the end of the response. At least 2; `usize::MAX` for none.
    pub max_length: usize,
    /// Limit on the prompt, BOS included; excess is cut from the start of its content, and what the template writes around that is
    /// kept. At least 1 and below `max_length`; none if not set.
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

/// Tokenises pairs and examples under fixed settings.
#[derive(Debug, Clone)]
pub struct Preparer<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) renderer: Renderer<'a>,
    pub(crate) truncation: Truncation,
    eos: Option<u32>,
    turns: Turns,
}

/// The prompt that the responses of an item share.
struct SharedPrompt {
    /// As rows begin with it.
    tokens: Vec<u32>,
    /// Tokens that it takes of a tokenised text.
    read: usize,
    clipped: bool,
}

/// Whether a prompt fits its limit.
enum Fit {
    /// It does, perhaps with content cut.
    Fits(SharedPrompt),
    /// Only a shorter one may.
    Shorter(Prompt),
    /// There is no room even for what the template writes.
    Never,
}

/// A row and what was done to it.
struct Row {
    response: TokenizedResponse,
    /// Positions after the prompt that aren't learned.
    context: Vec<u32>,
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
        Ok(Self { tokenizer, renderer, truncation, eos, turns: Turns::Last })
    }

    /// Examples that teach these turns; by default all where the chat template marks them, else the last.
    #[must_use]
    pub fn teaching(self, turns: Option<Turns>) -> Self {
        let turns = Turns::of(turns, self.renderer.template());
        Self { turns, ..self }
    }

    /// The turns that examples teach.
    pub fn turns(&self) -> Turns {
        self.turns
    }

    /// Tokenises a pair; `None` if truncation leaves no tokens of a response.
    ///
    /// # Errors
    /// An item that the template rejects or the tokenizer fails on.
    pub fn tokenize_pair(&self, pair: &Pair) -> Result<Option<TokenizedPair>, PrepareError> {
        let rows = self.rows_of_pair(pair)?;
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
        Ok(self.row_of_example(example)?.map(|[row]| example_of(example.id, row)))
    }

    /// The tokens of a prompt alone, from which generation starts. (The same prompt in a pair may be shorter, where a merge crosses
    /// into a response.) A prompt is whole if its limit leaves no room even for what the template writes.
    ///
    /// # Errors
    /// A prompt that the template rejects or the tokenizer fails on; reported as row 0.
    pub fn tokenize_prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, PrepareError> {
        let mut prompt = Cow::Borrowed(prompt);
        loop {
            let text = self.renderer.prompt(&prompt);
            let text = text.map_err(|source| PrepareError::Template { id: 0, source })?;
            let encoding = self.tokenizer.encode(&text);
            let encoding = encoding.map_err(|source| PrepareError::Tokenizer { id: 0, source })?;
            match self.fit(&prompt, &text, &encoding, encoding.ids.len()) {
                Fit::Fits(prompt) => return Ok(prompt.tokens),
                Fit::Shorter(shorter) => prompt = Cow::Owned(shorter),
                Fit::Never => return Ok(self.begin_once(&encoding.ids)),
            }
        }
    }

    /// The tokens of a text that isn't a prompt with a response: BOS and the text as it is, without EOS.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn tokenize_text(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.begin_once(&self.tokenizer.encode(text)?.ids))
    }

    /// Tokenises pairs on all cores and keeps their order.
    ///
    /// # Errors
    /// The error of the first pair that can't be tokenised.
    pub fn prepare_pairs(
        &self,
        pairs: &[Pair],
    ) -> Result<(Vec<TokenizedPair>, PrepareSummary), PrepareError> {
        let (kept, summary) = prepare(pairs, |pair| self.rows_of_pair(pair))?;
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
        let (kept, summary) = prepare(examples, |example| self.row_of_example(example))?;
        let example = |(example, [row]): (&SftExample, [Row; 1])| example_of(example.id, row);
        Ok((kept.into_iter().map(example).collect(), summary))
    }

    fn rows_of_pair(&self, pair: &Pair) -> Result<Option<[Row; 2]>, PrepareError> {
        let Pair { chosen, rejected, .. } = pair;
        self.rows(pair.id, &pair.prompt, |prompt| {
            let [a, b] = [chosen, rejected].map(|response| self.renderer.join(prompt, response));
            let (a, b) = (a?, b?);
            if a.text == b.text
                && let Some(key) = chosen.beyond_text().or(rejected.beyond_text())
                && chosen != rejected
            {
                return Err(TemplateError::Alike { key });
            }
            Ok([a, b])
        })
    }

    fn row_of_example(&self, example: &SftExample) -> Result<Option<[Row; 1]>, PrepareError> {
        let split = match self.turns {
            Turns::All => Split::of(example),
            Turns::Last => None,
        };
        match split {
            Some(Split { prompt, rest }) => self.rows(example.id, &prompt, |prompt| {
                Ok([self.renderer.join_turns(prompt, &rest)?])
            }),
            None => self.rows(example.id, &example.prompt, |prompt| {
                Ok([self.renderer.join(prompt, &example.response)?])
            }),
        }
    }

    /// The rows of one item, whose responses share one prompt: the longest beginning that the prompt alone and every joint
    /// tokenisation have in common. `None` if a row has no response left.
    fn rows<const N: usize>(
        &self,
        id: u64,
        prompt: &Prompt,
        join: impl Fn(&Prompt) -> Result<[Joined; N], TemplateError>,
    ) -> Result<Option<[Row; N]>, PrepareError> {
        let encode = |text: &str| {
            self.tokenizer.encode(text).map_err(|source| PrepareError::Tokenizer { id, source })
        };
        let mut prompt = Cow::Borrowed(prompt);
        loop {
            let joined = join(&prompt).map_err(|source| PrepareError::Template { id, source })?;
            let mut whole = Vec::with_capacity(N);
            for joined in joined {
                whole.push((encode(&joined.text)?, joined));
            }
            let Some((_, first)) = whole.first() else { return Ok(None) };
            let alone = &first.text[..first.boundary];
            let encoding = encode(alone)?;
            let read = whole.iter().map(|(whole, _)| common(&encoding.ids, &whole.ids));
            let read = read.min().unwrap_or(0);
            let shared = match self.fit(&prompt, alone, &encoding, read) {
                Fit::Shorter(shorter) => {
                    prompt = Cow::Owned(shorter);
                    continue;
                }
                Fit::Never => return Ok(None),
                Fit::Fits(shared) => shared,
            };
            let clipped = shared.clipped || matches!(prompt, Cow::Owned(_));
            let shared = SharedPrompt { clipped, ..shared };
            let rows = whole.into_iter().map(|(whole, joined)| self.row(&shared, &whole, &joined));
            let rows: Option<Vec<Row>> = rows.collect();
            return Ok(rows.and_then(|rows| rows.try_into().ok()));
        }
    }

    /// The row of a response, given the tokens of its text; `None` if no response is left.
    fn row(&self, prompt: &SharedPrompt, whole: &Encoding, joined: &Joined) -> Option<Row> {
        let mut tokens = prompt.tokens.clone();
        tokens.extend(&whole.ids[prompt.read..]);
        self.end_once(&mut tokens, prompt.tokens.len(), joined.end);
        let clipped_response = tokens.len() > self.truncation.max_length;
        tokens.truncate(self.truncation.max_length);
        // Nothing predicts the first token of a text.
        let first = prompt.tokens.len().max(1);
        let is_learned = |position: &usize| {
            let index = position - prompt.tokens.len() + prompt.read;
            joined.learned.is_empty() || overlaps(&joined.learned, whole, index)
        };
        let prompt_len = (first..tokens.len()).find(is_learned)?;
        let context = (prompt_len..tokens.len()).filter(|position| !is_learned(position));
        let context = context.map(|position| position as u32).collect();
        let response = TokenizedResponse { tokens, prompt_len };
        let (clipped_prompt, way) = (prompt.clipped, joined.way);
        response.view().is_sound().then_some(Row {
            response,
            context,
            clipped_prompt,
            clipped_response,
            way,
        })
    }

    /// A prompt as rows begin with it: `read` tokens of its text, after one BOS and within its limit. Content is cut, never what the
    /// template writes around it: first that of the oldest exchange, and where this isn't enough, the whole exchange goes.
    fn fit(&self, prompt: &Prompt, text: &str, encoding: &Encoding, read: usize) -> Fit {
        let ids = &encoding.ids[..read];
        let whole = self.begin_once(ids);
        let limit = self.truncation.max_prompt_length.unwrap_or(usize::MAX);
        let excess = whole.len().saturating_sub(limit);
        if excess == 0 {
            return Fit::Fits(SharedPrompt { tokens: whole, read, clipped: false });
        }
        let Cuts { content, rest } = self.renderer.cuts(prompt, text);
        let bos = ids.iter().take_while(|&&token| Some(token) == self.tokenizer.bos_id()).count();
        let within = |part: &Range<usize>, index: usize| {
            let (start, end) = encoding.offsets[index];
            part.start <= start && end <= part.end
        };
        let cut = content.iter().flat_map(|part| (bos..read).filter(|&i| within(part, i)));
        let cut: BTreeSet<usize> = cut.take(excess).collect();
        match (cut.len() == excess, rest) {
            (true, _) => {
                let kept = (0..read).filter(|index| !cut.contains(index));
                let kept: Vec<u32> = kept.map(|index| ids[index]).collect();
                let tokens = self.begin_once(&kept);
                Fit::Fits(SharedPrompt { tokens, read, clipped: true })
            }
            (false, Some(rest)) => Fit::Shorter(rest),
            (false, None) => Fit::Never,
        }
    }

    /// The tokens after exactly one BOS, whether template or text wrote none, one or several.
    fn begin_once(&self, ids: &[u32]) -> Vec<u32> {
        let Some(bos) = self.tokenizer.bos_id().filter(|_| self.tokenizer.adds_bos()) else {
            return ids.to_vec();
        };
        let there = ids.iter().take_while(|&&token| token == bos).count();
        [&[bos], &ids[there..]].concat()
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
}

/// Whether a token has a byte of one of these ranges, in ascending order. A token after the text's own, which ends it, goes with
/// the text's end.
fn overlaps(ranges: &[Range<usize>], whole: &Encoding, index: usize) -> bool {
    let Some(&(start, end)) = whole.offsets.get(index) else {
        let text = whole.offsets.last().map_or(0, |&(_, end)| end);
        return ranges.last().is_some_and(|range| range.end >= text);
    };
    let next = ranges.partition_point(|range| range.end <= start);
    ranges.get(next).is_some_and(|range| end > range.start)
}

/// Number of leading tokens that two sequences have in common.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
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
        summary.clipped_prompts += usize::from(rows.iter().any(|row| row.clipped_prompt));
        for row in &rows {
            let len = row.response.tokens.len();
            summary.clipped_responses += usize::from(row.clipped_response);
            match row.way {
                Way::Templated => summary.templated += 1,
                Way::AlreadyTemplated => summary.already_templated += 1,
                Way::AsGiven => summary.as_given += 1,
            }
            summary.tokens += len;
            summary.response_tokens += len - row.response.prompt_len - row.context.len();
            summary.longest = summary.longest.max(len);
        }
        kept.push((item, rows));
    }
    summary.kept = kept.len();
    Ok((kept, summary))
}

fn example_of(id: u64, row: Row) -> TokenizedExample {
    TokenizedExample { id, response: row.response, context: row.context }
}

fn pair_of(id: u64, chosen: Row, rejected: Row) -> TokenizedPair {
    TokenizedPair { id, chosen: chosen.response, rejected: rejected.response }
}

#[cfg(test)]
mod tests;
