//! One request and its answers over a netlink socket, blocking: the kernel answers at once, and the
//! socket must be made and used on the thread that is inside the namespace it speaks for.

use std::io;

use netlink_sys::{Socket, SocketAddr};

/// Bytes of one answer; the kernel never sends more in one message of a dump.
const ANSWER_BYTES: usize = 64 * 1024;
/// Header of every netlink message.
pub(super) const HEADER_BYTES: usize = 16;
/// Header of an error message: a netlink header, then the negative errno.
const ERROR_BYTES: usize = HEADER_BYTES + 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

pub(super) fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Sends a request that asked for an acknowledgement or a dump, and hands each answer's payload to `each`.
pub(super) fn ask(socket: &Socket, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    socket.send(request, 0)?;
    let mut buffer = Vec::with_capacity(ANSWER_BYTES);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while let Some(message) = first_message(rest) {
            match message.kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return error_of(message.bytes),
                _ => each(&message.bytes[HEADER_BYTES..]),
            }
            rest = rest.get(message.bytes.len().next_multiple_of(4)..).unwrap_or(&[]);
        }
    }
}

struct Message<'a> {
    kind: u16,
    bytes: &'a [u8],
}

fn first_message(bytes: &[u8]) -> Option<Message<'_>> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let bytes = bytes.get(..length.max(HEADER_BYTES))?;
    Some(Message { kind, bytes })
}

fn error_of(message: &[u8]) -> io::Result<()> {
    let code = message.get(HEADER_BYTES..ERROR_BYTES).and_then(|bytes| bytes.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "netlink error message is cut short")),
    }
}
