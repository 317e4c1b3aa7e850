//! Fast paths against their definitions, and definitions against finite differences.
#![cfg(feature = "flex")]

mod adamw;
mod definitions;
mod fast_paths;
mod graphs;
mod half_precision;
mod numbers;
mod older_machines;
mod parts;
mod straight_through;
mod support;
mod threads;
