use super::*;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

fn cookie_of(socket: &impl AsRawFd) -> u64 {
    let mut cookie = 0u64;
    let mut length = 8;
    // SAFETY: live values of the sizes given.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, 57, (&raw mut cookie).cast(), &raw mut length)
    };
    assert_eq!(result, 0);
    cookie
}

#[test]
fn a_listener_is_listed_with_its_cookie() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let found = listeners().unwrap().into_iter().find(|found| found.port == port).unwrap();
    assert_eq!(found.address, IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert_eq!(found.cookie, cookie_of(&listener));
    assert!(found.one_family);
}

#[test]
fn a_connection_is_ended_once_and_only_by_its_cookie() {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    assert!(!destroy(local, remote, cookie_of(&client) + 1_000_000).unwrap());
    assert!(destroy(local, remote, cookie_of(&client)).unwrap());
    let error = server.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
    assert!(!destroy(local, remote, cookie_of(&client)).unwrap());
}

#[test]
fn a_connection_is_found_by_its_addresses_and_a_listener_is_never_taken_for_one() {
    for at in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
        let listener = TcpListener::bind(at).unwrap();
        let port = listener.local_addr().unwrap().port();
        let to = SocketAddr::new(
            if at.starts_with("[::1]") { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() },
            port,
        );
        let client = TcpStream::connect(to).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let from = client.local_addr().unwrap();
        let found = connection(to, from).unwrap();
        assert_eq!(found, Some(cookie_of(&server)), "{at}");
        assert!(destroy(to, from, found.unwrap()).unwrap());
        assert_eq!(server.read(&mut [0; 1]).unwrap_err().raw_os_error(), Some(libc::ECONNABORTED));
        assert_eq!(connection(to, from).unwrap(), None, "{at}: the listener would take the next one");
        let again = TcpStream::connect(to).unwrap();
        listener.accept().unwrap();
        drop((client, again));
    }
}
