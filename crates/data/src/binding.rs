//! What tokenised pairs depend on, and how other files are bound to them.
//!
//! A file computed from tokens, such as a reference cache, is bound to the hash of those tokens: pairs prepared by a run and pairs
//! read from a file are the same if their tokens are. How the tokens came about is stored as the hash's explanation
//! ([`Fingerprint::explained_by`]), so that a mismatch is reported as "chat template" and not as two hashes.

use crate::Fingerprint;
use crate::hash::hash_bytes;
use crate::rendering::Turns;
use crate::source::{Message, Pair, Prompt, Response, SftExample};
use crate::store::PairStore;
use crate::tokenize::{Preparer, Truncation};
use crate::tokens::{PairView, ResponseView, TokenizedExample, TokenizedPair};

/// The item that identifies tokenised pairs: a hash of their ids, tokens and prompt lengths.
pub const PAIRS: &str = "tokenised pairs";
/// The item that identifies tokenised examples for supervised fine-tuning.
pub const EXAMPLES: &str = "tokenised examples";
/// Explains [`PAIRS`] and [`EXAMPLES`]: a hash of the pairs or examples as read.
pub const DATA: &str = "data";
/// Explains [`PAIRS`] and [`EXAMPLES`]: [`crate::Tokenizer::hash`].
pub const TOKENIZER: &str = "tokenizer";
/// Explains [`PAIRS`] and [`EXAMPLES`]: [`crate::TemplateChoice::hash`].
pub const TEMPLATE: &str = "chat template";
/// Explains [`PAIRS`] and [`EXAMPLES`]: the [`crate::Rendering`].
pub const RENDERING: &str = "rendering";
/// Explains [`EXAMPLES`]: the [`Turns`] that are learned, if all are.
pub const TURNS: &str = "turns";
/// Explains [`PAIRS`] and [`EXAMPLES`]: [`Truncation::max_length`].
pub const MAX_LENGTH: &str = "max_length";
/// Explains [`PAIRS`] and [`EXAMPLES`]: [`Truncation::max_prompt_length`].
pub const MAX_PROMPT_LENGTH: &str = "max_prompt_length";

impl Preparer<'_> {
    /// Everything that the tokens of these pairs depend on, under the names above.
    pub fn made_from(&self, pairs: &[Pair]) -> Fingerprint {
        let texts =
            pairs.iter().map(|pair| (pair.id, &pair.prompt, [&pair.chosen, &pair.rejected]));
        self.settings().with(DATA, hash_texts(texts))
    }

    /// Identifies tokenised pairs: [`PAIRS`], explained by [`Self::made_from`]. Pass it to [`PairStore::write`]; it equals the
    /// [`PairStore::binding`] of a store with the same tokens.
    pub fn fingerprint(&self, pairs: &[Pair], tokenized: &[TokenizedPair]) -> Fingerprint {
        Fingerprint::default()
            .with(PAIRS, hash_pairs(tokenized.iter().map(TokenizedPair::view)))
            .explained_by(PAIRS, &self.made_from(pairs))
    }

    /// Identifies tokenised examples: [`EXAMPLES`], explained like [`PAIRS`].
    pub fn fingerprint_of_examples(
        &self,
        examples: &[SftExample],
        tokenized: &[TokenizedExample],
    ) -> Fingerprint {
        let texts =
            examples.iter().map(|example| (example.id, &example.prompt, [&example.response]));
        let mut made_from = self.settings().with(DATA, hash_texts(texts));
        if self.turns() == Turns::All {
            made_from = made_from.with(TURNS, "all");
        }
        Fingerprint::default()
            .with(EXAMPLES, hash_examples(tokenized))
            .explained_by(EXAMPLES, &made_from)
    }

    fn settings(&self) -> Fingerprint {
        let Truncation { max_length, max_prompt_length } = self.truncation;
        let limit = |tokens: Option<usize>| tokens.map_or("none".to_owned(), |n| n.to_string());
        Fingerprint::default()
            .with(TOKENIZER, self.tokenizer.hash())
            .with(TEMPLATE, self.renderer.template().hash())
            .with(RENDERING, self.renderer.rendering())
            .with(MAX_LENGTH, limit(Some(max_length).filter(|&length| length != usize::MAX)))
            .with(MAX_PROMPT_LENGTH, limit(max_prompt_length))
    }
}

impl PairStore {
    /// Identifies the store's pairs: [`PAIRS`], with its explanation if the store has one.
    ///
    /// The hash is the stored one. For a store written without it, all tokens are read and hashed.
    pub fn binding(&self) -> Fingerprint {
        let stored = self.fingerprint();
        if stored.0.contains_key(PAIRS) {
            return stored.clone();
        }
        stored.clone().with(PAIRS, hash_pairs(self.iter()))
    }
}

/// Hash (hex) of tokenised pairs in their order: ids, tokens, prompt lengths.
pub fn hash_pairs<'a>(pairs: impl IntoIterator<Item = PairView<'a>>) -> String {
    hash_tokens(pairs.into_iter().map(|pair| (pair.id, [pair.chosen, pair.rejected])))
}

/// Hash (hex) of tokenised prompts in their order.
pub fn hash_prompts(prompts: &[Vec<u32>]) -> String {
    let view = |tokens| ResponseView { tokens, prompt_len: tokens.len() };
    hash_tokens((0..).zip(prompts.iter().map(|tokens| [view(tokens.as_slice())])))
}

/// Hash (hex) of tokenised examples; as of their responses alone where they have no context.
fn hash_examples(examples: &[TokenizedExample]) -> String {
    let responses = hash_tokens(examples.iter().map(|e| (e.id, [e.response.view()])));
    if examples.iter().all(|example| example.context.is_empty()) {
        return responses;
    }
    let context = |example: &TokenizedExample| format!("{:?}", example.context);
    let contexts: Vec<String> = examples.iter().map(context).collect();
    hash_bytes(format!("{responses}{}", contexts.join(" ")).as_bytes())
}

fn hash_tokens<'a, const N: usize>(
    rows: impl IntoIterator<Item = (u64, [ResponseView<'a>; N])>,
) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::new();
    for (id, sides) in rows {
        bytes.clear();
        bytes.extend(id.to_le_bytes());
        for side in sides {
            bytes.extend((side.prompt_len as u64).to_le_bytes());
            bytes.extend((side.tokens.len() as u64).to_le_bytes());
            bytes.extend(side.tokens.iter().flat_map(|token| token.to_le_bytes()));
        }
        hasher.update(&bytes);
    }
    hasher.finalize().to_hex().to_string()
}

/// Hash (hex) of prompts and responses as read, whatever the file format.
fn hash_texts<'a, const N: usize>(
    items: impl Iterator<Item = (u64, &'a Prompt, [&'a Response; N])>,
) -> String {
    let mut hashes = String::new();
    for (id, prompt, responses) in items {
        let mut bytes = id.to_le_bytes().to_vec();
        match prompt {
            Prompt::Text(text) => add(&mut bytes, text),
            Prompt::Messages(conversation) => {
                conversation.messages.iter().for_each(|message| add_message(&mut bytes, message));
                if let Some(tools) = &conversation.tools {
                    add(&mut bytes, &format!("tools: {tools}"));
                }
                for (name, value) in &conversation.variables {
                    add(&mut bytes, &format!("{name}: {value}"));
                }
            }
        }
        for response in responses {
            match response {
                Response::Text(text) => add(&mut bytes, text),
                Response::Messages(messages) => {
                    messages.iter().for_each(|message| add_message(&mut bytes, message));
                }
            }
        }
        hashes += &hash_bytes(&bytes);
    }
    hash_bytes(hashes.as_bytes())
}

fn add_message(bytes: &mut Vec<u8>, message: &Message) {
    add(bytes, message.role());
    match message.plain_text() {
        Some(text) => add(bytes, text),
        None => add(bytes, &serde_json::Value::Object(message.keys().clone()).to_string()),
    }
}

fn add(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendering::Rendering;
    use crate::template::{ChatTemplate, TemplateChoice};
    use crate::tokenizer::Tokenizer;

    fn pair(id: u64, prompt: &str, chosen: &str) -> Pair {
        let (prompt, rejected) = (Prompt::Text(prompt.into()), "no".into());
        Pair { id, prompt, chosen: chosen.into(), rejected }
    }

    #[test]
    fn a_store_and_its_pairs_have_equal_fingerprints() {
        let tokenizer = Tokenizer::train_bpe(["yes no user model"], 270).unwrap();
        let template = TemplateChoice::Chat(ChatTemplate::plain("<bos>").unwrap());
        let pairs = [pair(0, "a", "yes"), pair(3, "b", "yes yes")];
        let bound = |template, rendering, max_length, pairs: &[Pair]| {
            let limits = Truncation { max_length, max_prompt_length: None };
            let preparer = Preparer::new(&tokenizer, template, rendering, limits).unwrap();
            let (tokenized, _) = preparer.prepare_pairs(pairs).unwrap();
            (preparer.fingerprint(pairs, &tokenized), tokenized)
        };
        let (ours, tokenized) = bound(&template, Rendering::Auto, usize::MAX, &pairs);
        let folder = tempfile::tempdir().unwrap();
        let store = |fingerprint: &Fingerprint| {
            let path = folder.path().join("pairs.arrow");
            PairStore::write(&path, fingerprint, tokenized.clone()).unwrap();
            PairStore::open(&path).unwrap()
        };
        assert_eq!(store(&ours).binding().0, ours.0, "explanations too");
        // A store written without a fingerprint.
        assert_eq!(store(&Fingerprint::default()).binding(), ours);

        let (generous, _) = bound(&template, Rendering::Template, 1000, &pairs);
        assert_eq!(generous, ours, "other settings, the same tokens");
        let none = TemplateChoice::None;
        let other_text = [pair(0, "a", "yes"), pair(3, "b", "no")];
        let other_id = [pair(0, "a", "yes"), pair(4, "b", "yes yes")];
        let cases = [
            (bound(&none, Rendering::Auto, usize::MAX, &pairs), vec![TEMPLATE]),
            (bound(&template, Rendering::None, usize::MAX, &pairs), vec![RENDERING]),
            (bound(&template, Rendering::None, 4, &pairs), vec![MAX_LENGTH, RENDERING]),
            (bound(&template, Rendering::Auto, usize::MAX, &other_text), vec![DATA]),
            (bound(&template, Rendering::Auto, usize::MAX, &other_id), vec![DATA]),
        ];
        for ((found, _), items) in cases {
            let differences = ours.differences(&found);
            assert_eq!(differences.iter().map(|d| d.item.as_str()).collect::<Vec<_>>(), items);
        }
    }

    #[test]
    fn the_hash_depends_on_ids_boundaries_and_order() {
        use crate::tokens::TokenizedResponse;
        let side =
            |tokens: &[u32], prompt_len| TokenizedResponse { tokens: tokens.to_vec(), prompt_len };
        let hash = |id, chosen, rejected| {
            let pair = TokenizedPair { id, chosen, rejected };
            hash_pairs([pair.view()])
        };
        let hashes = [
            hash(0, side(&[1, 2, 3], 1), side(&[4, 5], 1)),
            hash(0, side(&[1, 2, 3], 2), side(&[4, 5], 1)),
            hash(0, side(&[1, 2], 1), side(&[3, 4, 5], 1)),
            hash(1, side(&[1, 2, 3], 1), side(&[4, 5], 1)),
            hash(0, side(&[4, 5], 1), side(&[1, 2, 3], 1)),
        ];
        assert_eq!(hashes.iter().collect::<std::collections::BTreeSet<_>>().len(), hashes.len());
    }
}
