//! Decoder-only language models: configuration, blocks, activation sites, the head, weights in and out, generation.
//!
//! [`LanguageModel`] is built from a [`ModelConfig`]. What is particular to a family of models, such as Gemma-2, is in its
//! [`Family`]: how its `config.json` is read and written, its constants, its published sizes. Whoever uses a model asks the
//! model: [`LanguageModel::forward`] for hidden states and activations, [`LanguageModel::head`] for everything that takes the
//! unembedding, [`generate()`] for text.
//!
//! # Invariants
//! * Knows no sparse autoencoder, no loss and no data format: tokens go in, hidden states and the
//!   activations of the requested sites come out.
//! * Parameters have Hugging Face's names: a parameter's path in the module is its name in a checkpoint. There are two
//!   exceptions. An adapter's A and B are `….q_proj.lora.a` and `.b` here and have PEFT's names in its files. A table of
//!   token embeddings or an unembedding that is too large for one tensor of the device is `embed_tokens.weight`,
//!   `embed_tokens.weight_rest.0` and so on here, and one tensor in files.
//! * Only [`weights`], [`adapter`], [`tensor_file`] and [`ModelConfig::load`] touch the disk. What they read is
//!   untrusted: damage is an [`Error`], never a panic.
//! * Everything but attention is computed token by token, so that the layout of texts in a batch ([`Input`]) changes no result.
//! * The model works on whatever device its parameters are on; no backend is named here.
//! * Results don't depend on the number of threads.
//!
//! ```
//! use burn::tensor::{Device, Int, Tensor};
//! use fpo_transformer::{ModelConfig, Site, weights};
//!
//! let config = ModelConfig::from_json(
//!     r#"{"model_type": "gemma2", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
//!         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
//!         "head_dim": 8, "query_pre_attn_scalar": 8}"#,
//! ).map_err(|message| format!("config.json: {message}"))?;
//! let device = Device::flex();
//! let model = weights::random(&config, 0, &device)?;
//! let tokens = Tensor::<2, Int>::from_ints([[2, 5, 7, 1]], &device);
//! let output = model.forward(tokens, &[Site::resid_post(0)]);
//! assert_eq!(output.hidden_states.dims(), [1, 4, 16]);
//! assert_eq!(output.sites[0].dims(), [1, 4, 16]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod adapter;
mod builder;
mod cache;
mod carried;
mod checkpoint;
mod checkpointed;
mod config;
mod content;
mod dropping;
mod embedding;
mod error;
mod families;
pub mod generate;
mod generation_config;
mod head;
mod layout;
mod linear;
mod lora;
mod mismatch;
mod model;
mod multimodal;
mod normal;
mod origin;
mod places;
mod precision;
mod rope;
pub mod sampling;
mod saved;
mod sites;
mod targets;
pub mod tensor_file;
mod weight_type;
pub mod weights;

pub use builder::{Piece, Provider};
pub use checkpointed::{BackwardPass, EmbeddedRows, Tape};
pub use config::{BlockNorms, LayerType, MlpActivation, ModelConfig};
pub use content::hash_model;
pub use embedding::Embedding;
pub use error::Error;
pub use families::{Family, PublishedModel, Sizes};
pub use fpo_ops::{FlatRows, Gain, TextStarts};
pub use generate::{Generated, Generation, GenerationOptions, Request, generate, generate_with};
pub use head::Head;
pub use layout::Input;
pub use linear::{Linear, Lora};
pub use lora::{LoraConfig, Projection};
pub use model::{Attention, Backbone, Block, ForwardOutput, LanguageModel, Mlp, RmsNorm};
pub use precision::{Placement, Precision};
pub use rope::{Rope, RopeScaling};
pub use sites::{Site, SiteKind};
pub use targets::{Pattern, Patterns, Targets};
pub use weight_type::WeightType;
