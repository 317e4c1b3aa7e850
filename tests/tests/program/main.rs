//! The whole program, run as a user runs it.

mod bad_input;
mod common;
mod end_to_end;
mod features;
mod metrics;
mod resume;
