//! How connections end: half-closed, reset, refused. Each has to look to the application as it would without a mesh.
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_tests::apps::pattern;
use mesh_tests::{App, client, eventually};
use socket2::Socket;

use crate::mesh::{Mesh, PORT, PORTS, Route, SOON};

/// A connect to an upstream, the shortest timeout on a refusal's way, is given 10 s.
const PROMPT: Duration = Duration::from_secs(5);
/// Nobody listens there.
const CLOSED: u16 = PORTS[3];

/// A client that has finished sending still gets the whole answer, on every route.
#[test]
fn a_client_may_close_its_side_first() -> Result<()> {
    let mesh = Mesh::new("client half-close")?;
    for route in Route::ALL {
        let echo = mesh.serve(route, PORT, App::echo)?;
        for family in [0, 1] {
            let mut stream = mesh.connect(route, PORT, family)?;
            let said: Vec<u8> = (0..100_000).map(pattern).collect();
            stream.write_all(&said)?;
            stream.shutdown(Shutdown::Write)?;
            let heard = client::read_all(&mut stream).with_context(|| format!("{route:?}"))?;
            assert!(heard == said, "{route:?}: {} bytes came back", heard.len());
        }
        eventually("the server to close", SOON, || Ok(echo.stats().open() == 0))?;
        assert_eq!(echo.stats().resets(), 0, "{route:?}");
    }
    Ok(())
}

/// A server that has finished sending still hears the client, on every route.
#[test]
fn a_server_may_close_its_side_first() -> Result<()> {
    let mesh = Mesh::new("server half-close")?;
    for route in Route::ALL {
        let sender = mesh.serve(route, PORT, |pod, port| App::sender(pod, port, 100_000))?;
        // The probes that found the route may have been reset.
        let resets = sender.stats().resets();
        for family in [0, 1] {
            let before = sender.stats().received();
            let mut stream = mesh.connect(route, PORT, family)?;
            let heard = client::read_all(&mut stream).with_context(|| format!("{route:?}"))?;
            assert!(heard.iter().enumerate().all(|(at, byte)| *byte == pattern(at)), "{route:?}");
            assert_eq!(heard.len(), 100_000, "{route:?}");
            for _ in 0..3 {
                stream.write_all(b"after the end")?;
                std::thread::sleep(Duration::from_millis(20));
            }
            stream.shutdown(Shutdown::Write)?;
            eventually(&format!("{route:?}: the rest to arrive"), SOON, || {
                Ok(sender.stats().received() - before == 3 * 13)
            })?;
        }
        eventually("the server to close", SOON, || Ok(sender.stats().open() == 0))?;
        assert_eq!(sender.stats().resets(), resets, "{route:?}");
    }
    Ok(())
}

/// A client's reset reaches the server as a reset, on every route.
#[test]
fn a_client_reset_reaches_the_server() -> Result<()> {
    let mesh = Mesh::new("client reset")?;
    for route in Route::ALL {
        let echo = mesh.serve(route, PORT, App::echo)?;
        for family in [0, 1] {
            let before = echo.stats().resets();
            let mut stream = mesh.connect(route, PORT, family)?;
            client::echo(&mut stream, b"x")?;
            let socket = Socket::from(stream);
            socket.set_linger(Some(Duration::ZERO))?;
            drop(socket);
            eventually(&format!("{route:?}: the reset"), SOON, || {
                Ok(echo.stats().resets() == before + 1 && echo.stats().open() == 0)
            })?;
        }
    }
    Ok(())
}

/// A server's reset reaches the client as a reset, on every route.
#[test]
fn a_server_reset_reaches_the_client() -> Result<()> {
    let mesh = Mesh::new("server reset")?;
    for route in Route::ALL {
        let _resetter = mesh.serve(route, PORT, App::resetter)?;
        for family in [0, 1] {
            let mut stream = mesh.connect(route, PORT, family)?;
            stream.write_all(b"x")?;
            let error = stream.read(&mut [0]).err().with_context(|| format!("{route:?}: no error"))?;
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{route:?}");
        }
    }
    Ok(())
}

/// A server that resets after it has half-closed, or a client that does, is still seen to reset.
#[test]
fn a_reset_after_half_close_is_a_reset() -> Result<()> {
    let mesh = Mesh::new("reset after half-close")?;
    for route in Route::ALL {
        let sender = mesh.serve(route, PORT, |pod, port| App::sender(pod, port, 10))?;
        eventually("the probes to end", SOON, || Ok(sender.stats().open() == 0))?;
        let before = sender.stats().resets();
        let mut stream = mesh.connect(route, PORT, 0)?;
        assert_eq!(client::read_all(&mut stream)?.len(), 10, "{route:?}");
        let socket = Socket::from(stream);
        socket.set_linger(Some(Duration::ZERO))?;
        drop(socket);
        eventually(&format!("{route:?}: the reset"), SOON, || Ok(sender.stats().resets() == before + 1))?;
    }
    Ok(())
}

/// A closed port of a pod of the same node refuses at connect; of another node, or outside, it resets at once, and
/// the agents say why.
#[test]
fn a_refusal_reaches_the_client_as_such() -> Result<()> {
    let mesh = Mesh::new("refused")?;
    for family in [0, 1] {
        for route in [Route::Bypass, Route::Inbound] {
            let error = mesh.connect(route, CLOSED, family).err().context("somebody listens")?;
            assert_eq!(client::io_kind(&error), Some(ErrorKind::ConnectionRefused), "{route:?}: {error:#}");
        }
        for route in [Route::Local, Route::Hbone, Route::Outbound] {
            let start = Instant::now();
            reset_at_once(mesh.connect(route, CLOSED, family)).with_context(|| format!("{route:?}"))?;
            // Far below every timeout on the way: it is the refusal that came, not somebody's patience that ended.
            anyhow::ensure!(start.elapsed() < PROMPT, "{route:?}: after {:?}", start.elapsed());
            let at = format!("dst.addr={}", mesh.server(route).both(CLOSED)[family]);
            let line = ["connection failed", &at, "reason=\"connection_refused\""];
            mesh.wait_logged("node-a", &line)?;
            if route == Route::Hbone {
                mesh.wait_logged("node-b", &line)?;
            }
        }
    }
    mesh.wait_quiet()
}

/// A connection whose upstream failed: reset, either while the connect was still being reported or at the first read.
pub(crate) fn reset_at_once(connected: Result<TcpStream>) -> Result<()> {
    let error = match connected {
        Ok(mut stream) => match stream.read(&mut [0]) {
            Ok(length) => anyhow::bail!("{length} bytes instead of a reset"),
            Err(error) => error.into(),
        },
        Err(error) => error,
    };
    let kind = client::io_kind(&error);
    anyhow::ensure!(kind == Some(ErrorKind::ConnectionReset), "{error:#} instead of a reset");
    Ok(())
}
