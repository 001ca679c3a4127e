//! The crate against a small PF that the tests play.

mod admin;
mod support;
mod transport;
