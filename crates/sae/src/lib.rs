//! Sparse autoencoders: encode, train, load, save and measure.
//!
//! # Invariants
//! * The crate knows no transformer: activations `[tokens, d_in]` in, features `[tokens, d_sae]` and reconstructions out.
//! * An [`Sae`] takes activations as the model has them. Scales of the input and the subtraction of b_dec are folded into its
//!   parameters when training ends or a file is read, so that whatever its origin, the same formula applies. What isn't linear is
//!   a [`Normalization`](fpo_ops::Normalization) of its encoder.
//! * Activation functions are the variants of [`fpo_ops::Activation`], which also defines what they compute; what files, hashes and
//!   descriptions need to know about each is in `activation.rs`. No match on them has a wildcard: when one is added, the compiler
//!   points to every place that has to handle it. [`SaeTrainer`] trains each [`Kind`]; a BatchTopK becomes a JumpReLU when training
//!   ends.
//! * Only [`load`], [`Format::detect`], [`save_sae_lens`] and the checkpoints of [`SaeTrainer`] touch the disk. Files are untrusted,
//!   their sizes are bounded, and a damaged one gives an error, not a panic.
//! * Nothing is printed.
//!
//! # Example
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use fpo_sae::{Compute, InitialThreshold, Kind, Penalty, Provenance, QualityMeter, SaeTrainer, SaeTraining};
//!
//! let device = Device::flex();
//! let x = Tensor::<2>::random([256, 8], Distribution::Default, &device);
//! let settings = SaeTraining {
//!     d_sae: 32, activation: Kind::JumpRelu, penalty: Penalty::TargetL0, target_l0: 4.0, tanh_scale: 4.0, sparsity: 1.0,
//!     sparsity_warmup: 10, learning_rate: 3e-3, bias_rate: 1.0, warmup: 5, bandwidth: 0.05, initial_threshold: InitialThreshold::Auto,
//!     revive: 0.0, dead_after: 10, compute: Compute::Float32, batch_tokens: 256, steps: 20,
//! };
//! let mut trainer = SaeTrainer::new(&settings, x.clone(), 0, &device)?;
//! let first = trainer.step(x.clone()).mse;
//! let last = (1..20).map(|_| trainer.step(x.clone()).mse).last();
//! assert!(last < Some(first));
//! let sae = trainer.finish(Provenance::default());
//! let mut meter = QualityMeter::new(8, 32);
//! meter.add(&sae, x);
//! assert_eq!(meter.quality().map(|q| q.tokens), Some(256));
//! # Ok::<(), fpo_sae::Error>(())
//! ```

mod activation;
mod checkpoint;
mod describe;
mod error;
mod format;
mod measure;
mod model;
mod objective;
mod train;

pub use activation::hash_encoder;
pub use describe::{Description, Range};
pub use error::Error;
pub use format::{Compression, Format, load, save_npz, save_sae_lens};
pub use measure::{Quality, QualityMeter};
pub use model::{Provenance, Sae, check_width};
pub use objective::{Compute, Kind, Losses, Objective, Parameters, Penalty};
pub use train::{InitialThreshold, SaeStep, SaeTrainer, SaeTraining};
