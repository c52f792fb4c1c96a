use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// What was given back is read first, and every byte read is counted once.
#[tokio::test]
async fn bytes_given_back_come_first() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    client.write_all(b"world").await.unwrap();
    drop(client);
    let mut io = HttpIo::tcp(server).rewound(Bytes::from_static(b"lo ")).rewound(Bytes::from_static(b"hel"));
    let read = io.bytes_read();
    let mut all = Vec::new();
    io.read_to_end(&mut all).await.unwrap();
    assert_eq!((all.as_slice(), read.get()), (&b"hello world"[..], 11));
}
