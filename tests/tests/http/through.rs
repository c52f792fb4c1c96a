//! What goes through untouched, and what may not: versions, bodies, trailers, upgrades, headers.
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt as _;
use mesh_tests::client::Ask;
use mesh_tests::{http2, wait};
use serde_json::Value;

use crate::shop::{PORT, Pair, SOON};

fn header<'a>(said: &'a Value, name: &str) -> Option<&'a str> {
    said["headers"][name][0].as_str()
}

/// HTTP/1.1 on one connection: bodies both ways, HEAD, chunks, an answer without a body, and who is seen.
#[test]
fn requests_go_through_and_connections_are_used_again() -> Result<()> {
    let pair = Pair::new("http through", Some("http"))?;
    for (service, name) in pair.services.iter().zip(["near-1", "far-1"]) {
        for family in [0, 1] {
            let stream = pair.shop.connect(service.at(family))?;
            let mut session = mesh_tests::client::Session::new(stream, service.name)?;
            for turn in 0..5 {
                let said = session.get(&format!("/hello?turn={turn}"))?.json()?;
                assert_eq!(said["pod"], name);
                assert_eq!(said["path"], format!("/hello?turn={turn}"));
                let client = pair.shop.client.ips()[family].to_string();
                assert!(said["peer"].as_str().is_some_and(|peer| peer.contains(&client)), "{said}");
                assert_eq!(header(&said, "host"), Some(service.name));
                assert!(header(&said, "x-request-id").is_some_and(|id| id.len() == 36), "{said}");
            }
            let said = session.ask(&Ask::post("/body", &[b'b'; 100_000]))?.json()?;
            assert_eq!(said["body_bytes"], 100_000);
            let reply = session.get("/?size=300000")?;
            assert_eq!(reply.body.len(), 300_000);
            let reply = session.ask(&Ask { method: "HEAD", ..Ask::get("/?size=1234") })?;
            assert_eq!((reply.status, reply.header("content-length")), (200, Some("1234")));
            assert_eq!(session.get("/?status=204&size=0")?.status, 204);
            session.send(
                b"POST /chunks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
            )?;
            session.send(b"3\r\nabc\r\n0\r\n\r\n")?;
            assert_eq!(session.answer(false)?.json()?["body_bytes"], 3);
        }
        // All of it over few connections of ours.
        let accepted = pair.shop.server(name)?.app.stats().accepted();
        assert!(accepted <= 4, "{name}: {accepted} connections for 36 requests");
    }
    Ok(())
}

/// Headers of a hop stay there, those of an identity come from the mesh, and the rest arrives as it was sent.
#[test]
fn headers_are_passed_or_kept_back() -> Result<()> {
    let pair = Pair::new("http headers", Some("http"))?;
    for service in &pair.services {
        let mut session = pair.shop.session(service)?;
        let headers = [
            ("Connection", "keep-alive, X-Mine"),
            ("X-Mine", "1"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "trailers"),
            ("Proxy-Connection", "keep-alive"),
            ("X-Forwarded-Client-Cert", "By=me;URI=spiffe://cluster.local/ns/kube-system/sa/admin"),
            ("X-Request-Id", "mine"),
            ("X-Twice", "a"),
            ("X-Twice", "b"),
        ];
        let reply = session.ask(&Ask::get("/").headers(&headers))?;
        assert_eq!(reply.header("x-of-this-hop"), None);
        let said = reply.json()?;
        for gone in ["x-mine", "keep-alive", "proxy-connection"] {
            assert_eq!(header(&said, gone), None, "{gone}: {said}");
        }
        assert_eq!(header(&said, "x-request-id"), Some("mine"));
        assert_eq!(said["headers"]["x-twice"], serde_json::json!(["a", "b"]));
        let cert = header(&said, "x-forwarded-client-cert");
        let mine = "By=spiffe://cluster.local/ns/production/sa/near;URI=spiffe://cluster.local/ns/production/sa/frontend";
        // Across nodes the far agent relays bytes: it has no policy that asks about requests, and nobody vouches.
        assert_eq!(cert, (service.name == "near").then_some(mine));
    }
    Ok(())
}

/// HTTP/2 with prior knowledge, many streams at once; gRPC both ways frame by frame, with its trailers.
#[test]
fn http2_and_grpc_stream_both_ways() -> Result<()> {
    let pair = Pair::new("http2", Some("grpc"))?;
    for service in &pair.services {
        http2::with(pair.shop.connect(service.at(0))?, async |conn| {
            let uri = format!("http://{}:{PORT}", service.name);
            let grpc = || {
                Request::post(format!("{uri}/lab.Echo/Stream"))
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .header("x-grpc-status", "5")
            };
            let (send, answer) = conn.begin(grpc().body(())?).await?;
            send.send(Bytes::from_static(b"one")).await?;
            let mut response = answer.await?;
            for word in ["one", "two", "three"] {
                if word != "one" {
                    send.send(Bytes::copy_from_slice(word.as_bytes())).await?;
                }
                // Each comes back before the next is sent: nothing is held back on the way.
                let frame = response.body_mut().frame().await.context("no frame")??;
                assert_eq!(frame.data_ref().map(|data| &data[..]), Some(word.as_bytes()));
            }
            drop(send);
            let frame = response.body_mut().frame().await.context("no trailers")??;
            assert_eq!(frame.trailers_ref().context("no trailers")?["grpc-status"], "5");
            let mut all = Vec::new();
            for turn in 0..50 {
                let request = Request::get(format!("{uri}/many?turn={turn}&delay=20")).body(())?;
                all.push(conn.begin(request).await?.1);
            }
            for (turn, answer) in all.into_iter().enumerate() {
                let reply = http2::whole(answer.await?).await?;
                let said: Value = serde_json::from_slice(&reply.body)?;
                assert_eq!(said["path"], format!("/many?turn={turn}&delay=20"));
                assert_eq!(said["protocol"], "HTTP/2.0");
            }
            Ok(())
        })?;
    }
    for name in ["near-1", "far-1"] {
        assert_eq!(pair.shop.server(name)?.app.stats().accepted(), 1, "{name}: streams share a connection");
    }
    Ok(())
}

/// An upgraded connection is relayed both ways, on a port that says HTTP and on one that says nothing.
#[test]
fn a_websocket_goes_through() -> Result<()> {
    for protocol in [Some("http"), None] {
        let pair = Pair::new("websocket", protocol)?;
        for service in &pair.services {
            let mut session = pair.shop.session(service)?;
            let headers = [
                ("Connection", "Upgrade"),
                ("Upgrade", "websocket"),
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("Sec-WebSocket-Version", "13"),
            ];
            let reply = session.ask(&Ask::get("/chat").headers(&headers))?;
            assert_eq!((reply.status, reply.header("upgrade")), (101, Some("websocket")));
            let mut stream = session.into_stream();
            for _ in 0..3 {
                mesh_tests::client::echo(&mut stream, &[7; 50_000])?;
            }
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest)?;
            assert!(rest.is_empty());
        }
    }
    Ok(())
}

/// On a port that says nothing, HTTP of both versions is found out, and a server that speaks first is heard.
#[test]
fn a_port_that_says_nothing_is_sniffed() -> Result<()> {
    let pair = Pair::new("sniffing", None)?;
    for service in &pair.services {
        let said = pair.shop.session(service)?.get("/")?.json()?;
        assert_eq!(said["protocol"], "HTTP/1.1");
        http2::with(pair.shop.connect(service.at(0))?, async |conn| {
            let reply = conn.ask(Request::get("http://x/").body(())?, b"").await?;
            let said: Value = serde_json::from_slice(&reply.body)?;
            assert_eq!(said["protocol"], "HTTP/2.0");
            Ok(())
        })?;
    }
    let agent = pair.shop.agent("node-a")?;
    wait::eventually("requests to be counted", SOON, || {
        let labels = [("response_code", "200"), ("reporter", "source"), ("source_workload", "client")];
        Ok(agent.metric("istio_requests_total", &labels)? >= 4.0)
    })?;
    Ok(())
}

/// What is no request, or more than one, is refused, and the connection with it.
#[test]
fn a_request_with_two_meanings_is_refused() -> Result<()> {
    let pair = Pair::new("smuggling", Some("http"))?;
    let service = &pair.services[0];
    let bad: [(&str, u16); 8] = [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        ("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", 400),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405),
    ];
    for (text, status) in bad {
        let mut session = pair.shop.session(service)?;
        session.send(text.as_bytes())?;
        let reply = session.answer(false).with_context(|| text.to_owned())?;
        assert_eq!(reply.status, status, "{text:?}");
        let mut rest = Vec::new();
        let mut stream = session.into_stream();
        stream.read_to_end(&mut rest)?;
        assert!(rest.is_empty(), "{text:?}: {:?}", String::from_utf8_lossy(&rest));
    }
    assert_eq!(pair.shop.server("near-1")?.app.stats().requests(), 0);
    Ok(())
}

/// Two framings in one message: the coding counts (RFC 9112, 6.1), the length goes no further, and what hides behind
/// the body is never taken for a request.
#[test]
fn a_length_beside_a_coding_smuggles_nothing() -> Result<()> {
    let pair = Pair::new("two framings", Some("http"))?;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = 5 + hidden.len();
    for order in [
        "Content-Length: {}\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: {}",
    ] {
        let framing = order.replace("{}", &length.to_string());
        let mut stream = pair.shop.connect(pair.services[0].at(0))?;
        write!(stream, "POST /outer HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n0\r\n\r\n{hidden}")?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        let text = String::from_utf8_lossy(&all);
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
        assert!(!text.contains("\"content-length\""), "{text}");
    }
    let asked = pair.shop.server("near-1")?.app.stats().asked();
    assert!(asked.iter().all(|asked| asked.path == "/outer"), "{asked:?}");
    Ok(())
}

/// A slow answer does not hold up others, and comes when it is there.
#[test]
fn a_slow_answer_is_waited_for() -> Result<()> {
    let pair = Pair::new("slow", Some("http"))?;
    let since = Instant::now();
    let reply = pair.shop.session(&pair.services[1])?.get("/?delay=1500")?;
    assert_eq!(reply.status, 200);
    assert!(since.elapsed() >= Duration::from_millis(1500));
    Ok(())
}
