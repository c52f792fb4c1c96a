use super::super::testing::*;
use super::super::*;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use std::cell::RefCell;
use std::rc::Rc;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::identity::testing::identity;

#[test]
fn a_stream_carries_bytes_and_the_handler_sees_peer_target_and_headers() {
    worker(async {
        let mesh = Mesh::new().await;
        let seen: Rc<RefCell<Vec<ConnectRequest>>> = Rc::default();
        let note = Rc::clone(&seen);
        let inner = echo();
        let port = Port::new(
            &mesh.server,
            Rc::new(move |connect, responder| {
                note.borrow_mut().push(connect.clone());
                inner(connect, responder)
            }),
        )
        .await;
        let pool = Pool::new(TunnelSettings::default());
        let mut request = mesh.request(port.address, "[fd00::7]:443".parse().unwrap());
        request.headers = ConnectHeaders {
            forwarded: Some("for=\"10.0.0.1:5000\";host=api.test.svc.cluster.local".to_owned()),
            baggage: Some("k8s.namespace.name=test".to_owned()),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".to_owned()),
        };
        let address = port.address;
        let mut stream = pool.open(request.clone(), || TcpStream::connect(address)).await.unwrap();
        assert_eq!(ask(&mut stream, "hello").await, "hello");
        stream.finish().unwrap();
        assert_eq!(recv_all(&mut stream).await.unwrap(), b"");
        assert!(stream.done());
        let seen = seen.borrow();
        assert_eq!((&seen[0].peer, seen[0].target), (&identity("web"), request.target));
        assert_eq!(seen[0].headers, request.headers);
    });
}

#[test]
fn each_refusal_reaches_the_client_as_its_reason() {
    worker(async {
        let mesh = Mesh::new().await;
        for reason in crate::model::reason::ROWS.iter().map(|row| row.reason) {
            let port =
                Port::new(&mesh.server, handler(move |_, responder| async move { responder.refuse(reason) }))
                    .await;
            let pool = Pool::new(TunnelSettings::default());
            assert_eq!(mesh.open(&pool, port.address).await.unwrap_err().reason, reason);
            until(|| pool.stats().streams == 0).await;
        }
    });
}

/// A tunnel port of another mesh, which answers every CONNECT with a bare status.
async fn foreign_port(mesh: &Mesh, status: u16, header: Option<&'static str>) -> std::net::SocketAddr {
    let (listener, address) = listen().await;
    let config = mesh.server.server_config();
    spawn_local(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let tls = TlsAcceptor::from(config).accept(tcp).await.unwrap();
        let mut connection = h2::server::handshake(tls).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            // What interoperation needs of the request: an authority and nothing else.
            assert_eq!(request.method(), Method::CONNECT);
            assert!(request.uri().scheme().is_none() && request.uri().path_and_query().is_none());
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            if let Some(header) = header {
                response.headers_mut().insert(REASON_HEADER, header.parse().unwrap());
            }
            respond.send_response(response, true).unwrap();
        }
    });
    address
}

#[test]
fn a_peer_that_names_no_reason_is_understood_by_its_status() {
    worker(async {
        let mesh = Mesh::new().await;
        for (status, header, reason) in [
            (401, None, Reason::PolicyNotAllowed),
            (400, None, Reason::ConnectTarget),
            (404, None, Reason::UnknownWorkload),
            (503, None, Reason::ConnectFailed),
            (504, None, Reason::ConnectTimeout),
            (204, None, Reason::TunnelProtocol),
            (503, Some("connection_refused"), Reason::ConnectionRefused),
            // A name that does not fit the status, or is none of ours, says nothing.
            (401, Some("connection_refused"), Reason::PolicyNotAllowed),
            (503, Some("made_up"), Reason::ConnectFailed),
        ] {
            let port = foreign_port(&mesh, status, header).await;
            let pool = Pool::new(TunnelSettings::default());
            let failure = mesh.open(&pool, port).await.unwrap_err();
            assert_eq!(failure.reason, reason, "{status} {header:?}: {failure}");
        }
    });
}

#[test]
fn early_data_reaches_the_application_only_after_the_accept_and_never_after_a_refusal() {
    worker(async {
        let mesh = Mesh::new().await;
        let waiting: Rc<RefCell<Vec<Responder>>> = Rc::default();
        let park = Rc::clone(&waiting);
        let port = Port::new(
            &mesh.server,
            handler(move |_, responder| {
                park.borrow_mut().push(responder);
                std::future::ready(())
            }),
        )
        .await;
        // A client that does not wait for the 200, as CVE-2025-64763 needs.
        let tls = raw_tls(&mesh, port.address).await;
        let (mut client, connection) = h2::client::handshake(tls).await.unwrap();
        spawn_local(async { drop(connection.await) });
        let mut opened = Vec::new();
        for _ in 0..2 {
            client = client.ready().await.unwrap();
            let (answer, mut body) = client.send_request(connect("10.1.2.3:8080"), false).unwrap();
            body.send_data("early".into(), false).unwrap();
            opened.push((answer, body));
        }
        until(|| waiting.borrow().len() == 2).await;
        let accepted = waiting.borrow_mut().remove(0);
        let refused = waiting.borrow_mut().remove(0);
        let mut stream = accepted.accept().unwrap();
        assert_eq!(recv(&mut stream).await.unwrap().unwrap(), "early");
        refused.refuse(Reason::PolicyDenied);
        let (second, _body) = opened.pop().unwrap();
        let (first, _body) = opened.pop().unwrap();
        assert_eq!(first.await.unwrap().status(), 200);
        assert_eq!(second.await.unwrap().status(), 401);
    });
}

/// TLS as the client `web`, for peers that speak HTTP/2 by hand.
pub(super) async fn raw_tls(
    mesh: &Mesh,
    port: std::net::SocketAddr,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let tcp = TcpStream::connect(port).await.unwrap();
    let name = rustls::pki_types::ServerName::IpAddress(port.ip().into());
    let config = mesh.client.client_config(&[identity("api")]);
    TlsConnector::from(config).connect(name, tcp).await.unwrap()
}

pub(super) fn connect(authority: &str) -> Request<()> {
    let uri = http::Uri::builder().authority(authority).build().unwrap();
    Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap()
}

#[test]
fn what_is_no_connect_to_an_address_is_answered_400_and_the_tunnel_lives_on() {
    worker(async {
        let mesh = Mesh::new().await;
        let port = Port::new(&mesh.server, echo()).await;
        let tls = raw_tls(&mesh, port.address).await;
        let (mut client, connection) = h2::client::handshake(tls).await.unwrap();
        spawn_local(async { drop(connection.await) });
        let get = Request::get("http://10.1.2.3:8080/").body(()).unwrap();
        let bad = [
            get,
            connect("api.test.svc.cluster.local:80"),
            connect("10.1.2.3"),
            connect("10.1.2.3:0"),
            connect("10.1.2.3:99999"),
            connect("user@10.1.2.3:80"),
            connect("[fe80::1%252]:80"),
            connect("010.1.2.3:80"),
        ];
        for request in bad {
            let what = format!("{request:?}");
            client = client.ready().await.unwrap();
            let (answer, _body) = client.send_request(request, false).unwrap();
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), 400, "{what}");
            assert_eq!(answer.headers()[REASON_HEADER], "connect_malformed");
        }
        client = client.ready().await.unwrap();
        let (answer, mut body) = client.send_request(connect("10.1.2.3:8080"), false).unwrap();
        body.send_data(Bytes::from_static(b"fine"), true).unwrap();
        let mut echoed = answer.await.unwrap().into_body();
        assert_eq!(echoed.data().await.unwrap().unwrap(), "fine");
    });
}

#[test]
fn a_client_that_gives_up_before_the_answer_is_noticed_and_its_tunnel_stays() {
    worker(async {
        let mesh = Mesh::new().await;
        let ends: Rc<RefCell<Vec<StreamError>>> = Rc::default();
        let note = Rc::clone(&ends);
        let port = Port::new(
            &mesh.server,
            handler(move |_, mut responder| {
                let note = Rc::clone(&note);
                async move {
                    let end = responder.cancelled().await;
                    note.borrow_mut().push(end);
                }
            }),
        )
        .await;
        let pool = Pool::new(TunnelSettings::default());
        let waited = tokio::time::timeout(Duration::from_millis(50), mesh.open(&pool, port.address));
        assert!(waited.await.is_err());
        until(|| *ends.borrow() == [StreamError::Reset]).await;
        assert_eq!(pool.stats(), PoolStats { tunnels: 1, streams: 0 });
    });
}

#[test]
fn a_handler_that_drops_its_responder_is_a_reset() {
    worker(async {
        let mesh = Mesh::new().await;
        let port = Port::new(&mesh.server, handler(|_, responder| async move { drop(responder) })).await;
        let pool = Pool::new(TunnelSettings::default());
        assert_eq!(mesh.open(&pool, port.address).await.unwrap_err().reason, Reason::ServerReset);
    });
}

#[test]
fn a_peer_that_has_answered_in_full_and_stops_listening_ends_the_stream_well() {
    worker(async {
        let mesh = Mesh::new().await;
        let (listener, address) = listen().await;
        let config = mesh.server.server_config();
        spawn_local(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = TlsAcceptor::from(config).accept(tcp).await.unwrap();
            let mut connection = h2::server::handshake(tls).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(b"all of it"), true).unwrap();
                // Dropped unread: RST_STREAM with NO_ERROR, as HTTP servers do.
                drop(request);
            }
        });
        let pool = Pool::new(TunnelSettings::default());
        let mut stream = mesh.open(&pool, address).await.unwrap();
        assert_eq!(recv_all(&mut stream).await.unwrap(), b"all of it");
        let stopped = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
        assert_eq!(stopped, StreamError::Stopped);
    });
}
