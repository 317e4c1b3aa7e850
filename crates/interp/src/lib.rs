//! What a sparse autoencoder sees in a model: activations of its sites, autoencoders trained and evaluated on them, features searched
//! for, and shown.
//!
//! # Invariants
//! * Knows no preference pairs, losses or settings: token sequences, a model and an autoencoder go in.
//! * An autoencoder is used at a site only after [`autoencoder`] has checked that it fits there.
//! * Positions of BOS, EOS and padding are in no activation, mean or count.

pub mod activations;
pub mod autoencoder;
pub mod dashboard;
pub mod evaluation;
pub mod features;
pub mod movement;
pub mod reader;
pub mod training;
