//! Files and folders that appear whole or not at all, and how it is known what they were made from.
//!
//! # Invariants
//! * A reader, or a program started after a crash, sees the old content or the new one, never a part of it ([`atomic`]).
//! * The same content has the same [`hash`], wherever it lies, and the same [`Fingerprint`] the same origin.
//! * What was made before a crash isn't made again ([`journal`]).
//! * A training's log never knows less than its last checkpoint ([`checkpoints`]).
//! * Knows no other crate of the workspace.

pub mod atomic;
mod bounded;
pub mod checkpoints;
pub mod fingerprint;
pub mod hash;
pub mod journal;

pub use bounded::read_at_most;
pub use fingerprint::Fingerprint;
