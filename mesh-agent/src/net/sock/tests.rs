use super::*;

#[test]
fn a_mapped_address_becomes_ipv4_again() {
    assert_eq!(canonical("[::ffff:10.0.0.1]:80".parse().unwrap()), "10.0.0.1:80".parse().unwrap());
    assert_eq!(canonical("[fd98::1]:80".parse().unwrap()), "[fd98::1]:80".parse().unwrap());
}

#[test]
fn linger_zero_sends_a_reset() {
    use std::io::Read;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    set_linger_rst(&client).unwrap();
    drop(client);
    assert_eq!(server.read(&mut [0; 1]).unwrap_err().raw_os_error(), Some(libc::ECONNRESET));
}
