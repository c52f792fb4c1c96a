use super::super::testing::*;
use super::super::*;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, spawn_local};
use tokio_rustls::TlsAcceptor;

#[test]
fn concurrent_opens_share_one_dial_and_the_hundred_and_first_stream_opens_a_second_tunnel() {
    worker(async {
        let mesh = Rc::new(Mesh::new().await);
        let port = Port::new(&mesh.server, echo()).await;
        let pool = Pool::new(TunnelSettings::default());
        let dials: Rc<Cell<usize>> = Rc::default();
        let mut opens = JoinSet::new();
        for _ in 0..STREAMS_PER_TUNNEL {
            let (request, pool) = (mesh.request(port.address, TARGET), pool.clone());
            let (dials, address) = (Rc::clone(&dials), port.address);
            opens.spawn_local(async move {
                pool.open(request, move || {
                    dials.set(dials.get() + 1);
                    TcpStream::connect(address)
                })
                .await
                .unwrap()
            });
        }
        let mut streams = opens.join_all().await;
        assert_eq!((dials.get(), port.tunnels.get()), (1, 1));
        assert_eq!(pool.stats(), PoolStats { tunnels: 1, streams: STREAMS_PER_TUNNEL });
        streams.push(mesh.open(&pool, port.address).await.unwrap());
        assert_eq!((port.tunnels.get(), pool.stats().tunnels), (2, 2));
        for stream in &mut streams {
            assert_eq!(ask(stream, "each").await, "each");
        }
        drop(streams);
        assert_eq!(pool.stats().streams, 0);
        let _again = mesh.open(&pool, port.address).await.unwrap();
        assert_eq!(port.tunnels.get(), 2);
    });
}

#[test]
fn a_burst_over_the_limit_of_one_tunnel_opens_as_many_tunnels_as_it_needs() {
    worker(async {
        let mesh = Rc::new(Mesh::new().await);
        let port = Port::new(&mesh.server, echo()).await;
        let settings = TunnelSettings::default();
        let hits = settings.hits.clone();
        let pool = Pool::new(settings);
        let mut opens = JoinSet::new();
        for _ in 0..3 * STREAMS_PER_TUNNEL {
            let (mesh, pool, address) = (Rc::clone(&mesh), pool.clone(), port.address);
            opens.spawn_local(async move { mesh.open(&pool, address).await.unwrap() });
        }
        let streams = opens.join_all().await;
        assert_eq!(streams.len(), 3 * STREAMS_PER_TUNNEL);
        assert_eq!((port.tunnels.get(), pool.stats().tunnels), (3, 3));
        assert_eq!(hits.count(Limit::TunnelStreams), 2, "the second and the third tunnel");
    });
}

#[test]
fn a_failed_dial_fails_all_who_wait_for_it_and_the_next_open_dials_anew() {
    worker(async {
        let mesh = Rc::new(Mesh::new().await);
        let (listener, address) = listen().await;
        drop(listener);
        let pool = Pool::new(TunnelSettings::default());
        let dials: Rc<Cell<usize>> = Rc::default();
        for round in 1..=2 {
            let mut opens = JoinSet::new();
            for _ in 0..5 {
                let (request, pool) = (mesh.request(address, TARGET), pool.clone());
                let dials = Rc::clone(&dials);
                opens.spawn_local(async move {
                    let counted = move || {
                        dials.set(dials.get() + 1);
                        TcpStream::connect(address)
                    };
                    pool.open(request, counted).await.unwrap_err().reason
                });
            }
            assert_eq!(opens.join_all().await, [Reason::ConnectFailed; 5]);
            assert_eq!(dials.get(), round);
        }
        assert_eq!(pool.stats(), PoolStats::default());
    });
}

#[test]
fn an_opener_that_goes_away_leaves_the_dial_to_the_others() {
    worker(async {
        let mesh = Mesh::new().await;
        let port = Port::new(&mesh.server, echo()).await;
        let pool = Pool::new(TunnelSettings::default());
        {
            let mut first = Box::pin(mesh.open(&pool, port.address));
            std::future::poll_fn(|cx| {
                assert!(first.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
        }
        let never = || std::future::pending::<std::io::Result<TcpStream>>();
        let mut stream = pool.open(mesh.request(port.address, TARGET), never).await.unwrap();
        assert_eq!(ask(&mut stream, "still dialled").await, "still dialled");
        assert_eq!(port.tunnels.get(), 1);
    });
}

#[test]
fn a_dial_without_end_times_out() {
    worker(async {
        let mesh = Mesh::new().await;
        let settings =
            TunnelSettings { connect_timeout: Duration::from_millis(30), ..TunnelSettings::default() };
        let pool = Pool::new(settings);
        let never = || std::future::pending::<std::io::Result<TcpStream>>();
        let failure = pool.open(mesh.request(TARGET, TARGET), never).await.unwrap_err();
        assert_eq!(failure.reason, Reason::ConnectTimeout);
    });
}

#[test]
fn drain_finishes_live_streams_while_new_ones_open_a_new_tunnel() {
    worker(async {
        let mesh = Mesh::new().await;
        let (old, new) = (Port::new(&mesh.server, echo()).await, Port::new(&mesh.server, echo()).await);
        let pool = Pool::new(TunnelSettings::default());
        let mut live = mesh.open(&pool, old.address).await.unwrap();
        old.drain();
        // The successor has the address; the pool's key does not change.
        let successor = new.address;
        let request = mesh.request(old.address, TARGET);
        let mut next = loop {
            let next = pool.open(request.clone(), move || TcpStream::connect(successor)).await.unwrap();
            if new.tunnels.get() == 1 {
                break next;
            }
            drop(next);
            tokio::task::yield_now().await;
        };
        assert_eq!(ask(&mut next, "new tunnel").await, "new tunnel");
        assert_eq!(ask(&mut live, "old tunnel").await, "old tunnel");
        assert!(old.ends.borrow().is_empty(), "the old tunnel waits for its stream");
        live.finish().unwrap();
        assert_eq!(recv_all(&mut live).await.unwrap(), b"");
        drop(live);
        until(|| old.ends.borrow().len() == 1).await;
        assert!(old.ends.borrow()[0].is_ok());
        assert_eq!(ask(&mut next, "goes on").await, "goes on");
    });
}

#[test]
fn a_tunnel_that_the_server_closed_is_replaced_without_a_failed_open() {
    worker(async {
        let mesh = Mesh::new().await;
        let (old, new) = (Port::new(&mesh.server, echo()).await, Port::new(&mesh.server, echo()).await);
        let pool = Pool::new(TunnelSettings::default());
        drop(mesh.open(&pool, old.address).await.unwrap());
        old.drain();
        let successor = new.address;
        for _ in 0..20 {
            let request = mesh.request(old.address, TARGET);
            let mut stream = pool.open(request, move || TcpStream::connect(successor)).await.unwrap();
            assert_eq!(ask(&mut stream, "no gap").await, "no gap");
        }
        assert_eq!(new.tunnels.get(), 1);
    });
}

#[test]
fn a_pool_that_closes_sends_what_its_streams_were_told_to_and_waits_no_longer_than_it_may() {
    let got: Rc<Cell<usize>> = Rc::default();
    let count = Rc::clone(&got);
    worker(async move {
        let mesh = Mesh::new().await;
        let counting = handler(move |_, responder| {
            let count = Rc::clone(&count);
            async move {
                let mut stream = responder.accept().unwrap();
                stream.finish().unwrap();
                while let Some(Ok(bytes)) = recv(&mut stream).await {
                    stream.release(bytes.len());
                    count.set(count.get() + bytes.len());
                }
            }
        });
        let port = Port::new(&mesh.server, counting).await;
        let pool = Pool::new(TunnelSettings::default());
        let mut stream = mesh.open(&pool, port.address).await.unwrap();
        assert_eq!(recv_all(&mut stream).await.unwrap(), b"");
        let said = vec![7; STREAM_SEND_BUFFER_BYTES];
        send(&mut stream, said.into()).await.unwrap();
        stream.finish().unwrap();
        drop(stream);
        pool.close(Duration::from_secs(60)).await;
        until(|| port.ends.borrow().len() == 1).await;
        assert!(port.ends.borrow()[0].is_ok(), "{:?}", port.ends.borrow()[0]);
        // A stream that does not end does not hold it up for ever.
        let stalled = Port::new(&mesh.server, stall()).await;
        let _stream = mesh.open(&pool, stalled.address).await.unwrap();
        pool.close(Duration::from_millis(20)).await;
        assert_eq!(pool.stats(), PoolStats::default());
    });
    assert_eq!(got.get(), STREAM_SEND_BUFFER_BYTES);
}

/// How a tunnel ends before its use.
#[derive(Clone, Copy, Debug)]
enum Leave {
    /// GOAWAY that takes no stream: an agent that is being replaced.
    GoAway,
    /// Closed right after the handshake: an agent that is gone.
    Close,
    /// Closed when the client has asked, without an answer.
    CloseAsked,
}

/// A tunnel port that leaves like this so many times, and then echoes.
async fn leaving_port(mesh: &Mesh, leave: Leave, times: usize) -> std::net::SocketAddr {
    let (listener, address) = listen().await;
    let cert = std::sync::Arc::clone(&mesh.server);
    spawn_local(async move {
        for _ in 0..times {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = TlsAcceptor::from(cert.server_config()).accept(tcp).await.unwrap();
            if matches!(leave, Leave::Close) {
                continue;
            }
            let mut connection = h2::server::handshake(tls).await.unwrap();
            match leave {
                Leave::GoAway => connection.abrupt_shutdown(h2::Reason::NO_ERROR),
                _ => drop(connection.accept().await),
            }
            spawn_local(async move {
                if matches!(leave, Leave::GoAway) {
                    while connection.accept().await.is_some() {}
                }
            });
        }
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (cert, echo) = (std::sync::Arc::clone(&cert), echo());
            spawn_local(async move {
                let options = ServeOptions::default();
                drop(serve(tcp, cert, options, |c, r| echo(c, r), std::future::pending()).await);
            });
        }
    });
    address
}

#[test]
fn a_new_tunnel_that_is_gone_before_its_use_is_dialled_again_and_not_for_ever() {
    worker(async {
        let mesh = Mesh::new().await;
        for leave in [Leave::GoAway, Leave::Close, Leave::CloseAsked] {
            for times in [1, 4, 5] {
                let address = leaving_port(&mesh, leave, times).await;
                let pool = Pool::new(TunnelSettings::default());
                let dials: Rc<Cell<usize>> = Rc::default();
                let count = Rc::clone(&dials);
                let dial = move || {
                    count.set(count.get() + 1);
                    TcpStream::connect(address)
                };
                match pool.open(mesh.request(address, TARGET), dial).await {
                    Ok(mut stream) => {
                        assert_eq!(ask(&mut stream, "at last").await, "at last");
                        assert_eq!((times < 5, dials.get()), (true, times + 1), "{leave:?} {times}");
                    }
                    Err(failure) => {
                        assert_eq!((times, dials.get()), (5, 5), "{leave:?} {times}: {failure}");
                    }
                }
            }
        }
    });
}

#[test]
fn idle_tunnels_are_released_and_used_ones_are_not() {
    worker(async {
        let mesh = Mesh::new().await;
        let port = Port::new(&mesh.server, echo()).await;
        let settings = TunnelSettings {
            keepalive_every: Duration::from_millis(5),
            idle_release: Duration::from_millis(20),
            ..TunnelSettings::default()
        };
        let hits = settings.hits.clone();
        let pool = Pool::new(settings);
        let stream = mesh.open(&pool, port.address).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(pool.stats(), PoolStats { tunnels: 1, streams: 1 });
        drop(stream);
        until(|| pool.stats().tunnels == 0 && port.ends.borrow().len() == 1).await;
        assert!(port.ends.borrow()[0].is_ok(), "{:?}", port.ends.borrow()[0]);
        assert_eq!(hits.count(Limit::IdleTunnels), 1);
    });
}

#[test]
fn a_silent_peer_is_given_up_and_its_streams_with_it() {
    worker(async {
        let mesh = Mesh::new().await;
        let port = Port::new(&mesh.server, echo()).await;
        // Between the two a middle that can stop forwarding without closing anything.
        let (listener, middle) = listen().await;
        let cut: Rc<Cell<bool>> = Rc::default();
        let stop = Rc::clone(&cut);
        let behind = port.address;
        spawn_local(async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(behind).await.unwrap();
            let (mut a, mut b) = ([0; 4096], [0; 4096]);
            while !stop.get() {
                tokio::select! {
                    n = near.read(&mut a) => far.write_all(&a[..n.unwrap()]).await.unwrap(),
                    n = far.read(&mut b) => near.write_all(&b[..n.unwrap()]).await.unwrap(),
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                }
            }
            std::future::pending::<()>().await;
        });
        let settings = TunnelSettings {
            keepalive_every: Duration::from_millis(10),
            keepalive_timeout: Duration::from_millis(40),
            ..TunnelSettings::default()
        };
        let pool = Pool::new(settings);
        let mut stream = mesh.open(&pool, middle).await.unwrap();
        assert_eq!(ask(&mut stream, "alive").await, "alive");
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(pool.stats().tunnels, 1, "answered PINGs keep it");
        cut.set(true);
        let lost = recv(&mut stream).await.unwrap().unwrap_err();
        assert_eq!(lost, StreamError::Lost(Reason::TunnelTimeout));
        until(|| pool.stats().tunnels == 0).await;
    });
}

#[test]
fn a_renewed_certificate_and_a_retired_key_get_a_new_tunnel() {
    worker(async {
        let mut mesh = Mesh::new().await;
        let port = Port::new(&mesh.server, echo()).await;
        let pool = Pool::new(TunnelSettings::default());
        let mut old = mesh.open(&pool, port.address).await.unwrap();
        mesh.authority.clock.advance(Duration::from_secs(13 * 3600));
        assert_eq!(mesh.authority.manager.renew_due(), 2);
        until(|| mesh.authority.manager.current(&mesh.client.identity).unwrap().serial != mesh.client.serial)
            .await;
        mesh.client = mesh.authority.manager.current(&mesh.client.identity).unwrap();
        let _new = mesh.open(&pool, port.address).await.unwrap();
        assert_eq!(port.tunnels.get(), 2);
        assert_eq!(ask(&mut old, "finishes").await, "finishes");
        pool.retain(|key| key.source != mesh.client.identity);
        assert_eq!(pool.stats(), PoolStats::default());
        let _third = mesh.open(&pool, port.address).await.unwrap();
        assert_eq!(port.tunnels.get(), 3);
        assert_eq!(ask(&mut old, "still").await, "still");
    });
}

#[test]
fn a_peer_that_keeps_an_unused_tunnel_is_told_to_go() {
    worker(async {
        let mesh = Mesh::new().await;
        let settings = TunnelSettings {
            keepalive_every: Duration::from_millis(5),
            idle_release: Duration::from_millis(10),
            ..TunnelSettings::default()
        };
        let hits = settings.hits.clone();
        let port = Port::with(&mesh.server, echo(), settings).await;
        let tls = super::open::raw_tls(&mesh, port.address).await;
        let (_held, connection) = h2::client::handshake::<_>(tls).await.unwrap();
        spawn_local(async { drop(connection.await) });
        until(|| port.ends.borrow().len() == 1).await;
        let end = port.ends.borrow()[0].clone();
        assert!(end.is_ok(), "{end:?}");
        assert_eq!(hits.count(Limit::IdleTunnels), 1);
    });
}
