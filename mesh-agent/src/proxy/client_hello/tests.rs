use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use super::*;

/// What a real client sends first.
fn hello(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut sent = Vec::new();
    let _count = client.write_tls(&mut sent).unwrap();
    sent
}

fn named(name: &str) -> Hello {
    Hello::Tls(Some(name.into()))
}

/// The same message in records of at most so many bytes.
fn split(bytes: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for part in bytes[5..].chunks(size) {
        out.extend_from_slice(&bytes[..3]);
        out.extend_from_slice(&u16::try_from(part.len()).unwrap().to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

#[test]
fn the_name_that_a_client_asks_for() {
    for (asked, expected) in [
        ("shop.example.com", named("shop.example.com")),
        ("SHOP.Example.com", named("shop.example.com")),
        ("under_score.example", named("under_score.example")),
        ("10.0.0.1", Hello::Tls(None)),
    ] {
        let bytes = hello(asked);
        assert_eq!(parse(&bytes), Some(expected.clone()), "{asked}");
        // Never a wrong answer on the way, and none before all of it is there.
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), None, "{asked}, {end} bytes");
        }
        for size in [1, 7, 100] {
            assert_eq!(parse(&split(&bytes, size)), Some(expected.clone()), "{asked} in records of {size}");
        }
        let followed = [bytes.as_slice(), b"more"].concat();
        assert_eq!(parse(&followed), Some(expected), "{asked}, followed by more");
    }
}

#[test]
fn what_is_no_client_hello_is_known_as_early_as_can_be() {
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\n"[..], Some(Hello::Other)),
        (b"\x16", None),
        (b"\x16\x02", Some(Hello::Other)),
        (b"\x16\x03\x01\x00\x00", Some(Hello::Other)),
        (b"\x16\x03\x01\x40\x01", Some(Hello::Other)),
        (b"\x16\x03\x01\x00\x05\x02", Some(Hello::Other)),
        (b"\x17\x03\x03\x00\x05hello", Some(Hello::Other)),
        // A body that breaks off has no name.
        (b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03", Some(Hello::Tls(None))),
        (b"", None),
    ] {
        assert_eq!(parse(bytes), expected, "{bytes:?}");
    }
}

#[test]
fn a_name_that_no_host_has_is_none() {
    let good = hello("shop.example.com");
    let at = good.windows(4).position(|window| window == b"shop").unwrap();
    for bad in [b"sh p", b"sh\0p", b"s..p", b".hop", b"sh\xffp"] {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(bad);
        assert_eq!(parse(&bytes), Some(Hello::Tls(None)), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), lengths in any::<[u8; 2]>()) {
        let _any = parse(&bytes);
        let head = [&[22, 3, 1, 1, 0, 1, 0][..], &lengths].concat();
        bytes.splice(0..0, head);
        let _any = parse(&bytes);
    }

    #[test]
    fn a_broken_hello_never_gets_another_name(at in 0usize..200, byte in any::<u8>()) {
        let mut bytes = hello("shop.example.com");
        let at = at % bytes.len();
        let name = bytes.windows(16).position(|window| window == b"shop.example.com").unwrap();
        prop_assume!(!(name..name + 16).contains(&at));
        bytes[at] = byte;
        if let Some(Hello::Tls(Some(found))) = parse(&bytes) {
            prop_assert!("shop.example.com".starts_with(&*found), "{found}");
        }
    }
}

/// Long enough for a message in pieces on a busy machine.
const LIMIT: Duration = Duration::from_secs(5);
/// For a message that never comes.
const SHORT: Duration = Duration::from_millis(50);

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// In pieces, from a silent client, and from one that never comes to an end; not a byte is taken.
#[tokio::test]
async fn a_socket_is_looked_at_within_bounds() {
    let (mut client, mut server) = pair().await;
    let bytes = hello("shop.example.com");
    let sent = bytes.clone();
    let writer = tokio::spawn(async move {
        for piece in sent.chunks(100) {
            client.write_all(piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        client
    });
    assert_eq!(peek(&server, LIMIT).await.unwrap(), Peeked::Hello(named("shop.example.com")));
    let _client = writer.await.unwrap();
    let mut all = vec![0; bytes.len()];
    let _count = tokio::io::AsyncReadExt::read_exact(&mut server, &mut all).await.unwrap();
    assert_eq!(all, bytes);

    let (client, server) = pair().await;
    assert_eq!(peek(&server, SHORT).await.unwrap(), Peeked::Late);
    drop(client);
    assert_eq!(peek(&server, LIMIT).await.unwrap(), Peeked::Hello(Hello::Other), "it has closed");

    let (mut client, server) = pair().await;
    client.write_all(&bytes[..50]).await.unwrap();
    assert_eq!(peek(&server, SHORT).await.unwrap(), Peeked::Late, "the rest never comes");

    // A message of 64 KiB in records of 1 KiB.
    let mut long = vec![0; 4 + (64 << 10)];
    long[..4].copy_from_slice(&[1, 1, 0, 0]);
    let long = split(&[&[22, 3, 1, 0, 0][..], &long].concat(), 1024);
    let (mut client, server) = pair().await;
    client.write_all(&long).await.unwrap();
    assert_eq!(peek(&server, LIMIT).await.unwrap(), Peeked::TooLong);
}
