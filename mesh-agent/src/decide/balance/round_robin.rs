//! Each in turn.

use super::usable;
use crate::model::Endpoint;

/// The endpoint of turn `turn`: the caller counts turns, one per connection.
pub fn round_robin(endpoints: &[Endpoint], turn: u64, tried: &[usize]) -> Option<usize> {
    let count = usable(endpoints, tried).count() as u64;
    let nth = usize::try_from(turn.checked_rem(count)?).ok()?;
    usable(endpoints, tried).nth(nth)
}
