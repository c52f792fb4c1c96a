//! What a client speaks on a port that does not say: HTTP/1, HTTP/2 with prior knowledge, or neither.
//! Owns: how long is waited and what counts. Never: takes a byte (it peeks), so whoever comes next sees them all.
//! Called by `proxy::{outbound, inbound}`.

use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::io::HttpIo;
use crate::proxy::first_bytes::{self, Seen};

/// How long a silent client is waited for. Then the protocol is one in which the server speaks first, or the client
/// is in no hurry; either way its bytes are relayed as they are.
pub const SNIFF_TIMEOUT: Duration = Duration::from_millis(100);
/// The connection preface of HTTP/2 (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes looked at: a method, a target and a version.
const LOOK_BYTES: usize = 1024;
/// Longest method: those registered are shorter.
const METHOD_MAX_BYTES: usize = 32;

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    Http1,
    Http2,
    Other,
}

/// What can be said of the bytes so far; none = more are needed.
pub fn classify(bytes: &[u8]) -> Option<Sniffed> {
    let compared = bytes.len().min(PREFACE.len());
    if bytes[..compared] == PREFACE[..compared] {
        return (compared == PREFACE.len()).then_some(Sniffed::Http2);
    }
    // RFC 9112, 3: method SP request-target SP HTTP-version CRLF. A method alone says little: many line protocols begin
    // with a word. The version settles it, or a target that is none of theirs in a line longer than is looked at.
    let Some(space) = bytes.iter().position(|byte| *byte == b' ') else {
        let method = bytes.len() <= METHOD_MAX_BYTES && bytes.iter().all(|byte| is_of_method(*byte));
        return if method { None } else { Some(Sniffed::Other) };
    };
    if space == 0 || space > METHOD_MAX_BYTES || !bytes[..space].iter().all(|byte| is_of_method(*byte)) {
        return Some(Sniffed::Other);
    }
    let rest = &bytes[space + 1..];
    match rest.first() {
        None => return None,
        Some(b'/' | b'*') => {}
        // Absolute form, or the authority of a CONNECT.
        Some(byte) if byte.is_ascii_alphanumeric() || *byte == b'[' => {}
        Some(_) => return Some(Sniffed::Other),
    }
    let line = rest.iter().position(|byte| *byte == b'\n');
    let text = &rest[..line.unwrap_or(rest.len())];
    match text.iter().position(|byte| *byte == b' ') {
        Some(end) if text[end + 1..].starts_with(b"HTTP/1.") => Some(Sniffed::Http1),
        Some(end) if line.is_none() && b"HTTP/1.".starts_with(&text[end + 1..]) => None,
        Some(_) => Some(Sniffed::Other),
        None if line.is_some() => Some(Sniffed::Other),
        None if bytes.len() >= LOOK_BYTES && rest[0] == b'/' => Some(Sniffed::Http1),
        None if bytes.len() >= LOOK_BYTES => Some(Sniffed::Other),
        None => None,
    }
}

/// Every registered method is of capitals, some with a hyphen. RFC 9110 (9.1) allows any token, but methods are
/// case-sensitive, and a word in small letters is far more often another protocol's: it should not be kept waiting.
fn is_of_method(byte: u8) -> bool {
    byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_')
}

/// Looks at a socket's first bytes. `Other` too where the client says nothing in time or has finished sending.
pub async fn socket(stream: &TcpStream, limit: Duration) -> io::Result<Sniffed> {
    Ok(match first_bytes::look(stream, LOOK_BYTES..=LOOK_BYTES, limit, classify).await? {
        Seen::Enough(sniffed) => sniffed,
        Seen::Ended | Seen::Late | Seen::Full => Sniffed::Other,
    })
}

/// The same for bytes that cannot be peeked at: they are taken and given back.
pub async fn wire(mut io: HttpIo) -> io::Result<(HttpIo, Sniffed)> {
    let deadline = Instant::now() + SNIFF_TIMEOUT;
    let mut taken = bytes::BytesMut::new();
    let sniffed = loop {
        match timeout_at(deadline, io.read_buf(&mut taken)).await {
            Err(_elapsed) => break Sniffed::Other,
            Ok(Ok(0)) => break Sniffed::Other,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
        if let Some(sniffed) = classify(&taken) {
            break sniffed;
        }
    };
    Ok((io.rewound(taken.freeze()), sniffed))
}

#[cfg(test)]
mod tests;
