//! Power of two choices: of two endpoints drawn at random, the one with less to do. Close to the best choice
//! at the cost of two reads, and free of the herd that a global minimum draws.

use super::usable;
use crate::model::Endpoint;

/// `random` is one draw of 64 bits; `load` says how much an endpoint (by index) has to do.
pub fn least_request(
    endpoints: &[Endpoint],
    random: u64,
    tried: &[usize],
    load: impl Fn(usize) -> u64,
) -> Option<usize> {
    let count = usable(endpoints, tried).count() as u64;
    // Two independent halves of the draw; the second choice is made among the others.
    let first = (random >> 32).checked_rem(count)?;
    let one = usable(endpoints, tried).nth(usize::try_from(first).ok()?)?;
    let Some(second) = (random & 0xffff_ffff).checked_rem(count - 1) else {
        return Some(one);
    };
    let second = if second >= first { second + 1 } else { second };
    let other = usable(endpoints, tried).nth(usize::try_from(second).ok()?)?;
    Some(if load(other) < load(one) { other } else { one })
}
