//! The first bytes of a socket, looked at and left where they are. Owns: how often is looked at what arrives in
//! pieces. Never: takes a byte, or knows a protocol: the caller says when it has seen enough.
//! Called by `proxy::{client_hello, http::sniff}`.

use std::io;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// Between two looks at a message that arrives in pieces; doubled up to the second: a client that is in no hurry costs
/// the worker little.
const PIECES_PAUSE: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(64)];

/// What came of the look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<T> {
    /// The caller had enough.
    Enough(T),
    /// The client has said nothing at all and will not: it has finished sending.
    Ended,
    /// The client said nothing, or too little, in time.
    Late,
    /// As much as may be looked at was too little.
    Full,
}

/// Looks until `enough` gives something. `bytes`: how many are looked at to begin with, doubled up to how many at most.
/// An error of the socket is given as it is.
pub async fn look<T>(
    stream: &TcpStream,
    bytes: RangeInclusive<usize>,
    limit: Duration,
    mut enough: impl FnMut(&[u8]) -> Option<T>,
) -> io::Result<Seen<T>> {
    let deadline = Instant::now() + limit;
    let mut look = vec![0; *bytes.start()];
    let (mut seen, mut pause) = (0, PIECES_PAUSE[0]);
    loop {
        let Ok(peeked) = timeout_at(deadline, stream.peek(&mut look)).await else { return Ok(Seen::Late) };
        let peeked = peeked?;
        if peeked == 0 {
            return Ok(Seen::Ended);
        }
        if let Some(found) = enough(&look[..peeked]) {
            return Ok(Seen::Enough(found));
        }
        if peeked >= *bytes.end() {
            return Ok(Seen::Full);
        }
        if peeked == look.len() {
            look.resize((look.len() * 2).min(*bytes.end()), 0);
            continue;
        }
        if Instant::now() >= deadline {
            return Ok(Seen::Late);
        }
        // What has been peeked at keeps the socket readable: without a pause this would spin.
        pause = if peeked > seen { PIECES_PAUSE[0] } else { (pause * 2).min(PIECES_PAUSE[1]) };
        seen = peeked;
        tokio::time::sleep_until((Instant::now() + pause).min(deadline)).await;
    }
}
