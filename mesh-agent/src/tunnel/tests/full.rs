use std::sync::Arc;

use super::super::testing::*;
use super::super::*;
use crate::identity::testing::identity;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio_rustls::TlsAcceptor;

/// A pool with these settings, and its counters.
fn pool(settings: TunnelSettings) -> (Pool, Hits) {
    let hits = settings.hits.clone();
    (Pool::new(settings), hits)
}

#[test]
fn a_full_pool_gives_up_its_idlest_tunnel_and_refuses_where_each_is_in_use() {
    worker(async {
        let mesh = Mesh::new().await;
        let (pool, hits) = pool(TunnelSettings { tunnels_max: 2, ..TunnelSettings::default() });
        let ports = [
            Port::new(&mesh.server, echo()).await,
            Port::new(&mesh.server, echo()).await,
            Port::new(&mesh.server, echo()).await,
        ];
        let mut first = mesh.open(&pool, ports[0].address).await.unwrap();
        let second = mesh.open(&pool, ports[1].address).await.unwrap();
        assert_eq!((pool.stats().tunnels, hits.count(Limit::Tunnels)), (2, 0));
        let refused = mesh.open(&pool, ports[2].address).await.unwrap_err();
        assert_eq!(refused.reason, Reason::LimitReached);
        assert!(refused.message.contains("2 tunnels"), "{refused}");
        assert_eq!((pool.stats().tunnels, hits.count(Limit::Tunnels), ports[2].tunnels.get()), (2, 1, 0));
        // Another stream on a tunnel that is there needs no room.
        drop(mesh.open(&pool, ports[0].address).await.unwrap());
        drop(second);
        let mut third = mesh.open(&pool, ports[2].address).await.unwrap();
        assert_eq!((pool.stats().tunnels, hits.count(Limit::Tunnels)), (2, 2));
        assert_eq!(ask(&mut first, "in use").await, "in use");
        assert_eq!(ask(&mut third, "instead").await, "instead");
        until(|| ports[1].ends.borrow().len() == 1).await;
        assert!(ports[1].ends.borrow()[0].is_ok());
    });
}

#[test]
fn a_tunnel_at_the_end_of_its_life_finishes_its_streams_and_another_takes_the_next() {
    worker(async {
        let mesh = Mesh::new().await;
        let port = Port::new(&mesh.server, echo()).await;
        let (pool, hits) = pool(TunnelSettings { streams_ever: 3, ..TunnelSettings::default() });
        let mut last = None;
        for _ in 0..3 {
            last = Some(mesh.open(&pool, port.address).await.unwrap());
        }
        assert_eq!((port.tunnels.get(), hits.count(Limit::TunnelLife)), (1, 0));
        let mut next = mesh.open(&pool, port.address).await.unwrap();
        assert_eq!((port.tunnels.get(), hits.count(Limit::TunnelLife)), (2, 1));
        assert_eq!(ask(&mut last.unwrap(), "old").await, "old");
        assert_eq!(ask(&mut next, "new").await, "new");
    });
}

#[test]
fn a_peer_that_finds_our_headers_too_long_is_counted_and_told_as_a_limit() {
    worker(async {
        let mesh = Mesh::new().await;
        let (listener, address) = listen().await;
        let config = mesh.server.server_config();
        spawn_local(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = TlsAcceptor::from(config).accept(tcp).await.unwrap();
            let mut server = h2::server::handshake(tls).await.unwrap();
            while let Some(Ok((_, mut respond))) = server.accept().await {
                let mut answer = http::Response::new(());
                *answer.status_mut() = http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                drop(respond.send_response(answer, true));
            }
        });
        let (pool, hits) = pool(TunnelSettings::default());
        let mut request = request(&mesh.client, address, TARGET);
        request.headers.baggage = Some("x".repeat(4096));
        let refused = pool.open(request, || TcpStream::connect(address)).await.unwrap_err();
        assert_eq!(refused.reason, Reason::LimitReached, "{refused}");
        assert_eq!(hits.count(Limit::HeaderList), 1);
    });
}

#[test]
fn a_handshake_keeps_its_place_until_it_is_over() {
    worker(async {
        let mesh = Mesh::new().await;
        let (listener, address) = listen().await;
        let cert = Arc::clone(&mesh.server);
        let place = std::rc::Rc::new(());
        let held = std::rc::Rc::downgrade(&place);
        spawn_local(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let options = ServeOptions { handshake: Some(Box::new(place)), ..ServeOptions::default() };
            let handler = echo();
            drop(serve(tcp, cert, options, |c, r| handler(c, r), std::future::pending()).await);
        });
        let tcp = TcpStream::connect(address).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(held.upgrade().is_some(), "nothing has been said yet");
        let config = mesh.client.client_config(&[identity("api")]);
        let name = rustls::pki_types::ServerName::IpAddress(address.ip().into());
        let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap();
        let (_client, connection) = h2::client::handshake(tls).await.unwrap();
        spawn_local(async { drop(connection.await) });
        until(|| held.upgrade().is_none()).await;
    });
}
