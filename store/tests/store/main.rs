//! The store over directories, memory and a real S3: one program for all of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod behaviour;
mod common;
mod faults;
mod full;
mod mirrors;
mod s3;
mod sweep;
