use super::super::testing::*;
use super::super::*;
use super::open::{connect, raw_tls};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use crate::identity::WorkloadCert;
use crate::identity::testing::{Authority, ManualClock, identity};

const HOUR: Duration = Duration::from_secs(3600);

/// Looks at the clock at every turn, instead of every ten seconds.
fn quick() -> TunnelSettings {
    TunnelSettings { keepalive_every: Duration::from_millis(5), ..TunnelSettings::default() }
}

async fn open(
    pool: &Pool,
    client: &Arc<WorkloadCert>,
    port: std::net::SocketAddr,
    successor: std::net::SocketAddr,
) -> Result<Stream, Failure> {
    pool.open(request(client, port, TARGET), move || TcpStream::connect(successor)).await
}

#[test]
fn past_the_end_of_the_servers_certificate_its_tunnel_takes_no_stream_and_the_live_one_finishes() {
    worker(async {
        let authority = Authority::new();
        let server = authority.cert("api").await;
        // The client's certificate is younger, so that it is neither what ends nor due for its renewal.
        authority.clock.advance(14 * HOUR);
        let client = authority.cert("web").await;
        assert!(client.not_after > server.not_after);
        let old = Port::new(&server, echo()).await;
        let pool = Pool::new(quick());
        let mut live = open(&pool, &client, old.address, old.address).await.unwrap();
        let second = open(&pool, &client, old.address, old.address).await.unwrap();
        assert_eq!(old.tunnels.get(), 1, "until then they share it");
        drop(second);

        authority.clock.advance(11 * HOUR);
        assert!(server.expired(authority.clock.time()) && !client.expired(authority.clock.time()));
        // Dialled anew, and refused where the same certificate is shown again.
        let refused = open(&pool, &client, old.address, old.address).await.unwrap_err();
        assert_eq!((refused.reason, old.tunnels.get()), (Reason::PeerCertificate, 2));
        assert_eq!(authority.manager.renew_due(), 1);
        until(|| authority.manager.current(&identity("api")).is_some()).await;
        let renewed = Port::new(&authority.cert("api").await, echo()).await;
        let mut next = open(&pool, &client, old.address, renewed.address).await.unwrap();
        assert_eq!(ask(&mut next, "fresh").await, "fresh");
        assert_eq!(ask(&mut live, "drains").await, "drains");
        until(|| pool.stats() == PoolStats { tunnels: 1, streams: 1 }).await;
        live.finish().unwrap();
        assert_eq!(recv_all(&mut live).await.unwrap(), b"");
        drop(live);
        // Both of its tunnels: the refused one and the one that was used.
        until(|| old.ends.borrow().len() == 2).await;
        assert_eq!(old.ends.borrow().iter().filter(|end| end.is_ok()).count(), 1, "{:?}", old.ends);
    });
}

#[test]
fn past_the_end_of_the_clients_certificate_the_server_lets_no_stream_in_and_the_live_one_finishes() {
    worker(async {
        // One folder, two clocks: the client's stands still and would go on for ever.
        let authority = Authority::new();
        let servers_clock = ManualClock::new();
        let servers = crate::identity::testing::manager(authority.dir.path(), &servers_clock);
        let client = authority.cert("web").await;
        servers_clock.advance(13 * HOUR);
        let server = servers.fetch(&identity("api")).await.unwrap();
        // Not valid yet by the client's clock, were it not moved as well.
        authority.clock.advance(13 * HOUR);
        // The look every ten seconds will not come within the test: the streams are refused one by one.
        let port = Port::new(&server, echo()).await;
        let pool = Pool::new(TunnelSettings::default());
        let mut live = open(&pool, &client, port.address, port.address).await.unwrap();
        assert_eq!(ask(&mut live, "live").await, "live");
        servers_clock.advance(12 * HOUR);
        assert!(client.expired(servers_clock.time()) && !client.expired(authority.clock.time()));
        let refused = open(&pool, &client, port.address, port.address).await.unwrap_err();
        assert_eq!(refused.reason, Reason::PeerCertificate, "{refused}");
        assert!(port.tunnels.get() > 1, "the refusal of a stream is no answer: it was dialled anew");
        assert_eq!(ask(&mut live, "drains").await, "drains");
    });
}

#[test]
fn a_server_says_goodbye_by_itself_when_a_certificate_ends() {
    worker(async {
        let mesh = Mesh::new().await;
        let port = Port::with(&mesh.server, echo(), quick()).await;
        let tls = raw_tls(&mesh, port.address).await;
        let (client, connection) = h2::client::handshake(tls).await.unwrap();
        let gone = spawn_local(connection);
        let mut client = client.ready().await.unwrap();
        let (answer, mut body) = client.send_request(connect("10.1.2.3:8080"), false).unwrap();
        let mut echoed = answer.await.unwrap().into_body();
        mesh.authority.clock.advance(25 * HOUR);
        // GOAWAY: no further stream.
        until(|| {
            let mut client = client.clone();
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            matches!(client.poll_ready(&mut context), std::task::Poll::Ready(Err(_)))
        })
        .await;
        assert!(!gone.is_finished() && port.ends.borrow().is_empty(), "the live stream is not cut");
        body.send_data(bytes::Bytes::from_static(b"last words"), true).unwrap();
        assert_eq!(echoed.data().await.unwrap().unwrap(), "last words");
        drop((client, body, echoed));
        gone.await.unwrap().unwrap();
        until(|| port.ends.borrow().len() == 1).await;
        assert!(port.ends.borrow()[0].is_ok());
    });
}

#[test]
fn a_client_whose_own_certificate_has_ended_does_not_dial() {
    worker(async {
        let mesh = Mesh::new().await;
        let pool = Pool::new(TunnelSettings::default());
        mesh.authority.clock.advance(25 * HOUR);
        let never = || -> std::future::Ready<std::io::Result<TcpStream>> { panic!("dialled") };
        let failure = pool.open(mesh.request(TARGET, TARGET), never).await.unwrap_err();
        assert_eq!(failure.reason, Reason::NoCertificate);
    });
}
