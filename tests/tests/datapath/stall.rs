//! Readers that do not read: they cost a bounded amount of memory, and only their own connection stops.
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_tests::{Agent, AgentSpec, App, client};

use crate::bulk;
use crate::mesh::{Mesh, PORTS, Route};

const SINK: u16 = PORTS[0];
const SENDER: u16 = PORTS[1];
const ECHO: u16 = PORTS[2];

/// What a sender tries to push into a reader that does not read: much more than all bounds together.
const PUSHED: usize = 256 << 20;
/// What both agents together may grow by while ten connections are stalled on them: less than a tenth of what
/// is pushed into one.
const GROWTH_MAX: u64 = 64 << 20;
/// A sender that could not place a byte for so long is stalled.
const STALLED: Duration = Duration::from_secs(2);
/// Streams that one stalled client holds on one tunnel.
const STREAMS: usize = 16;

/// Writes until nothing has moved for a while; returns how much went in.
fn push(stream: &TcpStream, bytes: usize) -> Result<usize> {
    stream.set_nonblocking(true)?;
    let (mut writer, block) = (stream, vec![7; 64 << 10]);
    let (mut pushed, mut last) = (0, Instant::now());
    while pushed < bytes {
        match writer.write(&block) {
            Ok(length) => (pushed, last) = (pushed + length, Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if last.elapsed() > STALLED {
                    return Ok(pushed);
                }
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error).context("pushing"),
        }
    }
    bail!("all {bytes} bytes went in: somebody reads, or buffers without a bound")
}

fn resident(agents: &[Agent]) -> Result<u64> {
    agents.iter().map(Agent::resident).sum()
}

/// Servers that do not read, and clients that do not, bound the memory of both agents on every relayed route.
#[test]
fn a_stalled_reader_bounds_memory() -> Result<()> {
    let mesh = Mesh::new("stalled reader")?;
    let mut apps = Vec::new();
    for route in [Route::Local, Route::Hbone, Route::Outbound] {
        apps.push(mesh.serve(route, SINK, App::sink)?);
        apps.push(mesh.serve(route, SENDER, |pod, port| App::sender(pod, port, PUSHED))?);
        apps.push(mesh.serve(route, ECHO, App::echo)?);
    }
    // What an agent takes once and keeps: certificates, tunnels, the allocator's arenas.
    for route in Route::RELAYED {
        bulk::exchange(&mesh.connect(route, ECHO, 0)?, 8 << 20)?;
    }
    let before = resident(&mesh.agents)?;
    let mut held = Vec::new();
    for route in Route::RELAYED {
        for family in [0, 1] {
            held.push(mesh.connect(route, SENDER, family)?);
        }
    }
    let pushed: Result<Vec<(TcpStream, usize)>> = thread::scope(|scope| {
        let pushing: Vec<_> = Route::RELAYED
            .into_iter()
            .map(|route| {
                let mesh = &mesh;
                scope.spawn(move || {
                    let stream = mesh.connect(route, SINK, 0)?;
                    let pushed = push(&stream, PUSHED).with_context(|| format!("{route:?}"))?;
                    Ok((stream, pushed))
                })
            })
            .collect();
        let joined =
            pushing.into_iter().map(|one| one.join().map_err(|_panic| anyhow::anyhow!("panicked"))?);
        joined.collect()
    });
    let pushed = pushed?;
    let grown = resident(&mesh.agents)?.saturating_sub(before);
    let sizes: Vec<usize> = pushed.iter().map(|(_, size)| *size).collect();
    println!("pushed {sizes:?}, both agents grew by {grown}");
    assert!(grown <= GROWTH_MAX, "grew by {grown} bytes, pushed {sizes:?}");
    // And nothing was lost meanwhile: a client that reads at last gets on.
    for stream in &mut held {
        let mut some = vec![0; 1 << 20];
        stream.read_exact(&mut some).context("reading at last")?;
    }
    Ok(())
}

/// Established connections from the calling thread's namespace to port 15008 over IPv4.
fn tunnels() -> Result<usize> {
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp")?;
    let fields =
        table.lines().skip(1).map(|line| line.split_whitespace().skip(2).take(2).collect::<Vec<_>>());
    Ok(fields.filter(|fields| fields[0].ends_with(":3AA0") && fields[1] == "01").count())
}

/// Sixteen stalled streams in each direction on one tunnel do not stop the next one in either.
#[test]
fn stalled_streams_do_not_stop_the_next() -> Result<()> {
    let one_worker = AgentSpec { workers: Some(1), ..AgentSpec::default() };
    let mesh = Mesh::with("stalled streams", &one_worker)?;
    let _apps =
        [App::sink(&mesh.far, SINK)?, App::sender(&mesh.far, SENDER, PUSHED)?, App::echo(&mesh.far, ECHO)?];
    let connect = |port| mesh.connect(Route::Hbone, port, 0);
    // The first connection makes the tunnel that all the others share.
    client::echo(&mut connect(ECHO)?, b"first")?;
    let unread: Result<Vec<TcpStream>> = (0..STREAMS).map(|_| connect(SENDER)).collect();
    let unread = unread?;
    let written: Result<Vec<TcpStream>> = (0..STREAMS).map(|_| connect(SINK)).collect();
    let written = written?;
    let pushed: Result<Vec<usize>> = thread::scope(|scope| {
        let pushing: Vec<_> =
            written.iter().map(|stream| scope.spawn(move || push(stream, PUSHED))).collect();
        pushing.into_iter().map(|one| one.join().map_err(|_panic| anyhow::anyhow!("panicked"))?).collect()
    });
    println!("pushed {:?}", pushed?);
    assert_eq!(mesh.client.run(tunnels)?, 1, "not one tunnel");
    let next = connect(ECHO)?;
    bulk::exchange(&next, 16 << 20).context("the next stream")?;
    assert_eq!(mesh.client.run(tunnels)?, 1, "the next stream took another tunnel");
    drop(unread);
    Ok(())
}
