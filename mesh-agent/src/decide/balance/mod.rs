//! Which endpoint takes a connection. Owns: round robin and least request (power of two choices).
//! Never: a counter, a random source or a load figure of its own; all three come in. Returns an index into the
//! plan's endpoints; none when no endpoint is ready and untried. Called by `proxy::outbound`.

use crate::model::Endpoint;

mod p2c;
mod round_robin;

pub use p2c::least_request;
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
