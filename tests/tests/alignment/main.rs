//! Alignment from tokens to gradients: transformer, autoencoder, reference cache and loss together.

mod cache;
mod drift;
mod embedding;
mod features;
mod gradients;
mod in_backward;
mod parts;
mod second_model;
mod sites;
mod tokens;
mod world;
