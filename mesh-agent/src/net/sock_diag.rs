//! The kernel's list of TCP sockets, and ending one of them. All functions act on the namespace the
//! calling thread is in.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink::{self, HEADER_BYTES};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// `struct inet_diag_req_v2`.
const REQUEST_BYTES: usize = 56;
/// `struct inet_diag_msg`, before its attributes.
const RECORD_BYTES: usize = 72;
const STATE_LISTEN: u32 = 10;
/// `INET_DIAG_NOCOOKIE` in both words.
const NO_COOKIE: u64 = u64::MAX;

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    pub address: IpAddr,
    pub port: u16,
    pub cookie: u64,
    /// Refuses IPv4 (`IPV6_V6ONLY`), or is IPv4 itself.
    pub one_family: bool,
}

/// All listening TCP sockets.
pub fn listeners() -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = Request::new(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family);
        request.states(1 << STATE_LISTEN);
        let socket = netlink::open(NETLINK_SOCK_DIAG)?;
        netlink::ask(&socket, &request.0, |record| found.extend(parse_listener(record)))?;
    }
    Ok(found)
}

/// Aborts one end of a connection; the other is sent a reset. `cookie` names the socket, so that another one
/// which has taken the same addresses meanwhile is left alone. Returns whether it was still there.
pub fn destroy(local: SocketAddr, remote: SocketAddr, cookie: u64) -> io::Result<bool> {
    let family = if remote.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    if destroy_in(family, local, remote, cookie)? {
        return Ok(true);
    }
    // An IPv4 connection may live on an IPv6 socket, which the kernel then lists under that family.
    Ok(remote.is_ipv4() && destroy_in(libc::AF_INET6, mapped(local), mapped(remote), cookie)?)
}

/// The connection that has these addresses, by its cookie.
pub fn connection(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u64>> {
    let family = if remote.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    match connection_in(family, local, remote)? {
        None if remote.is_ipv4() => connection_in(libc::AF_INET6, mapped(local), mapped(remote)),
        found => Ok(found),
    }
}

fn connection_in(family: i32, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u64>> {
    let mut request = Request::new(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_ACK, family);
    request.states(u32::MAX);
    request.connection(local, remote, NO_COOKIE);
    let mut found = None;
    let socket = netlink::open(NETLINK_SOCK_DIAG)?;
    match netlink::ask(&socket, &request.0, |record| found = found.or(parse_connection(record))) {
        Ok(()) => Ok(found),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The kernel looks as for an arriving packet: where there is no connection, the listener that would take the next
/// one answers, and must not be taken for it.
fn parse_connection(record: &[u8]) -> Option<u64> {
    let state = u32::from(*record.get(1)?);
    (state != STATE_LISTEN).then(|| cookie_in(record))?
}

fn destroy_in(family: i32, local: SocketAddr, remote: SocketAddr, cookie: u64) -> io::Result<bool> {
    let mut request = Request::new(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, family);
    request.states(u32::MAX);
    request.connection(local, remote, cookie);
    let socket = netlink::open(NETLINK_SOCK_DIAG)?;
    match netlink::ask(&socket, &request.0, |_| {}) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

struct Request([u8; HEADER_BYTES + REQUEST_BYTES]);

impl Request {
    fn new(kind: u16, flags: u16, family: i32) -> Self {
        let mut bytes = [0; HEADER_BYTES + REQUEST_BYTES];
        bytes[0..4].copy_from_slice(&((HEADER_BYTES + REQUEST_BYTES) as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[HEADER_BYTES] = family as u8;
        bytes[HEADER_BYTES + 1] = libc::IPPROTO_TCP as u8;
        Self(bytes)
    }

    fn body(&mut self) -> &mut [u8] {
        &mut self.0[HEADER_BYTES..]
    }

    fn states(&mut self, mask: u32) {
        self.body()[4..8].copy_from_slice(&mask.to_ne_bytes());
    }

    /// `struct inet_diag_sockid`: ports and addresses in network order, then interface and cookie.
    fn connection(&mut self, local: SocketAddr, remote: SocketAddr, cookie: u64) {
        let body = self.body();
        body[8..10].copy_from_slice(&local.port().to_be_bytes());
        body[10..12].copy_from_slice(&remote.port().to_be_bytes());
        put_address(&mut body[12..28], local.ip());
        put_address(&mut body[28..44], remote.ip());
        body[48..56].copy_from_slice(&cookie.to_ne_bytes());
    }
}

fn put_address(to: &mut [u8], ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => to[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => to.copy_from_slice(&v6.octets()),
    }
}

fn parse_listener(record: &[u8]) -> Option<Listener> {
    let is_v6 = i32::from(*record.first()?) == libc::AF_INET6;
    let port = u16::from_be_bytes(record.get(4..6)?.try_into().ok()?);
    let octets: [u8; 16] = record.get(8..24)?.try_into().ok()?;
    let address = if is_v6 {
        IpAddr::V6(Ipv6Addr::from(octets))
    } else {
        IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]))
    };
    let one_family = !is_v6 || attribute(record.get(RECORD_BYTES..)?, INET_DIAG_SKV6ONLY) == Some(1);
    Some(Listener { address, port, cookie: cookie_in(record)?, one_family })
}

/// The kernel writes the cookie as two words, the low one first.
fn cookie_in(record: &[u8]) -> Option<u64> {
    let low = u32::from_ne_bytes(record.get(44..48)?.try_into().ok()?);
    let high = u32::from_ne_bytes(record.get(48..52)?.try_into().ok()?);
    Some(u64::from(high) << 32 | u64::from(low))
}

/// The first byte of an attribute's value.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<u8> {
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        if kind == wanted {
            return bytes.get(4).copied();
        }
        bytes = bytes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests;
