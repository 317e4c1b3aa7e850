//! Sparse autoencoders on a language model: activations at its sites, training and evaluation of autoencoders on them, feature
//! search, a dashboard of features, and what alignment changed of them.
//!
//! # Invariants
//! * Knows no preference pairs and no run settings: its inputs are token sequences, a model and an autoencoder.
//! * [`reader::check_fit`] checks that an autoencoder fits a model's site before it is used there.
//! * Positions of BOS, EOS and padding are excluded from activations, means and counts.

pub mod activations;
pub mod autoencoder;
pub mod dashboard;
pub mod drift;
pub mod evaluation;
pub mod features;
pub mod movement;
pub mod reader;
pub mod training;
