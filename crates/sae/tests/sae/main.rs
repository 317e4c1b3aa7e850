//! Encoding against scalar arithmetic, files against themselves and against damage, gradients against finite differences, and
//! training against data whose structure is known.

mod encoding;
mod files;
mod gradients;
mod peers;
mod support;
mod training;
