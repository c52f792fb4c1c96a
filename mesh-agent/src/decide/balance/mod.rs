//! Which endpoint takes a connection or a request. Owns: round robin, random, least request (power of two choices),
//! consistent hashing (ring, Maglev), locality, weights, slow start and panic; `roster` brings them together for a destination
//! with a policy, `round_robin` and `least_request` do for a plain list.
//! Never: a counter, a random source or a load figure of its own; all three come in. Returns an index into the
//! list of endpoints; none when none is to be used. Called by `proxy`.

use crate::model::Endpoint;

pub mod hash;
pub mod hash_key;
pub mod locality;
mod p2c;
pub mod roster;
mod round_robin;
pub mod weighted;

pub use p2c::least_request;
pub use roster::{Draw, Roster, Standing};
pub use round_robin::round_robin;

/// Ready endpoints that this connection has not tried yet.
fn usable<'a>(endpoints: &'a [Endpoint], tried: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
    endpoints
        .iter()
        .enumerate()
        .filter(|(index, endpoint)| endpoint.ready && !tried.contains(index))
        .map(|(index, _)| index)
}

#[cfg(test)]
mod tests;
