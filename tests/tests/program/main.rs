//! The whole program, run as a user runs it.

mod autoencoder;
mod bad_input;
mod common;
mod end_to_end;
mod resume;
