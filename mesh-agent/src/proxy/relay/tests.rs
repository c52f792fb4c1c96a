use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, spawn_local};

use super::*;
use crate::tunnel::testing::{Mesh, Port, handler, listen, pair, send, stall, until, worker};
use crate::tunnel::{Pool, TunnelSettings};

const LONG: Duration = Duration::from_secs(60);

/// What lies between the application's two ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Between {
    /// One relay, socket to socket.
    Relay,
    /// Two relays with a tunnel between them.
    Tunnel,
}

/// One relayed connection, seen from both applications.
struct Line {
    client: TcpStream,
    server: TcpStream,
    /// How each relay ended; with a tunnel the client's is the first to be filed or not, so both are sorted.
    ends: Rc<RefCell<Vec<(&'static str, RelayEnd)>>>,
    counts: Rc<Counts>,
    relays: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
    far_sent: AtomicU64,
    far_received: AtomicU64,
}

/// Everything that the lines of one test share.
struct Setup {
    mesh: Mesh,
    pool: Pool,
    apps: TcpListener,
    port: Port,
    far: Rc<RefCell<Vec<(&'static str, RelayEnd)>>>,
    counts: Rc<Counts>,
    /// Send buffer of the far relay's sockets, where a test wants it small.
    far_buffer: Rc<Cell<Option<usize>>>,
}

impl Setup {
    async fn new() -> Self {
        let mesh = Mesh::new().await;
        let far: Rc<RefCell<Vec<_>>> = Rc::default();
        let counts: Rc<Counts> = Rc::default();
        let far_buffer: Rc<Cell<Option<usize>>> = Rc::default();
        let (ends, count, buffer) = (Rc::clone(&far), Rc::clone(&counts), Rc::clone(&far_buffer));
        let answer = handler(move |connect, responder| {
            let (ends, count, buffer) = (Rc::clone(&ends), Rc::clone(&count), buffer.get());
            async move {
                let Ok(tcp) = TcpStream::connect(connect.target).await else {
                    return responder.refuse(Reason::ConnectionRefused);
                };
                if let Some(buffer) = buffer {
                    SockRef::from(&tcp).set_send_buffer_size(buffer).unwrap();
                }
                let stream = responder.accept().unwrap();
                let io = RelayIo { sent: &count.far_sent, received: &count.far_received, idle: LONG };
                let end = tunnel(tcp, stream, TcpSide::Server, &io).await;
                ends.borrow_mut().push(("far", end));
            }
        });
        let port = Port::new(&mesh.server, answer).await;
        let (apps, _) = listen().await;
        Self { mesh, pool: Pool::new(TunnelSettings::default()), apps, port, far, counts, far_buffer }
    }

    async fn line(&self, between: Between, idle: Duration) -> Line {
        let target = self.apps.local_addr().unwrap();
        let (client, near) = pair().await;
        let (ends, counts) = (Rc::clone(&self.far), Rc::clone(&self.counts));
        let (file, count) = (Rc::clone(&ends), Rc::clone(&counts));
        let relay = match between {
            Between::Relay => {
                let far = TcpStream::connect(target).await.unwrap();
                spawn_local(async move {
                    let io = RelayIo { sent: &count.sent, received: &count.received, idle };
                    let end = tcp(near, far, &io).await;
                    file.borrow_mut().push(("near", end));
                })
            }
            Between::Tunnel => {
                let stream = self.mesh.open_to(&self.pool, self.port.address, target).await.unwrap();
                spawn_local(async move {
                    let io = RelayIo { sent: &count.sent, received: &count.received, idle };
                    let end = tunnel(near, stream, TcpSide::Client, &io).await;
                    file.borrow_mut().push(("near", end));
                })
            }
        };
        let (server, _) = self.apps.accept().await.unwrap();
        Line { client, server, ends, counts, relays: vec![relay] }
    }
}

/// Runs a test over both kinds of line.
fn over_both<F: Future>(test: impl Fn(Between, Rc<Setup>) -> F) {
    for between in [Between::Relay, Between::Tunnel] {
        worker(async {
            let setup = Rc::new(Setup::new().await);
            test(between, Rc::clone(&setup)).await;
        });
    }
}

async fn all_ended(line: &Line, between: Between, end: RelayEnd) {
    let relays = if between == Between::Tunnel { 2 } else { 1 };
    until(|| line.ends.borrow().len() == relays).await;
    assert!(line.ends.borrow().iter().all(|(_, found)| *found == end), "{:?}", line.ends.borrow());
}

fn reset(socket: TcpStream) {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
}

/// The byte at a place of an endless, unrepeating text.
fn pattern(seed: u64, at: u64) -> u8 {
    let mixed = ((at >> 3) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> ((at & 7) * 8)) as u8
}

async fn write_pattern(socket: &mut (impl AsyncWriteExt + Unpin), seed: u64, total: u64) {
    let mut at = 0;
    // Sizes that fit neither frames nor records nor buffers.
    for size in [1_u64, 1000, 70_001, 3, 16_385].into_iter().cycle() {
        let size = size.min(total - at);
        let part: Vec<u8> = (at..at + size).map(|at| pattern(seed, at)).collect();
        socket.write_all(&part).await.unwrap();
        at += size;
        if at == total {
            break;
        }
    }
    socket.shutdown().await.unwrap();
}

async fn check_pattern(socket: &mut (impl AsyncReadExt + Unpin), seed: u64) -> u64 {
    let (mut at, mut buffer) = (0, vec![0; 100_000]);
    loop {
        let read = socket.read(&mut buffer).await.unwrap();
        if read == 0 {
            return at;
        }
        for byte in &buffer[..read] {
            assert_eq!(*byte, pattern(seed, at), "at {at}");
            at += 1;
        }
    }
}

#[test]
fn sixty_four_mib_arrive_byte_exact_in_both_directions_at_once() {
    over_both(|between, setup| async move {
        const TOTAL: u64 = 64 << 20;
        let mut line = setup.line(between, LONG).await;
        let (mut client_in, mut client_out) = line.client.split();
        let (mut server_in, mut server_out) = line.server.split();
        let (up, down, (), ()) = tokio::join!(
            check_pattern(&mut server_in, 1),
            check_pattern(&mut client_in, 2),
            write_pattern(&mut client_out, 1, TOTAL),
            write_pattern(&mut server_out, 2, TOTAL),
        );
        assert_eq!((up, down), (TOTAL, TOTAL));
        all_ended(&line, between, RelayEnd::Closed).await;
        let counts = &line.counts;
        assert_eq!((counts.sent.load(Relaxed), counts.received.load(Relaxed)), (TOTAL, TOTAL));
        if between == Between::Tunnel {
            assert_eq!((counts.far_sent.load(Relaxed), counts.far_received.load(Relaxed)), (TOTAL, TOTAL));
        }
    });
}

#[test]
fn a_client_that_finished_still_gets_its_answer_and_so_does_a_server() {
    over_both(|between, setup| async move {
        for client_first in [true, false] {
            let line = setup.line(between, LONG).await;
            let (mut first, mut second) =
                if client_first { (line.client, line.server) } else { (line.server, line.client) };
            first.write_all(b"question").await.unwrap();
            first.shutdown().await.unwrap();
            let mut question = String::new();
            second.read_to_string(&mut question).await.unwrap();
            assert_eq!(question, "question");
            assert!(line.ends.borrow().is_empty(), "one side has finished, not both");
            second.write_all(b"answer").await.unwrap();
            second.shutdown().await.unwrap();
            let mut answer = String::new();
            first.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "answer");
            let relays = if between == Between::Tunnel { 2 } else { 1 };
            until(|| line.ends.borrow().len() == relays).await;
            assert!(line.ends.borrow_mut().drain(..).all(|(_, end)| end == RelayEnd::Closed));
        }
    });
}

#[test]
fn a_reset_of_either_side_is_a_reset_for_the_other() {
    over_both(|between, setup| async move {
        for client_resets in [true, false] {
            for half_closed in [false, true] {
                let mut line = setup.line(between, LONG).await;
                line.client.write_all(b"x").await.unwrap();
                line.server.read_exact(&mut [0; 1]).await.unwrap();
                let (gone, mut left, end) = match client_resets {
                    true => (line.client, line.server, RelayEnd::ClientReset),
                    false => (line.server, line.client, RelayEnd::ServerReset),
                };
                if half_closed {
                    // The side that stays has finished sending; it must learn of the reset all the same.
                    left.shutdown().await.unwrap();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                reset(gone);
                let read = left.read(&mut [0; 1]).await;
                assert_eq!(
                    read.unwrap_err().kind(),
                    ErrorKind::ConnectionReset,
                    "{client_resets} {half_closed}"
                );
                let relays = if between == Between::Tunnel { 2 } else { 1 };
                until(|| line.ends.borrow().len() == relays).await;
                assert!(line.ends.borrow_mut().drain(..).all(|(_, found)| found == end));
            }
        }
        if between == Between::Tunnel {
            assert_eq!(setup.port.tunnels.get(), 1, "a reset stream costs no tunnel");
        }
    });
}

#[test]
fn a_relay_without_traffic_ends_and_one_with_traffic_does_not() {
    over_both(|between, setup| async move {
        // A machine with much else to do may stand still for a while between two bytes.
        let idle = Duration::from_secs(1);
        let mut line = setup.line(between, idle).await;
        for _ in 0..6 {
            tokio::time::sleep(idle / 4).await;
            line.server.write_all(b"x").await.unwrap();
            line.client.read_exact(&mut [0; 1]).await.unwrap();
        }
        assert!(line.ends.borrow().is_empty());
        let read = line.server.read(&mut [0; 1]).await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(line.ends.borrow().contains(&("near", RelayEnd::Idle)));
    });
}

#[test]
fn dropping_a_relay_resets_both_ends() {
    over_both(|between, setup| async move {
        let mut line = setup.line(between, LONG).await;
        line.client.write_all(b"x").await.unwrap();
        line.server.read_exact(&mut [0; 1]).await.unwrap();
        line.relays.remove(0).abort();
        let server = line.server.read(&mut [0; 1]).await;
        let client = line.client.read(&mut [0; 1]).await;
        assert_eq!(server.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(client.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_lost_tunnel_resets_the_application_and_is_named() {
    worker(async {
        let setup = Setup::new().await;
        // A tunnel that cannot live: its port is dropped with its task's runtime, here by a peer that ends it.
        let (listener, address) = listen().await;
        let behind = setup.port.address;
        let middle = spawn_local(async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(behind).await.unwrap();
            drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
        });
        let target = setup.apps.local_addr().unwrap();
        let stream = setup.mesh.open_to(&setup.pool, address, target).await.unwrap();
        let (mut client, near) = pair().await;
        let relay = spawn_local(async move {
            let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
            tunnel(near, stream, TcpSide::Client, &RelayIo { sent: &sent, received: &received, idle: LONG })
                .await
        });
        let (mut server, _) = setup.apps.accept().await.unwrap();
        middle.abort();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(server.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(relay.await.unwrap(), RelayEnd::TunnelLost(Reason::TunnelProtocol));
    });
}

/// Writes until nothing more is taken; says how much was.
async fn fill(socket: &TcpStream, chunk: &[u8]) -> usize {
    let (mut total, mut quiet) = (0, 0);
    while quiet < 50 {
        match socket.try_write(chunk) {
            Ok(count) => {
                total += count;
                quiet = 0;
            }
            Err(_) => {
                quiet += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
    total
}

#[test]
fn sixteen_stalled_readers_hold_bounded_memory_and_the_seventeenth_line_runs() {
    over_both(|between, setup| async move {
        // Sockets' own buffers are the kernel's to bound; what the relays take beyond them is ours.
        let mut stalled = Vec::new();
        for _ in 0..16 {
            let line = setup.line(between, LONG).await;
            for socket in [&line.client, &line.server] {
                SockRef::from(socket).set_send_buffer_size(64 * 1024).unwrap();
                SockRef::from(socket).set_recv_buffer_size(64 * 1024).unwrap();
            }
            stalled.push(line);
        }
        for line in &stalled {
            assert!(fill(&line.client, &[7; 32 * 1024]).await > 0);
        }
        let taken = setup.counts.sent.load(Relaxed) - setup.counts.far_sent.load(Relaxed);
        if between == Between::Tunnel {
            let window = u64::from(crate::tunnel::STREAM_WINDOW_GROWN_BYTES);
            let limit = window + crate::tunnel::STREAM_SEND_BUFFER_BYTES as u64;
            assert!(taken <= 16 * limit, "{taken}");
        }
        let mut free = setup.line(between, LONG).await;
        let (mut input, mut output) = (free.server.split().0, free.client.split().1);
        let (moved, ()) = tokio::join!(check_pattern(&mut input, 3), write_pattern(&mut output, 3, 32 << 20));
        assert_eq!(moved, 32 << 20);
        assert!(setup.port.tunnels.get() <= 1);
        // The stalled ones lose nothing and go on when they are read.
        let line = &mut stalled[0];
        line.client.shutdown().await.unwrap();
        let mut left = Vec::new();
        line.server.read_to_end(&mut left).await.unwrap();
        assert!(!left.is_empty() && left.iter().all(|byte| *byte == 7));
    });
}

#[test]
fn a_stalled_reader_of_single_bytes_does_not_cost_the_tunnel() {
    worker(async {
        const FRAMES: usize = 100_000;
        // More than the tunnel has for frames of one byte that nobody takes (h2 counts 255 for each).
        const { assert!(FRAMES * 255 > crate::tunnel::SMALL_FRAMES_OVERHEAD_BYTES) };
        let setup = Setup::new().await;
        // Little fits into the sockets behind the tunnel, so that the bytes wait in the far relay.
        setup.far_buffer.set(Some(4 * 1024));
        SockRef::from(&setup.apps).set_recv_buffer_size(4 * 1024).unwrap();
        let target = setup.apps.local_addr().unwrap();
        let mut slow = setup.mesh.open_to(&setup.pool, setup.port.address, target).await.unwrap();
        let (mut server, _) = setup.apps.accept().await.unwrap();
        for index in 0..FRAMES {
            send(&mut slow, Bytes::from_static(b"b")).await.unwrap();
            if index % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let mut other = setup.line(Between::Tunnel, LONG).await;
        other.client.write_all(b"alive").await.unwrap();
        let mut text = [0; 5];
        other.server.read_exact(&mut text).await.unwrap();
        assert_eq!((&text, setup.port.tunnels.get()), (b"alive", 1));
        slow.finish().unwrap();
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), FRAMES);
    });
}

#[test]
fn an_idle_relay_is_small_and_holds_no_buffer() {
    worker(async {
        let mesh = Mesh::new().await;
        let port = Port::new(&mesh.server, stall()).await;
        let pool = Pool::new(TunnelSettings::default());
        let stream = mesh.open(&pool, port.address).await.unwrap();
        let (_client, near) = pair().await;
        let (a, b) = pair().await;
        let count = Arc::new(AtomicU64::new(0));
        let io = RelayIo { sent: &count, received: &count, idle: LONG };
        let relays = (tcp(a, b, &io), tunnel(near, stream, TcpSide::Client, &io));
        // The whole state of a relay is its future: nothing is on the heap until bytes move.
        assert!(size_of_val(&relays.0) < 1536, "{}", size_of_val(&relays.0));
        assert!(size_of_val(&relays.1) < 1536, "{}", size_of_val(&relays.1));
    });
}

#[test]
fn a_reset_that_a_stalled_line_cannot_see_is_found_by_looking() {
    worker(async {
        let (a, mut b) = pair().await;
        let leg = TcpLeg::new(a);
        b.write_all(b"unread").await.unwrap();
        assert!(!leg.failed());
        reset(b);
        until(|| leg.failed()).await;
    });
}
