//! A gRPC server that knows one answer: SERVING (`grpc.health.v1.Health/Check`), as a kubelet's gRPC probe asks for it.
//! HTTP/2 (RFC 9113) as far as that needs: whatever is asked on a stream, the answer is the same.
use std::io::{Error, Read, Result, Write};
use std::net::TcpStream;

use crate::Failure;
use crate::http::each_connection;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// RFC 9113 section 4.2: what may come as long as nobody asks for more.
const FRAME_MAX: usize = 16384;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

pub(crate) fn health(port: u16) -> std::result::Result<(), Failure> {
    each_connection(port, |stream| {
        // A client that goes away has had enough.
        answer_all(stream).ok();
    })
}

fn answer_all(mut stream: TcpStream) -> Result<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface)?;
    if preface != *PREFACE {
        return Err(Error::other("not HTTP/2"));
    }
    frame(&mut stream, SETTINGS, 0, 0, &[])?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, w, x, y, z] = head;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
        if length > FRAME_MAX {
            return Err(Error::other("a frame that is too long"));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let id = u32::from_be_bytes([w & 0x7f, x, y, z]);
        match kind {
            SETTINGS if flags & ACK == 0 => frame(&mut stream, SETTINGS, ACK, 0, &[])?,
            PING if flags & ACK == 0 => frame(&mut stream, PING, ACK, 0, &body)?,
            // The end of the request: its message has been read.
            DATA | HEADERS if flags & END_STREAM != 0 => serving(&mut stream, id)?,
            _ => {}
        }
    }
}

fn serving(stream: &mut TcpStream, id: u32) -> Result<()> {
    // `:status: 200` is entry 8 of HPACK's static table; the others are literals.
    let mut headers = vec![0x88];
    headers.extend(literal("content-type", "application/grpc"));
    frame(stream, HEADERS, END_HEADERS, id, &headers)?;
    // Not compressed, two bytes: field 1 is 1, SERVING.
    frame(stream, DATA, 0, id, &[0, 0, 0, 0, 2, 0x08, 0x01])?;
    frame(stream, HEADERS, END_HEADERS | END_STREAM, id, &literal("grpc-status", "0"))?;
    println!("health asked on stream {id}");
    Ok(())
}

/// A header without indexing and without Huffman's code; both texts are shorter than 127 bytes.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        bytes.push(u8::try_from(text.len()).unwrap_or(0));
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn frame(stream: &mut TcpStream, kind: u8, flags: u8, id: u32, body: &[u8]) -> Result<()> {
    let length = u32::try_from(body.len()).unwrap_or(0).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(id.to_be_bytes());
    bytes.extend(body);
    stream.write_all(&bytes)
}
