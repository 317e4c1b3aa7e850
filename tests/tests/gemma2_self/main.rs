//! `fpo_transformer` agrees with itself (padding, cache, stored types) and survives damaged files.

mod files;
mod generation;
mod sampling;
mod support;
