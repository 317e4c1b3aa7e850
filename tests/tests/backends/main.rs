//! The same inputs on WGPU and on Flex give the same results: operations, model, losses, autoencoder, optimiser, a run.
//!
//! Any Vulkan driver will do, Debian's software one (`mesa-vulkan-drivers`) too. Without one the tests say that they skip.
#![cfg(feature = "wgpu")]

mod alignment;
mod failures;
mod half_precision;
mod operations;
mod program;
mod support;
