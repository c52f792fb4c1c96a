//! AuthorizationPolicy that speaks of requests: at the destination, whatever way a request takes to it.
use std::io::Write as _;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use http::Request;
use mesh_tests::client::{Ask, Session, line};
use mesh_tests::{App, PodSpec, eventually, guide, http2};

use crate::shop::{NS, READ_EVERYTHING, SOON, Shop, TARGET};

/// The guide's policy: frontend may GET and POST /api/*, everything else is refused, on one node and across two, by
/// the Service's address and by the pod's own, in both versions of HTTP.
#[test]
fn frontend_may_what_the_policy_says() -> Result<()> {
    let pods = [("backend-near", "backend", "v1", "node-a"), ("backend-far", "backend", "v1", "node-b")];
    let shop = Shop::new("request policy", &pods)?;
    let service = shop.service("backend", Some("http"))?;
    let other = shop.lab.pod(PodSpec::new(NS, "other", "node-a"))?;
    shop.apply("policy", guide::AUTHORIZATIONPOLICY_ALLOW_FRONTEND_TO_BACKEND)?;
    let mut ways: Vec<SocketAddr> = vec![service.at(0), service.at(1)];
    ways.extend(shop.servers.iter().flat_map(|server| server.pod.both(TARGET)));
    let captured = || -> Result<bool> {
        let all = shop.agent("node-a")?.ask(&["workloads"])?;
        let found = all.as_array().and_then(|all| all.iter().find(|one| one["name"] == "other").cloned());
        Ok(found.is_some_and(|one| one["enrolment"] == "captured"))
    };
    eventually("the other client to be captured", SOON, captured)?;
    // What the kernel let through before the policy came may last a moment.
    eventually("the policy to hold", SOON, || {
        Ok(Session::new(shop.connect(ways[2])?, "backend")?.get("/else")?.status == 403)
    })?;
    for to in ways {
        let mut session = Session::new(shop.connect(to)?, "backend")?;
        for (ask, status) in [
            (Ask::get("/api/orders"), 200),
            (Ask::post("/api/orders", b"one"), 200),
            (Ask { method: "DELETE", ..Ask::get("/api/orders") }, 403),
            (Ask::get("/admin"), 403),
            (Ask::get("/api/../admin"), 403),
            (Ask::get("/%61pi/x"), 200),
        ] {
            let reply = session.ask(&ask)?;
            assert_eq!(reply.status, status, "{to} {} {}: {}", ask.method, ask.path, reply.text());
            if status == 403 {
                assert_eq!(reply.text(), "RBAC: access denied", "{to}");
            }
        }
        let mut stranger = Session::new(other.connect(to)?, "backend")?;
        assert_eq!(stranger.get("/api/orders")?.status, 403, "{to}");
        http2::with(shop.connect(to)?, async |conn| {
            let grpc = |path: &str| {
                Request::post(format!("http://backend{path}"))
                    .header("content-type", "application/grpc")
                    .body(())
            };
            let reply = conn.ask(grpc("/lab.Echo/Call")?, b"x").await?;
            assert_eq!((reply.status, reply.grpc_status()), (200, Some(7)), "{to}");
            let reply = conn.ask(Request::get("http://backend/api/x").body(())?, b"").await?;
            assert_eq!(reply.status, 200, "{to}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Bytes that are no HTTP do not pass a policy that asks about requests.
#[test]
fn other_bytes_are_refused() -> Result<()> {
    use std::io::Read as _;
    let pods = [("backend-near", "backend", "v1", "node-a"), ("backend-far", "backend", "v1", "node-b")];
    let shop = Shop::new("bytes under a request policy", &pods)?;
    shop.service("backend", None)?;
    shop.apply("policy", guide::AUTHORIZATIONPOLICY_ALLOW_FRONTEND_TO_BACKEND)?;
    for server in &shop.servers {
        eventually("the bytes to be refused", SOON, || {
            let mut stream = shop.connect(server.pod.v4(TARGET))?;
            stream.write_all(b"\x00\x01\x02 no request\r\n\r\n")?;
            let mut all = Vec::new();
            let read = stream.read_to_end(&mut all);
            Ok(all.is_empty() && (read.is_err() || read.is_ok_and(|read| read == 0)))
        })?;
        assert_eq!(server.app.stats().requests(), 0);
    }
    Ok(())
}

/// How long the server below waits for a connection's first bytes.
const PATIENCE: Duration = Duration::from_millis(500);
/// Clients at once: more than the destination has workers.
const CLIENTS: usize = 8;

/// A server that closes connections on which nothing comes costs no request. The application's connection is made with the
/// client's, before there is a request: the first one has it, however many others are idle, and gets another if it
/// came too late.
#[test]
fn an_application_that_closes_silent_connections_loses_no_request() -> Result<()> {
    let pods = [("far", "far", "v1", "node-b")];
    let impatient = |pod: &_| App::impatient_http(pod, TARGET, PATIENCE);
    let shop = Shop::serving(NS, "impatient application", &pods, impatient)?;
    // The client's agent relays bytes: each connection is a stream, and so has one of the application's.
    let service = shop.service("far", Some("tcp"))?;
    shop.apply("read", READ_EVERYTHING)?;
    let to = service.at(0);
    let mut sessions = Vec::new();
    for _ in 0..CLIENTS {
        let mut session = Session::new(shop.connect(to)?, "far")?;
        ensure!(session.get("/first")?.status == 200);
        sessions.push(session);
    }
    thread::sleep(2 * PATIENCE);
    thread::scope(|scope| {
        let all: Vec<_> = sessions
            .iter_mut()
            .map(|session| scope.spawn(|| session.get("/together?delay=300").map(|reply| reply.status)))
            .collect();
        for one in all {
            let status = one.join().map_err(|_panic| anyhow::anyhow!("a client died"))??;
            ensure!(status == 200, "a connection from before its request was answered {status}");
        }
        Ok(())
    })?;
    let mut slow = shop.connect(to)?;
    slow.write_all(b"GET /slow HTTP/1.1\r\n")?;
    thread::sleep(2 * PATIENCE);
    slow.write_all(b"host: far\r\n\r\n")?;
    ensure!(line(&mut slow)?.starts_with("HTTP/1.1 200"), "a head that took its time");
    Ok(())
}
