//! The name in a TLS client's first message, for ports whose rules go by it. Owns: how long and how far is looked, and
//! what of a ClientHello counts. Never: takes a byte (it peeks), answers, or judges TLS: the application's own server
//! does. Called by `proxy::outbound`.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::proxy::first_bytes::{self, Seen};

/// The longest first message that is looked at, with its record headers. Today's largest, with post-quantum keys, have
/// less than 2 KiB.
pub const HELLO_MAX_BYTES: usize = 16 * 1024;
/// How long a client may take for it: as for a handshake of the mesh's own.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// What is looked at first; doubled where it does not hold the message.
const LOOK_BYTES: usize = 2048;
/// Longest name (RFC 1035, 2.3.4).
const NAME_MAX_BYTES: usize = 253;

/// What the first bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// A ClientHello; the name in lower case, if there is one that can be a host's.
    Tls(Option<Box<str>>),
    /// No TLS.
    Other,
}

/// What came of the look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peeked {
    Hello(Hello),
    /// The client said nothing, or not all of it, in time: perhaps it waits for its server to speak first.
    Late,
    /// More than [`HELLO_MAX_BYTES`].
    TooLong,
}

/// Looks at a socket's first bytes.
pub async fn peek(stream: &TcpStream, limit: Duration) -> io::Result<Peeked> {
    Ok(match first_bytes::look(stream, LOOK_BYTES..=HELLO_MAX_BYTES, limit, parse).await? {
        Seen::Enough(hello) => Peeked::Hello(hello),
        Seen::Ended => Peeked::Hello(Hello::Other),
        Seen::Late => Peeked::Late,
        Seen::Full => Peeked::TooLong,
    })
}

/// Reads as much as there is; none = more is needed.
///
/// One handshake message may be spread over records (RFC 8446, 5.1), and what is in it is trusted with nothing but the
/// choice of a destination: what cannot be read has no name.
pub fn parse(bytes: &[u8]) -> Option<Hello> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // Type 22 (handshake), version 3.x, length.
        let header = rest.get(..5.min(rest.len()))?;
        let is_handshake = header.first().is_none_or(|kind| *kind == 22);
        if !is_handshake || header.get(1).is_some_and(|major| *major != 3) {
            return Some(Hello::Other);
        }
        let [_, _, _, high, low] = *header else { return None };
        let length = usize::from(u16::from_be_bytes([high, low]));
        // No larger plaintext record, and no empty one of this type, is allowed.
        if length == 0 || length > 1 << 14 {
            return Some(Hello::Other);
        }
        let there = &rest[5..];
        message.extend_from_slice(&there[..length.min(there.len())]);
        // Type 1 (client_hello), length of 24 bits.
        if message.first().is_some_and(|kind| *kind != 1) {
            return Some(Hello::Other);
        }
        if let [_, a, b, c, ..] = *message {
            let wanted = 4 + (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c));
            if message.len() >= wanted {
                return Some(Hello::Tls(name(&message[4..wanted])));
            }
        }
        rest = there.get(length..)?;
    }
}

/// The server's name in the body of a ClientHello (RFC 8446, 4.1.2; RFC 6066, 3).
fn name(body: &[u8]) -> Option<Box<str>> {
    let mut rest = Reader(body);
    // legacy_version, random.
    rest.take(2 + 32)?;
    let _session = rest.vector(1)?;
    let _suites = rest.vector(2)?;
    let _compression = rest.vector(1)?;
    let mut extensions = Reader(rest.vector(2)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let mut extension = Reader(extensions.vector(2)?);
        if kind != 0 {
            continue;
        }
        let mut names = Reader(extension.vector(2)?);
        while !names.0.is_empty() {
            let kind = names.number(1)?;
            let text = names.vector(2)?;
            if kind == 0 {
                return host(text);
            }
        }
        return None;
    }
    None
}

/// A host's name in lower case, without the root's dot.
fn host(text: &[u8]) -> Option<Box<str>> {
    let text = std::str::from_utf8(text).ok()?;
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let good = text.len() <= NAME_MAX_BYTES && text.split('.').all(label);
    good.then(|| text.to_ascii_lowercase().into())
}

/// Takes from the front, and nothing that is not there.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number of so many bytes.
    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    /// What follows its own length of so many bytes.
    fn vector(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let length = self.number(bytes)?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests;
