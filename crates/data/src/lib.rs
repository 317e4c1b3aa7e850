//! Preference data: from files on disk to batches in host memory.
//!
//! Invariants:
//! * No model code and no device: batches are plain `Vec`s that the trainer moves to a device. Depends on no other workspace crate.
//! * Files are untrusted: whatever they contain, reading returns a value or an error that says what is wrong, where, and what to
//!   do.
//! * Everything is deterministic: the same files, settings and seed give the same bytes on any number of threads.
//! * Files and folders are written atomically ([`atomic`]).
//! * Every tokenised response satisfies `1 ≤ prompt_len < tokens.len()`: there is a token to predict and a token to predict it
//!   from.
//! * A batch has no padding, and what both responses of a pair begin with is in it once.
//!
//! ```
//! use fpo_data::{
//!     ChatTemplate, Pair, PairBatch, Preparer, Prompt, Rendering, TemplateChoice, Tokenizer, Truncation,
//! };
//!
//! let tokenizer = Tokenizer::train_bpe(["What is 2 + 2?", "It is 4.", "Who knows?"], 300)?;
//! let template = TemplateChoice::Chat(ChatTemplate::plain(&tokenizer.bos_token())?);
//! let limits = Truncation { max_length: 128, max_prompt_length: Some(64) };
//! let question = Prompt::Text("What is 2 + 2?".into());
//! let pair = Pair { id: 0, prompt: question, chosen: "It is 4.".into(), rejected: "Who knows?".into() };
//! let (pairs, summary) = Preparer::new(&tokenizer, &template, Rendering::Auto, limits)?.prepare_pairs(&[pair])?;
//! let PairBatch { batch, .. } = PairBatch::new(&[pairs[0].view()])?;
//! assert_eq!((summary.kept, batch.rows()), (1, 2));
//! assert_eq!(batch.targets().len(), batch.predicting_positions().len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod batch;
pub mod binding;
mod caught;
mod parquet_file;
pub mod reference;
pub mod rendering;
pub mod source;
pub mod split;
pub mod store;
pub mod template;
#[cfg(test)]
mod testing;
pub mod tokenize;
pub mod tokenizer;
pub mod tokens;

pub use batch::{Batches, Epochs, PairBatch, Pooling, Positions, SequenceBatch, TokenBatch};
pub use fpo_files::{Fingerprint, atomic, checkpoints, fingerprint, hash, journal, read_at_most};
pub use reference::{ReferenceCache, ReferenceRow, ReferenceWriter, SparseFeatures};
pub use rendering::{Rendering, Turns};
pub use source::{
    Conversation, Item, Message, OnEmpty, OnError, Pair, Prompt, ReadSummary, Response, RowPolicy,
    SftExample, read_held_out, read_items, read_pairs, read_prompts, read_sft,
};
pub use split::hold_out;
pub use store::{PairStore, SequenceStore, Store};
pub use template::{ChatTemplate, System, TemplateChoice};
pub use tokenize::{PrepareSummary, Preparer, Truncation};
pub use tokenizer::Tokenizer;
pub use tokens::{
    ExampleView, PairView, ResponseView, TokenizedExample, TokenizedPair, TokenizedResponse,
};
