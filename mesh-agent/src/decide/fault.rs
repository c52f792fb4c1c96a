//! Fault injection (VirtualService `fault`). Owns: the draw. Never: waits or answers; `proxy::http`, which calls this, does.

use std::time::Duration;

use crate::model::route::{Abort, Fault};

/// What one request is to suffer: first the pause, then the answer in place of the application's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    pub delay: Option<Duration>,
    pub abort: Option<Abort>,
}

/// Draws for one request; the two faults are drawn independently of each other, each with its own random number.
pub fn draw(fault: &Fault, random: [u64; 2]) -> Injected {
    let [first, second] = random;
    Injected {
        delay: fault.delay.filter(|(share, _)| share.hit(first)).map(|(_, delay)| delay),
        abort: fault.abort.filter(|(share, _)| share.hit(second)).map(|(_, abort)| abort),
    }
}

#[cfg(test)]
mod tests;
