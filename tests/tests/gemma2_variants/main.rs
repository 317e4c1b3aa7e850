//! Other ways through the same Gemma-2: with recomputed activations, with adapters, with several texts in a
//! row. Each is held to the plain one, forward and backward, on the models of `tests/fixtures/gemma2`.

mod adapter_files;
mod checkpointed;
mod common;
mod dropout;
mod family_adapters;
mod flat;
mod lora;
mod mixed;
mod packed;
mod parts;
