//! From HTTP/1.1 to HTTP/2 on a connection in the clear (`Upgrade: h2c`, RFC 7540, 3.2). RFC 9113 has it no more; curl,
//! nghttp and older gRPC clients still ask. Owns: which request may switch, and how it becomes stream 1. Never: answers
//! it; that is for the pipeline, which sees it as any request of HTTP/2. Called by `proxy::http::server`.
//!
//! The engine knows nothing of it: after the client's own preface and settings it reads, as if the client had sent it, the
//! header block of the request that asked.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, Version};
use tokio::io::AsyncReadExt as _;

use super::body::Answer;
use super::headers::{self, HTTP2_SETTINGS};
use super::io::HttpIo;

/// RFC 9113, 3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes before a frame's payload (RFC 9113, 4.1).
const FRAME_HEAD_BYTES: usize = 9;
/// The longest payload of a frame that either side has not agreed to otherwise (RFC 9113, 4.2).
const FRAME_MAX_BYTES: usize = 16_384;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The head of a request, as far as it matters here.
pub struct Asked<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub version: Version,
    pub headers: &'a HeaderMap,
    /// It has no body. One that has would have to be read to its end before the switch.
    pub empty: bool,
}

/// The frame that makes a request stream 1; none where it does not ask, may not, or not as the RFC says. It is then
/// answered in HTTP/1.1, as RFC 9110 (7.8) allows.
pub fn first_stream(asked: &Asked<'_>) -> Option<Bytes> {
    let Asked { method, uri, version, headers: fields, empty } = asked;
    let lists = |name, word| headers::lists(fields, name, word);
    let one = |name| {
        let mut all = fields.get_all(name).iter();
        all.next().filter(|_| all.next().is_none())
    };
    if *version != Version::HTTP_11
        || !empty
        || **method == Method::CONNECT
        || !lists(&UPGRADE, "h2c")
        || !lists(&CONNECTION, "upgrade")
        || !lists(&CONNECTION, HTTP2_SETTINGS.as_str())
        // Another target than Host is the pipeline's to refuse.
        || uri.authority().is_some()
    {
        return None;
    }
    let settings = URL_SAFE_NO_PAD.decode(one(HTTP2_SETTINGS)?).ok()?;
    if settings.len() % 6 != 0 {
        return None;
    }
    let mut kept = HeaderMap::clone(fields);
    headers::strip_hop(&mut kept);
    let mut block = BytesMut::new();
    literal(&mut block, b":method", method.as_str().as_bytes());
    literal(&mut block, b":scheme", b"http");
    literal(&mut block, b":authority", one(HOST)?.as_bytes());
    literal(&mut block, b":path", uri.path_and_query()?.as_str().as_bytes());
    for (name, value) in kept.iter().filter(|(name, _)| **name != HOST) {
        literal(&mut block, name.as_str().as_bytes(), value.as_bytes());
    }
    (block.len() <= FRAME_MAX_BYTES).then(|| frame(HEADERS, END_HEADERS | END_STREAM, 1, &block))
}

/// The answer in HTTP/1.1 that the switch follows.
pub fn switching() -> Response<Answer> {
    let mut response = Response::new(Answer::full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("h2c"));
    response
}

/// Waits for the client's preface and settings and puts stream 1 behind them.
///
/// # Errors
/// The client goes away, or begins with something else.
pub async fn begin(mut io: HttpIo, first: &[u8]) -> io::Result<HttpIo> {
    let mut begun = vec![0; PREFACE.len() + FRAME_HEAD_BYTES];
    io.read_exact(&mut begun).await?;
    let head = &begun[PREFACE.len()..];
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    if begun[..PREFACE.len()] != PREFACE[..] || head[3] != SETTINGS || length > FRAME_MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no HTTP/2 after the switch to it"));
    }
    let at = begun.len();
    begun.resize(at + length, 0);
    io.read_exact(&mut begun[at..]).await?;
    begun.extend_from_slice(first);
    Ok(io.rewound(begun.into()))
}

/// A field that leaves the decoder's table as it is, without Huffman's code (RFC 7541, 6.2.2): the client's encoder knows
/// nothing of it.
fn literal(block: &mut BytesMut, name: &[u8], value: &[u8]) {
    block.put_u8(0);
    for text in [name, value] {
        length(block, text.len());
        block.put_slice(text);
    }
}

/// A length with a prefix of seven bits (RFC 7541, 5.1).
fn length(block: &mut BytesMut, length: usize) {
    const PREFIX: usize = 127;
    if length < PREFIX {
        block.put_u8(u8::try_from(length).unwrap_or(0));
        return;
    }
    block.put_u8(127);
    let mut rest = length - PREFIX;
    while rest >= 128 {
        block.put_u8(u8::try_from(rest & 127).unwrap_or(0) | 128);
        rest >>= 7;
    }
    block.put_u8(u8::try_from(rest).unwrap_or(0));
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Bytes {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut frame = BytesMut::with_capacity(FRAME_HEAD_BYTES + payload.len());
    frame.put_slice(&length[1..]);
    frame.put_slice(&[kind, flags]);
    frame.put_u32(stream);
    frame.put_slice(payload);
    frame.freeze()
}

#[cfg(test)]
mod tests;
