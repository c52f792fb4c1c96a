//! Sockets with the options the data path needs: listeners inside a pod, legs to an application with the
//! client's address, and the agent's own connections in a pod's namespace. Marking a socket for the kernel
//! programs is the caller's part (`capture`), and must come before the connect.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use mesh_common::MESH_MARK;
use socket2::{Domain, Protocol, Socket, Type};

use super::netns::NetNs;

/// Connections that may wait to be accepted, per listener. Long, so that a restart of the agent under
/// load loses none.
pub const BACKLOG: i32 = 4096;

/// Ports of the legs: below the range that clients take theirs from. A leg with a port that its client uses
/// towards the same server would be the same connection, to the kernel, as the one the client opened.
pub const LEG_PORTS: std::ops::RangeInclusive<u16> = 1024..=32_767;

const IP_TRANSPARENT: i32 = 19;
const IPV6_TRANSPARENT: i32 = 75;
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;

/// An IPv4 address accepted on an IPv6 socket is IPv4 again.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A listener of the agent in the namespace the thread is in: both families where there are two,
/// transparent (it accepts for addresses that are not local), one of a `SO_REUSEPORT` group.
/// `before` sees the socket before it listens.
pub fn listener(port: u16, before: impl FnOnce(&Socket) -> io::Result<()>) -> io::Result<TcpListener> {
    let socket = match dual_stack(port) {
        Ok(socket) => socket,
        Err(error) if lacks_ipv6(&error) => ipv4_only(port)?,
        Err(error) => return Err(error),
    };
    // Accepted sockets inherit it: without it each small answer would wait for the peer's delayed ACK.
    socket.set_tcp_nodelay(true)?;
    before(&socket)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn dual_stack(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    option(&socket, libc::SOL_IPV6, IPV6_TRANSPARENT, 1)?;
    option(&socket, libc::SOL_IP, IP_TRANSPARENT, 1)?;
    bind_shared(&socket, (Ipv6Addr::UNSPECIFIED, port).into())?;
    Ok(socket)
}

fn ipv4_only(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    option(&socket, libc::SOL_IP, IP_TRANSPARENT, 1)?;
    bind_shared(&socket, (Ipv4Addr::UNSPECIFIED, port).into())?;
    Ok(socket)
}

fn bind_shared(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())
}

/// A socket in the pod's namespace that will connect to an application of that pod as if from `source`,
/// the client's real address with a port of [`LEG_PORTS`] that `random` chooses. Non-blocking, not yet connected.
/// Where a listener has the port this fails with `AddrInUse`, and where another leg to the same application has
/// it the connect fails with `AddrNotAvailable`: then another port does.
pub fn leg_socket(netns: &NetNs, source: IpAddr, to: SocketAddr, random: u64) -> io::Result<Socket> {
    let socket = in_namespace(netns, to)?;
    match to {
        SocketAddr::V4(_) => option(&socket, libc::SOL_IP, IP_TRANSPARENT, 1)?,
        SocketAddr::V6(_) => option(&socket, libc::SOL_IPV6, IPV6_TRANSPARENT, 1)?,
    }
    socket.set_mark(MESH_MARK)?;
    // Legs share ports with one another, and do not keep an application from a port of its own.
    socket.set_reuse_address(true)?;
    // Named outright: IP_LOCAL_PORT_RANGE can only narrow the range of the namespace, and the kernel reuses a
    // connection in TIME_WAIT at once only for a port that was asked for.
    let port = LEG_PORTS.start() + (random % LEG_PORTS.len() as u64) as u16;
    socket.bind(&SocketAddr::new(source, port).into())?;
    Ok(socket)
}

/// A socket of the agent's own in the pod's namespace, for what it opens in the pod's name: it leaves
/// with the pod's address, `source` where it must be that one. Non-blocking, not yet connected.
pub fn pod_socket(netns: &NetNs, source: Option<IpAddr>, to: SocketAddr) -> io::Result<Socket> {
    let socket = in_namespace(netns, to)?;
    if let Some(source) = source {
        bind_without_port(&socket, source)?;
    }
    Ok(socket)
}

fn in_namespace(netns: &NetNs, to: SocketAddr) -> io::Result<Socket> {
    let make = || Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP));
    let socket = netns.run(make)??;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// The port is chosen at connect, when the whole connection must be unique and not the port alone.
fn bind_without_port(socket: &Socket, source: IpAddr) -> io::Result<()> {
    option(socket, libc::SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)?;
    socket.bind(&SocketAddr::new(source, 0).into())
}

/// Makes the coming close a reset: the other side must learn that the connection broke.
pub fn set_linger_rst(socket: &impl AsRawFd) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

/// Finds dead peers of idle connections: probes after `idle`, then at a tenth of it.
pub fn set_keepalive(socket: &Socket, idle: Duration) -> io::Result<()> {
    let interval = (idle / 10).max(Duration::from_secs(1));
    let keepalive = socket2::TcpKeepalive::new().with_time(idle).with_interval(interval);
    socket.set_tcp_keepalive(&keepalive)
}

fn option(socket: &Socket, level: i32, name: i32, value: i32) -> io::Result<()> {
    set(socket.as_raw_fd(), level, name, &value)
}

fn set<T>(socket: RawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer is to a live value of the length given.
    let result = unsafe { libc::setsockopt(socket, level, name, std::ptr::from_ref(value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
