//! Training a small tokenizer, for models trained from random weights.

use super::{Tokenizer, TokenizerError};
use crate::template::PLAIN;
use serde_json::{Value, json};
use std::collections::HashSet;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerImpl,
};

/// Special tokens of a trained tokenizer; the index is the id. The first four are the same as Gemma's.
pub const SPECIAL_TOKENS: [&str; 6] =
    ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"];
const BOS_ID: u32 = 2;

type ByteLevelBpe = TokenizerImpl<
    BPE,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

impl Tokenizer {
    /// Trains a byte-level BPE tokenizer with [`SPECIAL_TOKENS`] and the chat template [`PLAIN`]. Every digit is a separate token.
    ///
    /// The same texts and size give the same tokenizer, byte for byte. The vocabulary is smaller than requested if the texts run
    /// out of pairs to merge.
    ///
    /// # Errors
    /// A size too small for the special tokens and the 256 bytes.
    pub fn train_bpe<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        vocab_size: usize,
    ) -> Result<Self, TokenizerError> {
        let alphabet: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
        let needed = SPECIAL_TOKENS.len() + alphabet.len();
        if vocab_size < needed {
            return Err(TokenizerError::TooSmall { asked: vocab_size, needed });
        }
        let mut trainer = BpeTrainerBuilder::new()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(alphabet)
            .special_tokens(SPECIAL_TOKENS.map(|token| AddedToken::from(token, true)).to_vec())
            .build();

        // Offsets are not trimmed: a space at the boundary between prompt and response belongs to the token that contains it.
        let bytes = ByteLevel::new(false, false, true);
        let mut tokenizer = ByteLevelBpe::new(BPE::default());
        tokenizer
            .with_pre_tokenizer(Some(Sequence::new(vec![Digits::new(true).into(), bytes.into()])))
            .with_decoder(Some(bytes));
        let texts: Vec<&str> = texts.into_iter().collect();
        tokenizer.train(&mut trainer, texts.into_iter()).map_err(TokenizerError::Train)?;

        // For other programs; this crate adds BOS itself.
        let begin = TemplateProcessing::builder()
            .try_single("<bos> $A")
            .and_then(|template| template.try_pair("<bos> $A <bos> $B"))
            .map(|template| template.special_tokens(vec![("<bos>", BOS_ID)]))
            .and_then(|template| template.build().map_err(|error| error.to_string()))
            .map_err(|error| TokenizerError::Train(error.into()))?;
        tokenizer.with_post_processor(Some(begin));

        let Value::Object(config) = config() else {
            unreachable!("the literal below is an object")
        };
        Self::new(tokenizer.into(), config)
    }
}

fn config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "unk_token": "<unk>",
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": false,
        "chat_template": PLAIN,
    })
}
