//! The same inputs on a GPU's backend and on Flex give the same results: operations, model, losses, autoencoder, optimiser, a run.
//!
//! `FPO_TEST_DEVICE` names the device, which must then be there. Without it the tests run on the backend that they were compiled for,
//! and say that they skip where it finds no device. To WGPU any Vulkan driver will do, Debian's software one
//! (`mesa-vulkan-drivers`) too.
#![cfg(any(feature = "cuda", feature = "wgpu"))]

mod alignment;
mod failures;
mod half_precision;
mod losses;
mod operations;
mod profile;
mod program;
mod support;
