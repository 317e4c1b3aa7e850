//! The fast paths against their definitions, and the definitions against calculus.
#![cfg(feature = "flex")]

mod fast_paths;
mod support;
