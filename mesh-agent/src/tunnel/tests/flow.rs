use super::super::coalesce::{Coalesce, GATHER_MAX_BYTES, IoState};
use super::super::testing::*;
use super::super::*;
use bytes::Bytes;
use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

/// Sends until the window is used up and says how much went.
async fn fill(stream: &mut Stream) -> usize {
    let chunk = Bytes::from(vec![7; 16 * 1024]);
    let mut total = 0;
    let mut quiet = 0;
    while quiet < 50 {
        let room = poll_fn(|cx| match stream.poll_capacity(cx, chunk.len()) {
            Poll::Ready(room) => Poll::Ready(Some(room.unwrap())),
            Poll::Pending => Poll::Ready(None),
        })
        .await;
        match room {
            Some(room) => {
                stream.send(chunk.slice(..room)).unwrap();
                total += room;
                quiet = 0;
            }
            None => {
                quiet += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    stream.cede();
    total
}

#[test]
fn sixteen_stalled_streams_hold_bounded_bytes_and_the_seventeenth_moves_64_mib() {
    worker(async {
        let mesh = Mesh::new().await;
        let calls: Rc<Cell<usize>> = Rc::default();
        let (stalled, echoed) = (stall(), echo());
        let count = Rc::clone(&calls);
        let port = Port::new(
            &mesh.server,
            Rc::new(move |connect, responder| {
                count.set(count.get() + 1);
                if count.get() <= 16 { stalled(connect, responder) } else { echoed(connect, responder) }
            }),
        )
        .await;
        let pool = Pool::new(TunnelSettings::default());
        let mut streams = Vec::new();
        for _ in 0..16 {
            let mut stream = mesh.open(&pool, port.address).await.unwrap();
            // What a stalled stream takes: its window, and what waits on our side for it.
            let accepted = fill(&mut stream).await;
            assert!(accepted > 0 && accepted <= STREAM_WINDOW_GROWN_BYTES as usize, "{accepted}");
            streams.push(stream);
        }
        let mut free = mesh.open(&pool, port.address).await.unwrap();
        assert_eq!(port.tunnels.get(), 1, "all share one tunnel");
        let chunk = Bytes::from(vec![1; 64 * 1024]);
        let (mut sent, mut received) = (0, 0);
        while received < 64 << 20 {
            if sent - received < 128 * 1024 {
                send(&mut free, chunk.clone()).await.unwrap();
                sent += chunk.len();
            }
            let bytes = recv(&mut free).await.unwrap().unwrap();
            free.release(bytes.len());
            received += bytes.len();
        }
        for stream in &mut streams {
            let open = poll_fn(|cx| Poll::Ready(stream.poll_capacity(cx, 1).is_pending())).await;
            assert!(open, "the others are stalled still");
        }
    });
}

/// Sends bytes in pieces, each when the one before has come back.
async fn exchange(stream: &mut Stream, total: usize) {
    let piece = Bytes::from(vec![1; 8 * 1024]);
    for _ in 0..total / piece.len() {
        send(stream, piece.clone()).await.unwrap();
        let mut left = piece.len();
        while left > 0 {
            let bytes = recv(stream).await.unwrap().unwrap();
            stream.release(bytes.len());
            left -= bytes.len();
        }
    }
}

#[test]
fn a_stream_that_has_used_much_of_a_grown_window_goes_on_after_it_shrank() {
    worker(async {
        let mesh = Mesh::new().await;
        let port = Port::new(&mesh.server, echo()).await;
        let pool = Pool::new(TunnelSettings::default());
        let mut streams = Vec::new();
        for _ in 0..2 {
            streams.push(mesh.open(&pool, port.address).await.unwrap());
        }
        // Grows the windows of both sides.
        exchange(&mut streams[0], 2 * GROW_AFTER_BYTES as usize).await;
        // As much as is not told of yet.
        exchange(&mut streams[1], 336 * 1024).await;
        // Shrinks them.
        while streams.len() <= GROWN_STREAMS_MAX {
            streams.push(mesh.open(&pool, port.address).await.unwrap());
        }
        for stream in streams.iter_mut().skip(2) {
            exchange(stream, 64 * 1024).await;
        }
        exchange(&mut streams[1], 64 * 1024).await;
        assert_eq!(port.tunnels.get(), 1);
    });
}

#[test]
fn streams_that_stall_with_small_frames_do_not_cost_the_tunnel() {
    worker(async {
        let mesh = Mesh::new().await;
        let calls: Rc<Cell<usize>> = Rc::default();
        let (stalled, echoed) = (stall(), echo());
        let count = Rc::clone(&calls);
        let port = Port::new(
            &mesh.server,
            Rc::new(move |connect, responder| {
                count.set(count.get() + 1);
                if count.get() <= 16 { stalled(connect, responder) } else { echoed(connect, responder) }
            }),
        )
        .await;
        let pool = Pool::new(TunnelSettings::default());
        let mut streams = Vec::new();
        for _ in 0..16 {
            let mut stream = mesh.open(&pool, port.address).await.unwrap();
            for _ in 0..2_000 {
                send(&mut stream, Bytes::from_static(&[0; 64])).await.unwrap();
            }
            streams.push(stream);
        }
        let mut free = mesh.open(&pool, port.address).await.unwrap();
        assert_eq!(ask(&mut free, "alive").await, "alive");
    });
}

#[test]
fn a_window_asked_for_and_ceded_serves_the_other_streams() {
    worker(async {
        let mesh = Mesh::new().await;
        let port = Port::new(&mesh.server, echo()).await;
        let pool = Pool::new(TunnelSettings::default());
        let mut streams = Vec::new();
        for _ in 0..STREAMS_PER_TUNNEL {
            let mut stream = mesh.open(&pool, port.address).await.unwrap();
            poll_fn(|cx| stream.poll_capacity(cx, 1 << 20)).await.unwrap();
            stream.cede();
            streams.push(stream);
        }
        for stream in &mut streams {
            assert_eq!(ask(stream, "room").await, "room");
        }
        assert_eq!(port.tunnels.get(), 1);
    });
}

#[test]
fn what_many_streams_send_in_one_turn_leaves_in_one_write() {
    worker(async {
        let mesh = Mesh::new().await;
        let port = Port::new(&mesh.server, echo()).await;
        let pool = Pool::new(TunnelSettings::default());
        let mut streams = Vec::new();
        for _ in 0..50 {
            streams.push(mesh.open(&pool, port.address).await.unwrap());
        }
        ask(&mut streams[0], "settled").await;
        let before = streams[0].tunnel_writes();
        for _ in 0..10 {
            for stream in &mut streams {
                send(stream, Bytes::from_static(b"small")).await.unwrap();
            }
            for stream in &mut streams {
                let mut left = 5;
                while left > 0 {
                    let bytes = recv(stream).await.unwrap().unwrap();
                    stream.release(bytes.len());
                    left -= bytes.len();
                }
            }
        }
        // 500 messages: one write for each round, and now and then a window update.
        let writes = streams[0].tunnel_writes() - before;
        assert!(writes <= 30, "{writes}");
    });
}

/// Accepts everything and notes each write.
struct Sink(Rc<Cell<usize>>, Vec<u8>);

/// A peer that says nothing more.
impl tokio::io::AsyncRead for Sink {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl tokio::io::AsyncWrite for Sink {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.0.set(self.0.get() + 1);
        self.1.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn writes_and_flushes_of_one_turn_leave_as_one_and_a_flush_does_leave() {
    worker(async {
        use tokio::io::AsyncWriteExt as _;
        let writes: Rc<Cell<usize>> = Rc::default();
        let io = Rc::new(IoState::default());
        let mut wrapped = Coalesce::new(Sink(Rc::clone(&writes), Vec::new()), Rc::clone(&io));
        for _ in 0..10 {
            wrapped.write_all(b"frame").await.unwrap();
            poll_fn(|cx| {
                let flush = std::pin::Pin::new(&mut wrapped);
                assert!(tokio::io::AsyncWrite::poll_flush(flush, cx).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        assert_eq!(writes.get(), 0);
        wrapped.flush().await.unwrap();
        assert_eq!((writes.get(), io.writes.get()), (1, 1));
        // More than fits is handed on without waiting, a large write as it is.
        let large = vec![1; GATHER_MAX_BYTES + 1];
        wrapped.write_all(&large).await.unwrap();
        assert_eq!(writes.get(), 2);
        wrapped.write_all(b"end").await.unwrap();
        wrapped.shutdown().await.unwrap();
        assert_eq!(writes.get(), 3);
    });
}
