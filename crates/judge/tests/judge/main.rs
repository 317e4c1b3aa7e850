//! Tests of fpo-judge: formats, the endpoint's faults, and the statistics beside their peers.

mod answers;
mod faults;
mod judgments;
mod server;
mod statistics;
