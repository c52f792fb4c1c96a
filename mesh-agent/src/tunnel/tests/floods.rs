use super::super::testing::*;
use super::super::*;
use super::open::{connect, raw_tls};
use std::cell::Cell;
use std::rc::Rc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An HTTP/2 frame by hand.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// HPACK for `:method CONNECT`, `:authority 10.1.2.3:8080`, literal and not indexed.
fn connect_block() -> Vec<u8> {
    let mut block = vec![0x02, 7];
    block.extend(b"CONNECT");
    block.extend([0x01, 13]);
    block.extend(b"10.1.2.3:8080");
    block
}

/// Writes `flood` on a tunnel of its own until the server ends it; says how many bytes the server took and how
/// often the handler was called. Every flood is counted as one.
async fn flood(mesh: &Mesh, handler_delay: bool, flood: impl Fn(u32) -> Vec<u8>) -> (usize, usize, Failure) {
    let settings = TunnelSettings::default();
    let hits = settings.hits.clone();
    let calls: Rc<Cell<usize>> = Rc::default();
    let count = Rc::clone(&calls);
    let port = Port::with(
        &mesh.server,
        handler(move |_, mut responder| {
            count.set(count.get() + 1);
            async move {
                if handler_delay {
                    let _ = responder.cancelled().await;
                }
            }
        }),
        settings,
    )
    .await;
    let (mut read, mut write) = tokio::io::split(raw_tls(mesh, port.address).await);
    spawn_local(async move { while matches!(read.read(&mut [0; 4096]).await, Ok(1..)) {} });
    write.write_all(PREFACE).await.unwrap();
    write.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    let mut bytes = 0;
    for round in 0..200_000 {
        let part = flood(round);
        if write.write_all(&part).await.is_err() || !port.ends.borrow().is_empty() {
            break;
        }
        bytes += part.len();
    }
    until(|| !port.ends.borrow().is_empty()).await;
    let end = port.ends.borrow_mut().remove(0).expect_err("the server ends a flood");
    assert_eq!(hits.count(Limit::TunnelFlood), 1, "{end}");
    (bytes, calls.get(), end)
}

#[test]
fn a_rapid_reset_flood_ends_the_tunnel() {
    worker(async {
        let mesh = Mesh::new().await;
        // CVE-2023-44487: open and cancel in the same write, far over the limit of streams.
        let (_, calls, end) = flood(&mesh, true, |round| {
            let mut bytes = Vec::new();
            for step in 0..50 {
                let stream = (round * 50 + step) * 2 + 1;
                bytes.extend(frame(1, 4, stream, &connect_block()));
                bytes.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
            }
            bytes
        })
        .await;
        assert_eq!(end.reason, Reason::TunnelProtocol);
        assert!(calls <= SERVER_STREAMS_MAX as usize + PENDING_ACCEPT_RESETS_MAX, "{calls}");
        // Others are not harmed.
        let port = Port::new(&mesh.server, echo()).await;
        let pool = Pool::new(TunnelSettings::default());
        assert_eq!(ask(&mut mesh.open(&pool, port.address).await.unwrap(), "fine").await, "fine");
    });
}

#[test]
fn a_continuation_flood_ends_the_tunnel_near_the_header_limit() {
    worker(async {
        let mesh = Mesh::new().await;
        // CVE-2024-27316's class: a header block without end.
        let (bytes, calls, end) = flood(&mesh, true, |round| match round {
            0 => frame(1, 0, 1, &connect_block()),
            _ => frame(9, 0, 1, &[&[0x00, 1, b'a', 0x7f, 0x81, 0x07][..], &[b'x'; 1024]].concat()),
        })
        .await;
        assert_eq!((calls, end.reason), (0, Reason::TunnelProtocol));
        assert!(bytes < 16 * SERVER_HEADER_LIST_BYTES as usize, "{bytes}");
    });
}

#[test]
fn an_empty_data_flood_ends_the_tunnel() {
    worker(async {
        let mesh = Mesh::new().await;
        let (bytes, _, end) = flood(&mesh, true, |round| match round {
            0 => frame(1, 4, 1, &connect_block()),
            _ => frame(0, 0, 1, &[]).repeat(100),
        })
        .await;
        assert_eq!(end.reason, Reason::TunnelProtocol);
        assert!(bytes < 1 << 20, "{bytes}");
    });
}

#[test]
fn more_streams_than_the_limit_are_refused_and_the_tunnel_lives() {
    worker(async {
        let mesh = Mesh::new().await;
        let calls: Rc<Cell<usize>> = Rc::default();
        let count = Rc::clone(&calls);
        let stalled = stall();
        let settings = TunnelSettings::default();
        let hits = settings.hits.clone();
        let port = Port::with(
            &mesh.server,
            Rc::new(move |connect, responder| {
                count.set(count.get() + 1);
                stalled(connect, responder)
            }),
            settings,
        )
        .await;
        let tls = raw_tls(&mesh, port.address).await;
        let (mut client, connection) = h2::client::Builder::new()
            .initial_max_send_streams(1000)
            .handshake::<_, bytes::Bytes>(tls)
            .await
            .unwrap();
        // All are asked for before the server's SETTINGS are read.
        let mut asked = Vec::new();
        for _ in 0..300 {
            asked.push(client.send_request(connect("10.1.2.3:8080"), false).unwrap());
        }
        spawn_local(async { drop(connection.await) });
        let mut held = Vec::new();
        let mut refused = 0;
        for (answer, body) in asked.into_iter().take(SERVER_STREAMS_MAX as usize + 20) {
            match tokio::time::timeout(Duration::from_millis(200), answer).await {
                Ok(Ok(response)) => held.push((response, body)),
                _ => refused += 1,
            }
            if refused > 2 {
                break;
            }
        }
        assert_eq!(held.len(), SERVER_STREAMS_MAX as usize);
        assert!(calls.get() <= SERVER_STREAMS_MAX as usize, "{}", calls.get());
        assert!(hits.count(Limit::TunnelStreams) >= 1);
        assert!(port.ends.borrow().is_empty());
    });
}
