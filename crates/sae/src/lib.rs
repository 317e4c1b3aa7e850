//! JumpReLU sparse autoencoders: encode, train, load, save and measure.
//!
//! # Invariants
//! * Never sees a transformer: it takes activations `[tokens, d_in]`.
//! * What is kept takes unscaled activations: training's scale and the subtraction of b_dec are folded
//!   away, as in Gemma Scope.
//! * Only [`load`] and the `save` functions touch the disk. What is read is untrusted and bounded.
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use fpo_sae::{Compute, Penalty, Provenance, QualityMeter, SaeTrainer, SaeTraining};
//!
//! let device = Device::flex();
//! let x = Tensor::<2>::random([256, 8], Distribution::Default, &device);
//! let settings = SaeTraining {
//!     d_sae: 32, penalty: Penalty::TargetL0, target_l0: 4.0, tanh_scale: 4.0, sparsity: 1.0,
//!     sparsity_warmup: 10, learning_rate: 3e-3, bias_rate: 1.0, warmup: 5, bandwidth: 0.05, initial_threshold: 0.01,
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

mod checkpoint;
mod describe;
mod error;
mod format;
mod measure;
mod model;
mod objective;
mod train;

pub use describe::{Description, Range};
pub use error::Error;
pub use format::{Compression, Format, load, save_npz, save_sae_lens};
pub use measure::{Quality, QualityMeter};
pub use model::{Provenance, Sae};
pub use objective::{Compute, Losses, Objective, Parameters, Penalty};
pub use train::{SaeStep, SaeTrainer, SaeTraining};
