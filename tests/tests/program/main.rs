//! The whole program, run as a user runs it.

mod autoencoder;
mod bad_input;
mod common;
mod end_to_end;
mod evaluate;
mod families;
mod features;
mod folders;
mod generate;
mod lora;
mod metrics;
mod plan;
mod real_model;
mod reference;
mod resume;
mod rows;
mod run_folder;
mod score;
mod settings;
mod shared_cache;
mod small_data;
mod streams;
mod trl;
