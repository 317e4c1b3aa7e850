//! The pages of runs, from what lies in their folders.
//!
//! [`RunFiles`] reads a run, finished or not; [`page`] makes the report of one, [`side_by_side`] that of several, and
//! [`curves_csv`] the table of their curves.
//!
//! # Invariants
//! * Reads and changes nothing: a run's folder is as it was, and another process may write to it meanwhile.
//! * A page follows from the files alone, so that it is the same whenever it is made.
//! * What can't be compared isn't: values of different data have no differences, features of different autoencoders no common row.

mod curves;
mod evaluation;
mod one;
mod run;
mod several;

pub use curves::curves_csv;
pub use evaluation::{Answer, AnsweredPrompt, Evaluation};
pub use one::page;
pub use run::{KEPT_FILE, Kept, PageError, RunFiles, Training};
pub use several::side_by_side;
