use super::*;

/// First bytes and what they say, each also when it arrives byte by byte: never a wrong answer on the way.
#[test]
fn first_bytes_say_what_follows() {
    let long = format!("GET /{}", "a".repeat(2000));
    let cases: [(&[u8], Option<Sniffed>); 17] = [
        (b"GET / HTTP/1.1\r\n", Some(Sniffed::Http1)),
        (b"GET / HTTP/1.0\r\n", Some(Sniffed::Http1)),
        (b"M-SEARCH * HTTP/1.1\r\n", Some(Sniffed::Http1)),
        (b"POST http://a.b/c HTTP/1.1\r\n", Some(Sniffed::Http1)),
        (b"CONNECT a.b:443 HTTP/1.1\r\n", Some(Sniffed::Http1)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Sniffed::Http2)),
        (b"PRI * HTTP/2.0\r\n\r\nSM", None),
        (b"PROPFIND / HTTP/1.1\r\n", Some(Sniffed::Http1)),
        (b"GET key\r\n", Some(Sniffed::Other)),
        (b"HELO example.org\r\n", Some(Sniffed::Other)),
        (b"\x16\x03\x01\x02\x00", Some(Sniffed::Other)),
        (b"*1\r\n$4\r\nPING\r\n", Some(Sniffed::Other)),
        (b"GET / HTT", None),
        (b"GET", None),
        (b"mine", Some(Sniffed::Other)),
        (b"EHLO2", Some(Sniffed::Other)),
        (long.as_bytes(), Some(Sniffed::Http1)),
    ];
    for (bytes, wanted) in cases {
        assert_eq!(classify(bytes), wanted, "{:?}", String::from_utf8_lossy(bytes));
        let first = (1..=bytes.len()).find_map(|end| classify(&bytes[..end]));
        assert_eq!(first, wanted, "{:?} in pieces", String::from_utf8_lossy(bytes));
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// A client that waits for the server to speak is not waited for.
#[tokio::test]
async fn a_silent_client_is_other_soon() {
    let (_client, server) = pair().await;
    let since = std::time::Instant::now();
    assert_eq!(socket(&server, SNIFF_TIMEOUT).await.unwrap(), Sniffed::Other);
    assert!(
        since.elapsed() >= SNIFF_TIMEOUT && since.elapsed() < 20 * SNIFF_TIMEOUT,
        "{:?}",
        since.elapsed()
    );
}

/// A first line in pieces is waited for, and no byte of it is taken.
#[tokio::test]
async fn pieces_are_put_together_and_left() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (mut client, mut server) = pair().await;
    client.write_all(b"GE").await.unwrap();
    // Not the real limit: on a busy machine the second piece may come later than that.
    let (sniffed, ()) = tokio::join!(socket(&server, 100 * SNIFF_TIMEOUT), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        client.write_all(b"T / HTTP/1.1\r\n").await.unwrap();
    });
    assert_eq!(sniffed.unwrap(), Sniffed::Http1);
    drop(client);
    let mut all = Vec::new();
    server.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"GET / HTTP/1.1\r\n");
}
