//! Text to token ids and back, over Hugging Face's `tokenizers`.

mod show;
mod stream;
mod train;

pub use stream::TextStream;
pub use train::SPECIAL_TOKENS;

use crate::atomic::{self, AtomicError};
use crate::caught::caught;
use crate::hash::hash_bytes;
use crate::template::{ChatTemplate, TemplateError, token_text};
use serde_json::{Map, Value};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

const TOKENIZER_FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Names under which special tokens are looked up if tokenizer_config.json doesn't name them.
const BOS_NAMES: [&str; 3] = ["<bos>", "<s>", "<|begin_of_text|>"];
const EOS_NAMES: [&str; 4] = ["<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>"];
const PAD_NAMES: [&str; 2] = ["<pad>", "[PAD]"];
const END_OF_TURN_NAMES: [&str; 3] = ["<end_of_turn>", "<|im_end|>", "<|eot_id|>"];

/// Why a tokenizer can't be loaded, trained, used or saved.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file is missing or can't be read.
    #[error("{}: can't be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// `tokenizer.json` can't be parsed.
    #[error("tokenizer.json isn't a tokenizer in Hugging Face's format")]
    Tokenizer(#[source] tokenizers::Error),
    /// The same, of a file.
    #[error("{}: isn't a tokenizer in Hugging Face's format, or is damaged", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: tokenizers::Error,
    },
    /// `tokenizer_config.json` isn't a JSON object.
    #[error("tokenizer_config.json isn't a JSON object")]
    Config(#[source] serde_json::Error),
    /// The configuration names a token that the vocabulary lacks.
    #[error(
        "tokenizer_config.json: `{key}` is {token:?}, which tokenizer.json doesn't have; the two belong to different models"
    )]
    UnknownToken {
        /// The key in the configuration.
        key: &'static str,
        /// The token that it names.
        token: String,
    },
    /// A token without a row in the model's embedding table.
    #[error(
        "token {id} ({token:?}) is beyond the model's vocabulary of {rows}; tokenizer.json belongs to a different model, or the \
         model's embedding has to be resized"
    )]
    Beyond {
        /// Id of the token.
        id: u32,
        /// Its entry in the vocabulary.
        token: String,
        /// Rows of the table.
        rows: usize,
    },
    /// Encoding or decoding failed.
    #[error("the tokenizer failed on a text or on token ids")]
    Convert(#[source] tokenizers::Error),
    /// The requested vocabulary is too small for what it must contain.
    #[error(
        "a vocabulary of {asked} tokens is too small: special tokens and the 256 bytes alone take {needed}"
    )]
    TooSmall {
        /// The requested size.
        asked: usize,
        /// The smallest possible size.
        needed: usize,
    },
    /// Training failed.
    #[error("training the tokenizer failed")]
    Train(#[source] tokenizers::Error),
    /// It can't be saved.
    #[error(transparent)]
    Write(#[from] AtomicError),
}

/// Token ids and their places in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// Start and end of each token in the text, in bytes, `[tokens]`. Tokens of the same character have the same offsets.
    pub offsets: Vec<(usize, usize)>,
}

/// A tokenizer with the special tokens and the chat template of its `tokenizer_config.json`.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    config: Map<String, Value>,
    special: SpecialIds,
    adds_bos: bool,
    vocab_size: usize,
    /// Rows of the embedding table that ids are for, if one is known.
    table: usize,
    hash: String,
}

#[derive(Debug, Clone, Copy)]
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    end_of_turn: Option<u32>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` from a folder, and `tokenizer_config.json` and `chat_template.jinja` if they exist.
    ///
    /// # Errors
    /// A missing, unreadable or malformed file, or a configuration that names tokens missing from the vocabulary.
    pub fn load(folder: &Path) -> Result<Self, TokenizerError> {
        let file = folder.join(TOKENIZER_FILE);
        let json = std::fs::read(&file)
            .map_err(|source| TokenizerError::Io { path: file.clone(), source })?;
        let mut config = match read_if_there(&folder.join(CONFIG_FILE))? {
            Some(text) => serde_json::from_str(&text).map_err(TokenizerError::Config)?,
            None => Map::new(),
        };
        if let Some(template) = read_if_there(&folder.join(TEMPLATE_FILE))? {
            config.insert("chat_template".to_owned(), Value::String(template));
        }
        Self::from_json(&json, config).map_err(|error| match error {
            TokenizerError::Tokenizer(source) => TokenizerError::File { path: file, source },
            other => other,
        })
    }

    /// Creates a tokenizer from the content of `tokenizer.json` and the object in `tokenizer_config.json` (empty if there is no
    /// such file).
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_json(
        tokenizer_json: &[u8],
        config: Map<String, Value>,
    ) -> Result<Self, TokenizerError> {
        // The crate panics on some damaged decoders when it reads them, and on some post-processors when it first uses them.
        caught(|| {
            let inner = tokenizers::Tokenizer::from_bytes(tokenizer_json);
            Self::new(inner.map_err(TokenizerError::Tokenizer)?, config)
        })
        .unwrap_or_else(|panic| Err(TokenizerError::Tokenizer(panic.into())))
    }

    fn new(
        mut inner: tokenizers::Tokenizer,
        config: Map<String, Value>,
    ) -> Result<Self, TokenizerError> {
        // Limits saved with a tokenizer are ignored; those in the settings apply.
        inner.with_truncation(None).map_err(TokenizerError::Tokenizer)?;
        inner.with_padding(None);

        let find = |key: &'static str, names: &[&str]| match config.get(key) {
            Some(token) => token_text(token)
                .map(|text| {
                    let unknown = || TokenizerError::UnknownToken { key, token: text.to_owned() };
                    inner.token_to_id(text).ok_or_else(unknown)
                })
                .transpose(),
            None => Ok(names.iter().find_map(|name| inner.token_to_id(name))),
        };
        let special = SpecialIds {
            bos: find("bos_token", &BOS_NAMES)?,
            eos: find("eos_token", &EOS_NAMES)?,
            pad: find("pad_token", &PAD_NAMES)?,
            end_of_turn: end_of_turn(&config, |name| inner.token_to_id(name)),
        };
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        let json = inner.to_string(false).map_err(TokenizerError::Tokenizer)?;
        let add_bos = config.get("add_bos_token");
        let adds_bos = match add_bos {
            Some(Value::Bool(adds)) => *adds,
            // What its post-processor puts before a text.
            _ => {
                let begin = inner.encode("", true).map_err(TokenizerError::Tokenizer)?;
                special.bos.is_some() && begin.get_ids().first() == special.bos.as_ref()
            }
        };
        let hash = hash_bytes(format!("{json}\n{special:?}\n{add_bos:?}").as_bytes());
        Ok(Self { inner, config, special, adds_bos, vocab_size, table: usize::MAX, hash })
    }

    /// The same for a model whose embedding table has so many rows: texts with tokens beyond it are refused. A tokenizer may have
    /// more tokens than the table, as Gemma-3's has one for images.
    ///
    /// # Errors
    /// BOS, EOS or the padding token is beyond it.
    pub fn for_table(self, rows: usize) -> Result<Self, TokenizerError> {
        let tokenizer = Self { table: rows, ..self };
        let mut used = tokenizer.special_ids();
        used.push(tokenizer.pad_id());
        tokenizer.check(&used)?;
        Ok(tokenizer)
    }

    /// Refuses ids without a row in the table.
    fn check(&self, ids: &[u32]) -> Result<(), TokenizerError> {
        match ids.iter().find(|&&id| id as usize >= self.table) {
            None => Ok(()),
            Some(&id) => Err(TokenizerError::Beyond {
                id,
                token: self.token(id).unwrap_or_default(),
                rows: self.table,
            }),
        }
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into a folder. `AutoTokenizer` of transformers can load it.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn save(&self, folder: &Path) -> Result<(), TokenizerError> {
        let tokenizer = self.inner.to_string(true).map_err(TokenizerError::Tokenizer)?;
        let config = format!("{:#}\n", Value::Object(self.config.clone()));
        for (name, content) in [(TOKENIZER_FILE, tokenizer), (CONFIG_FILE, config)] {
            let path = folder.join(name);
            atomic::write_file(&path, |file| {
                atomic::context(&path, "write", file.write_all(content.as_bytes()))
            })?;
        }
        Ok(())
    }

    /// Encodes a text. Special tokens written out in the text become their ids; nothing is added.
    ///
    /// # Errors
    /// The tokenizer's own errors, or a token beyond the table of [`Self::for_table`].
    pub fn encode(&self, text: &str) -> Result<Encoding, TokenizerError> {
        let encoding = self.inner.encode(text, false).map_err(TokenizerError::Convert)?;
        self.check(encoding.get_ids())?;
        Ok(Encoding { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// Decodes tokens to text.
    ///
    /// # Errors
    /// The tokenizer's own errors.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        self.inner.decode(ids, skip_special_tokens).map_err(TokenizerError::Convert)
    }

    /// Decodes tokens one at a time, as they are generated; special tokens are skipped.
    pub fn text_stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    /// Vocabulary size: every id is below it. (A model's embedding may have more rows.)
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of a token, by its exact text in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token's entry in the vocabulary (which for byte-level tokenizers isn't its text: see [`Self::decode`]).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Id of BOS, the token that begins a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.special.bos
    }

    /// BOS as text; empty if the tokenizer has none.
    pub fn bos_token(&self) -> String {
        self.bos_id().and_then(|id| self.token(id)).unwrap_or_default()
    }

    /// Id of EOS, the token that ends a text.
    pub fn eos_id(&self) -> Option<u32> {
        self.special.eos
    }

    /// Id used for padding: the declared padding token, or else EOS, or else 0. Padding never reaches a loss, so any valid id will
    /// do.
    pub fn pad_id(&self) -> u32 {
        self.special.pad.or(self.special.eos).unwrap_or(0)
    }

    /// Id of the token that ends a turn, such as `<end_of_turn>`.
    pub fn end_of_turn_id(&self) -> Option<u32> {
        self.special.end_of_turn
    }

    /// Ids that end a response: end of turn and EOS, as far as the tokenizer has them.
    pub fn stop_ids(&self) -> Vec<u32> {
        self.special.end_of_turn.into_iter().chain(self.special.eos).collect()
    }

    /// BOS, EOS and the declared padding token, as far as the tokenizer has them, without duplicates: the tokens on which sparse
    /// autoencoders are not trained.
    ///
    /// Gemma Scope excluded exactly these from training (arXiv 2408.05147). The end of a turn is not among them.
    pub fn special_ids(&self) -> Vec<u32> {
        let SpecialIds { bos, eos, pad, .. } = self.special;
        let mut ids: Vec<u32> = Vec::with_capacity(3);
        for id in [bos, eos, pad].into_iter().flatten() {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    /// The special tokens of `tokenizer.json` that occur in a text.
    pub(crate) fn special_tokens_in(&self, text: &str) -> Vec<String> {
        let added = self.inner.get_added_tokens_decoder();
        let special = added.values().filter(|token| token.special && text.contains(&token.content));
        special.map(|token| token.content.clone()).collect()
    }

    /// Whether texts begin with BOS: if the tokenizer has one, and the configuration sets `"add_bos_token": true` or, where it
    /// doesn't say, `tokenizer.json` puts BOS before a text. That of Qwen and SmolLM2, for instance, doesn't.
    pub fn adds_bos(&self) -> bool {
        self.special.bos.is_some() && self.adds_bos
    }

    /// The chat template of the configuration, if it has one.
    ///
    /// # Errors
    /// A template of unknown shape or with invalid Jinja.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, TemplateError> {
        ChatTemplate::from_tokenizer_config(&Value::Object(self.config.clone()).to_string())
    }

    /// Content hash (BLAKE3, hex) of everything that affects tokenisation. The chat template has its own hash.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

/// The token that ends a turn: the one that the chat template writes, else the first that is in the vocabulary, which may have
/// those of several families.
fn end_of_turn(config: &Map<String, Value>, id: impl Fn(&str) -> Option<u32>) -> Option<u32> {
    // Named templates are in a list. Jinja writes these names as they are.
    let template = config.get("chat_template").map(Value::to_string).unwrap_or_default();
    let known = || END_OF_TURN_NAMES.iter().filter_map(|name| Some((name, id(name)?)));
    let written = known().find(|(name, _)| template.contains(**name));
    written.or(known().next()).map(|(_, id)| id)
}

fn read_if_there(path: &Path) -> Result<Option<String>, TokenizerError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Io { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests;
