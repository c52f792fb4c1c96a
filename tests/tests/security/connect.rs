//! What a CONNECT may say, what it is answered, and that no byte passes before the answer.
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use http::{Method, Request};
use mesh_tests::client::Dial;
use mesh_tests::{App, Pod, eventually};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::hbone::{self, Authority, Credentials, Tunnel, Validity, on_a_runtime};
use crate::mesh::{Mesh, OTHER_PORT, PORT, SOON};

/// Somebody with a good certificate.
fn insider(mesh: &Mesh) -> Result<Credentials> {
    Authority::of(&mesh.lab.ca_dir())?.leaf(&["spiffe://cluster.local/ns/shop/sa/client"], Validity::Now)
}

/// Every CONNECT that asks for what is not the pod's own application is answered as documented, on one tunnel that
/// goes on to work, and none of its early bytes arrive anywhere.
#[test]
fn a_connect_for_anything_else_is_refused() -> Result<()> {
    let mesh = Mesh::new("CONNECT refusals")?;
    let neighbour = mesh.lab.pod(mesh_tests::PodSpec::new("shop", "neighbour", "node-b"))?;
    let (far, other) = (App::echo(&mesh.far, PORT)?, App::echo(&neighbour, PORT)?);
    let show = insider(&mesh)?;
    for (family, ip) in mesh.far.ips().into_iter().enumerate() {
        let at = |port: u16| SocketAddr::new(ip, port).to_string();
        let neighbour = neighbour.both(PORT)[family].to_string();
        let near = mesh.near.both(PORT)[family].to_string();
        let another_family = mesh.far.both(PORT)[1 - family].to_string();
        let refused = [
            (neighbour.as_str(), 400, "connect_target"),
            (near.as_str(), 400, "connect_target"),
            (another_family.as_str(), 400, "connect_target"),
            ("127.0.0.1:8080", 400, "connect_target"),
            ("[::1]:8080", 400, "connect_target"),
            (&at(15001), 400, "connect_mesh_port"),
            (&at(15006), 400, "connect_mesh_port"),
            (&at(15008), 400, "connect_mesh_port"),
            ("far.shop.svc.cluster.local:8080", 400, "connect_malformed"),
            (&format!("someone@{}", at(PORT)), 400, "connect_malformed"),
            (&at(PORT).replace(":8080", ""), 400, "connect_malformed"),
            (&at(0), 400, "connect_malformed"),
            (&at(OTHER_PORT), 503, "connection_refused"),
        ];
        on_a_runtime(async {
            let mut tunnel = Tunnel::open(&mesh.stranger, ip, &show).await?;
            for (authority, status, reason) in refused {
                let answer =
                    tunnel.ask(authority, b"early bytes").await.with_context(|| authority.to_owned())?;
                assert_eq!((answer.status, answer.reason.as_deref()), (status, Some(reason)), "{authority}");
            }
            for method in [Method::GET, Method::POST, Method::OPTIONS] {
                let uri = format!("http://{}/", at(PORT));
                let request = Request::builder().method(method.clone()).uri(uri).body(())?;
                let asked = tunnel.request(request, b"early bytes").await?;
                let answer = hbone::answer(asked.answer).await?;
                assert_eq!(
                    (answer.status, answer.reason.as_deref()),
                    (400, Some("connect_malformed")),
                    "{method}"
                );
            }
            let mut answer = tunnel.ask(&at(PORT), b"good").await?;
            assert_eq!(answer.status, 200);
            assert_eq!(hbone::read(&mut answer.recv, 4).await?, b"good");
            Ok(())
        })?;
    }
    assert_eq!((far.stats().accepted(), far.stats().received(), other.stats().accepted()), (2, 8, 0));
    Ok(())
}

/// A CONNECT without an authority, written by hand since no library would, is answered with 400.
#[test]
fn a_connect_without_an_authority_is_refused() -> Result<()> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    // RFC 7541: a literal without indexing, its name that of the static table's entry 2, `:method`.
    const BLOCK: &[u8] = b"\x02\x07CONNECT";
    const HEADERS_FRAME: u8 = 1;
    let mesh = Mesh::new("CONNECT without authority")?;
    let show = insider(&mesh)?;
    on_a_runtime(async {
        let mut tls = hbone::tls(&mesh.stranger, mesh.far.ips()[0], &show).await?;
        let head = [0, 0, u8::try_from(BLOCK.len())?, HEADERS_FRAME, 5, 0, 0, 0, 1];
        tls.write_all(&[PREFACE, SETTINGS, &head, BLOCK].concat()).await?;
        let wait = async {
            loop {
                let mut head = [0; 9];
                tls.read_exact(&mut head).await?;
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut payload = vec![0; usize::try_from(length)?];
                tls.read_exact(&mut payload).await?;
                if head[3] == HEADERS_FRAME {
                    return anyhow::Ok(payload);
                }
            }
        };
        let payload = tokio::time::timeout(SOON, wait).await.context("no answer")??;
        // The static table's entry 12: `:status: 400`.
        assert_eq!(payload.first(), Some(&0x8c), "{payload:02x?}");
        Ok(())
    })
}

/// What policy denies is answered with 401, whoever the application would have been, and gets no byte of it.
#[test]
fn a_denied_connect_is_answered_401_and_nothing_arrives() -> Result<()> {
    let mesh = Mesh::with("CONNECT denied", true, |lab| {
        let only_player = json!({"action": "ALLOW", "rules": [
            {"from": [{"source": {"principals": ["cluster.local/ns/games/sa/player"]}}],
             "to": [{"operation": {"ports": ["8080"]}}]},
        ]});
        lab.manifests().authorization("shop", "only-player", &only_player)?;
        let no_player = json!({"action": "DENY", "rules": [
            {"from": [{"source": {"namespaces": ["evil"]}}]},
        ]});
        lab.manifests().authorization("shop", "no-evil", &no_player)?;
        Ok([Default::default(), Default::default()])
    })?;
    let (far, other) = (App::swallow(&mesh.far, PORT)?, App::swallow(&mesh.far, OTHER_PORT)?);
    let authority = Authority::of(&mesh.lab.ca_dir())?;
    for (identity, port, status, reason) in [
        ("shop/sa/client", PORT, 401, Some("policy_not_allowed")),
        ("evil/sa/client", PORT, 401, Some("policy_denied")),
        ("games/sa/player", OTHER_PORT, 401, Some("policy_not_allowed")),
        ("games/sa/player", PORT, 200, None),
    ] {
        let show = authority.leaf(&[&format!("spiffe://cluster.local/ns/{identity}")], Validity::Now)?;
        let answer = on_a_runtime(async {
            let mut tunnel = Tunnel::open(&mesh.stranger, mesh.far.ips()[1], &show).await?;
            tunnel.ask(&mesh.far.v6(port).to_string(), b"12345").await
        })?;
        assert_eq!((answer.status, answer.reason.as_deref()), (status, reason), "{identity}");
    }
    eventually("the allowed one's bytes", SOON, || Ok(far.stats().received() == 5))?;
    assert_eq!((far.stats().accepted(), other.stats().accepted()), (1, 0));
    Ok(())
}

/// A listener whose queue is full: connections to it are neither accepted nor refused until somebody accepts.
fn full_listener(pod: &Pod, port: u16) -> Result<(TcpListener, Vec<TcpStream>)> {
    let listener: TcpListener = pod.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
        socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into())?;
        // Bounds accept(2) too.
        socket.set_read_timeout(Some(SOON))?;
        socket.listen(0)?;
        Ok(socket.into())
    })?;
    let short = Dial { deadline: Duration::from_millis(300), ..Dial::default() };
    let mut queued = Vec::new();
    while queued.len() < 8 {
        match pod.dial(pod.v6(port), &short) {
            Ok(stream) => queued.push(stream),
            Err(_) => return Ok((listener, queued)),
        }
    }
    anyhow::bail!("the queue does not fill")
}

/// Bytes that come before the 200 are held: nothing is answered, and nothing arrives, until the application has
/// accepted; then the 200 comes and every early byte arrives once.
#[test]
fn early_bytes_wait_for_the_answer() -> Result<()> {
    const EARLY: &[u8] = b"early bytes";
    let mesh = Mesh::new("early bytes")?;
    let (listener, mut queued) = full_listener(&mesh.far, PORT)?;
    let show = insider(&mesh)?;
    on_a_runtime(async {
        let mut tunnel = Tunnel::open(&mesh.stranger, mesh.far.ips()[0], &show).await?;
        let mut asked = tunnel.connect(&mesh.far.v4(PORT).to_string(), EARLY).await?;
        let early = tokio::time::timeout(Duration::from_millis(500), &mut asked.answer).await;
        assert!(early.is_err(), "answered before the application accepted");
        // Room in the queue, and the agent's connection comes through with its next SYN.
        let accepted = tokio::task::spawn_blocking(move || -> Result<TcpStream> {
            let fillers = queued.len();
            for filler in &mut queued {
                filler.write_all(b"filler")?;
            }
            for _ in 0..fillers {
                drop(listener.accept()?);
            }
            Ok(listener.accept()?.0)
        });
        let accepted = tokio::time::timeout(SOON, accepted).await.context("nobody comes")???;
        let answer = hbone::answer(asked.answer).await?;
        assert_eq!(answer.status, 200);
        asked.stream.send_data("!".into(), true)?;
        let read = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            let mut accepted = accepted;
            accepted.set_read_timeout(Some(SOON))?;
            accepted.read_to_end(&mut all).map(|_| all)
        });
        assert_eq!(read.await??, b"early bytes!");
        Ok(())
    })
}
