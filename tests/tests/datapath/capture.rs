//! What both applications see: addresses, the first byte, and that nothing else than TCP is touched.
use std::io::Read;
use std::net::{Shutdown, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::apps::Nginx;
use mesh_tests::client;
use mesh_tests::sniff::Sniffer;
use mesh_tests::{App, PodSpec, eventually};

use crate::mesh::{Mesh, PORT, Route, SOON};

/// On every route and in both families the client talks to whom it dialled, and the server sees the client's real
/// address and its own; the agents show the route.
#[test]
fn both_ends_see_true_addresses() -> Result<()> {
    let mesh = Mesh::new("true addresses")?;
    for route in Route::ALL {
        let echo = mesh.serve(route, PORT, App::echo)?;
        for family in [0, 1] {
            let to = mesh.target(route, PORT)[family];
            let mut stream = mesh.connect(route, PORT, family)?;
            client::echo(&mut stream, b"hello").with_context(|| format!("{route:?} {to}"))?;
            assert_eq!(stream.peer_addr()?, to, "{route:?}");
            let seen = echo.stats().last().context("the server saw nobody")?;
            assert_eq!(seen.peer.ip(), mesh.source(route).ips()[family], "{route:?}");
            assert_eq!(seen.local, mesh.server(route).both(PORT)[family], "{route:?}");
            if route == Route::Bypass {
                assert_eq!(seen.peer, stream.local_addr()?);
            }
            assert_eq!(mesh.shown(route, PORT, family)?, route.shown(), "{route:?}");
            drop(stream);
            mesh.wait_quiet()?;
        }
    }
    Ok(())
}

/// A client may have hundreds of connections through the agent and hundreds past it to one server: none is taken for
/// another, though the server sees all of them come from the same address.
#[test]
fn relayed_and_bypassed_connections_do_not_collide() -> Result<()> {
    const EACH: usize = 400;
    let mesh = Mesh::new("relayed beside bypassed")?;
    let echo = mesh.serve(Route::Bypass, PORT, App::echo)?;
    for family in [0, 1] {
        let mut held = Vec::new();
        for at in 0..EACH {
            for route in [Route::Local, Route::Bypass] {
                let mut stream = mesh.connect(route, PORT, family).with_context(|| format!("number {at}"))?;
                client::echo(&mut stream, b"mine").with_context(|| format!("{route:?} {at}"))?;
                held.push(stream);
            }
        }
        for stream in &mut held {
            client::echo(stream, b"still mine")?;
        }
        assert_eq!(echo.stats().open(), 2 * EACH as u64);
        drop(held);
        eventually("the server to see the end", SOON, || Ok(echo.stats().open() == 0))?;
    }
    assert_eq!(echo.stats().resets(), 0);
    Ok(())
}

/// A server that speaks first is heard at once on every route: nobody waits for the client's first byte.
#[test]
fn the_server_may_speak_first() -> Result<()> {
    let mesh = Mesh::new("server first")?;
    for route in Route::ALL {
        let greeter = mesh.serve(route, PORT, |pod, port| App::greeter(pod, port, "220 ready\r\n"))?;
        for family in [0, 1] {
            let mut stream = mesh.connect(route, PORT, family)?;
            let mut greeting = [0; 11];
            stream.read_exact(&mut greeting).with_context(|| format!("{route:?}"))?;
            assert_eq!(&greeting, b"220 ready\r\n", "{route:?}");
            client::echo(&mut stream, b"EHLO")?;
            stream.shutdown(Shutdown::Write)?;
            assert_eq!(client::read_all(&mut stream)?, b"", "{route:?}");
        }
        drop(greeter);
    }
    Ok(())
}

/// What crosses the link between two meshed pods is not readable, and what goes out of the mesh is.
#[test]
fn the_link_carries_no_plaintext_between_meshed_pods() -> Result<()> {
    let mesh = Mesh::new("sniffed")?;
    let _far = mesh.serve(Route::Hbone, PORT, App::echo)?;
    let _stranger = mesh.serve(Route::Outbound, PORT, App::echo)?;
    for family in [0, 1] {
        let sniffer = Sniffer::on_link(&mesh.lab)?;
        client::echo(&mut mesh.connect(Route::Hbone, PORT, family)?, b"marker-inside-the-mesh")?;
        client::echo(&mut mesh.connect(Route::Outbound, PORT, family)?, b"marker-out-of-the-mesh")?;
        let seen = sniffer.stop()?;
        assert!(seen.saw(b"marker-out-of-the-mesh"), "the sniffer does not work: {seen:?}");
        assert!(!seen.saw(b"marker-inside-the-mesh"), "{seen:?}");
        assert!(seen.tcp_to(15008), "{seen:?}");
    }
    Ok(())
}

/// An address that no manifest knows is reached as without a mesh, with the pod's own address.
#[test]
fn an_address_outside_is_passed_through() -> Result<()> {
    let mesh = Mesh::new("passthrough")?;
    let outside = mesh.lab.pod_unlisted(PodSpec::new("elsewhere", "database", "node-b"))?;
    let echo = App::echo(&outside, 5432)?;
    for (family, to) in outside.both(5432).into_iter().enumerate() {
        let mut stream = mesh.client.connect(to)?;
        client::echo(&mut stream, b"select")?;
        assert_eq!(stream.peer_addr()?, to);
        let seen = echo.stats().last().context("the server saw nobody")?;
        assert_eq!(seen.peer.ip(), mesh.client.ips()[family]);
        stream.shutdown(Shutdown::Write)?;
        assert_eq!(client::read_all(&mut stream)?, b"");
        let to = format!("dst.addr={to}");
        mesh.wait_logged("node-a", &["connection complete", &to, "path=\"passthrough\""])?;
    }
    Ok(())
}

/// nginx in a pod answers an HTTP client over every route and sees the client's address.
#[test]
fn nginx_is_served_through_the_mesh() -> Result<()> {
    let mesh = Mesh::new("nginx")?;
    for (route, pod) in [(Route::Hbone, "far"), (Route::Local, "near")] {
        let mut nginx = Nginx::start(&mesh.lab, mesh.server(route), PORT)?;
        for family in [0, 1] {
            let client = mesh.source(route);
            let reply = client.get(mesh.target(route, PORT)[family], "/")?;
            assert_eq!(reply.status, 200, "{route:?}");
            let text = reply.text();
            let peer = text.trim().strip_prefix(&format!("pod={pod} peer=")).context("another answer")?;
            let peer: std::net::IpAddr = peer.parse()?;
            assert_eq!(peer.to_canonical(), client.ips()[family], "{route:?}");
        }
        nginx.process().check_alive()?;
    }
    // The same server, by pod address and from outside the mesh.
    for route in [Route::Bypass, Route::Inbound] {
        let reply = mesh.source(route).get(mesh.target(route, 8081)[0], "/");
        assert!(reply.is_err(), "nobody listens on 8081");
    }
    Ok(())
}

/// UDP goes its way as without a mesh, on one node and between two, in both families.
#[test]
fn udp_is_left_alone() -> Result<()> {
    let mesh = Mesh::new("udp")?;
    for server in [&mesh.near, &mesh.far] {
        for (family, to) in server.both(5353).into_iter().enumerate() {
            let [listening, asking] = [(server, to), (&mesh.client, mesh.client.both(0)[family])]
                .map(|(pod, address)| pod.run(|| Ok(UdpSocket::bind(address)?)));
            let (listening, asking) = (listening?, asking?);
            for socket in [&listening, &asking] {
                socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            }
            asking.send_to(b"question", to)?;
            let mut buffer = [0; 64];
            let (length, peer) = listening.recv_from(&mut buffer)?;
            assert_eq!((&buffer[..length], peer), (&b"question"[..], asking.local_addr()?));
            listening.send_to(b"answer", peer)?;
            let (length, peer) = asking.recv_from(&mut buffer)?;
            assert_eq!((&buffer[..length], peer), (&b"answer"[..], to));
        }
    }
    Ok(())
}
