//! Alignment from tokens to gradients: transformer, autoencoder, reference cache and loss together.

mod cache;
mod gradients;
mod parts;
mod second_model;
mod world;
