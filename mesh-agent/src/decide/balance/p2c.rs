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
    of_two(count, random, |nth| usable(endpoints, tried).nth(usize::try_from(nth).ok()?), load)
}

/// The same for any way to number `count` candidates.
pub(super) fn of_two<T: Copy, L: PartialOrd>(
    count: u64,
    random: u64,
    nth: impl Fn(u64) -> Option<T>,
    load: impl Fn(T) -> L,
) -> Option<T> {
    // Two independent halves of the draw; the second choice is made among the others.
    let first = (random >> 32).checked_rem(count)?;
    let one = nth(first)?;
    let Some(second) = (random & 0xffff_ffff).checked_rem(count - 1) else {
        return Some(one);
    };
    let other = nth(if second >= first { second + 1 } else { second })?;
    Some(if load(other) < load(one) { other } else { one })
}
