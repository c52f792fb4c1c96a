//! Capture against the real kernel: real namespaces, real programs, real sockets. Needs root.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod bypass;
mod escapes;
mod lab;
mod lifecycle;
mod limits;
mod podns;
mod steering;
