//! What crosses crates: dependency directions, the mathematics through a whole step, end-to-end runs.
//!
//! # Invariants
//! * Every numeric test names an oracle that is not the code under test.
//! * What needs data that a checkout lacks says that it skips.
//! * `FPO_TEST_QUICK=1` skips the runs of the whole program, and says so.

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// The examples of the book, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/src/crates.md")]
pub struct Book;
