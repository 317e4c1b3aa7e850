//! The fast paths against their definitions, and the definitions against calculus.
#![cfg(feature = "flex")]

mod adamw;
mod definitions;
mod fast_paths;
mod graphs;
mod half_precision;
mod older_machines;
mod parts;
mod straight_through;
mod support;
mod threads;
