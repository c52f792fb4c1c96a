//! Ten thousand short connections, and nothing is left of them.
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, Map, MapData};
use mesh_common::{Flow, FlowKey, FlowPlace};
use mesh_tests::{Agent, App, client, eventually, leaks};
use socket2::Socket;

use crate::mesh::{Mesh, PORT, Route, SOON};

const CONNECTIONS: usize = 10_000;
/// Tunnels come and go with workers: each is one descriptor on either side, and there are few.
const DESCRIPTORS_SLACK: usize = 8;

/// One short connection; every fourth ends with a reset, every fourth without a byte.
fn short(mesh: &Mesh, route: Route, at: usize) -> Result<()> {
    let mut stream = mesh.connect(route, PORT, at % 2)?;
    if at % 4 != 1 {
        client::echo(&mut stream, b"short").with_context(|| format!("{route:?} {at}"))?;
    }
    if at % 4 == 2 {
        let socket = Socket::from(stream);
        socket.set_linger(Some(Duration::ZERO))?;
        return Ok(());
    }
    stream.shutdown(Shutdown::Write)?;
    anyhow::ensure!(client::read_all(&mut stream)?.is_empty(), "{route:?} {at}: bytes after the end");
    Ok(())
}

/// Where the kernel programs keep connections that live.
const TABLES: [&str; 3] = ["flows", "spilled", "legs"];

/// How many connections one of the kernel programs' tables holds.
fn entries(agent: &Agent, table: &str) -> Result<usize> {
    let path = agent.bpf_dir().join(format!("{table}_v{}", mesh_common::ABI_VERSION));
    let pinned = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
    if table == "flows" {
        let places: Array<_, FlowPlace> = Array::try_from(Map::Array(pinned))?;
        let mut all = places.iter().collect::<Result<Vec<_>, _>>()?;
        all.retain(|place| place.socket_cookie != FlowPlace::FREE);
        return Ok(all.len());
    }
    let map: HashMap<_, FlowKey, Flow> = HashMap::try_from(Map::HashMap(pinned))?;
    Ok(map.keys().collect::<Result<Vec<_>, _>>()?.len())
}

/// Ten thousand short connections over all routes leave no descriptor, no connection, no namespace and no entry in
/// the kernel's tables.
#[test]
fn short_connections_leave_nothing() -> Result<()> {
    let mesh = Mesh::new("ten thousand short connections")?;
    let mut apps = Vec::new();
    for route in [Route::Bypass, Route::Hbone, Route::Outbound] {
        apps.push(mesh.serve(route, PORT, App::echo)?);
    }
    for at in 0..64 {
        for route in Route::ALL {
            short(&mesh, route, at)?;
        }
    }
    mesh.wait_quiet()?;
    let descriptors: Result<Vec<usize>> = mesh.agents.iter().map(Agent::descriptors).collect();
    let (before, namespaces) = (descriptors?, mesh.lab.namespaces());
    let ended: Result<Vec<()>> = thread::scope(|scope| {
        let all: Vec<_> = Route::ALL
            .into_iter()
            .map(|route| {
                let mesh = &mesh;
                let each = CONNECTIONS / Route::ALL.len();
                scope.spawn(move || (0..each).try_for_each(|at| short(mesh, route, at)))
            })
            .collect();
        all.into_iter().map(|one| one.join().map_err(|_panic| anyhow::anyhow!("panicked"))?).collect()
    });
    if ended.is_err() {
        for agent in &mesh.agents {
            let text = agent.metrics()?;
            let events = text.lines().filter(|line| line.contains("kernel_events"));
            println!("{}: {}", agent.node(), events.collect::<Vec<_>>().join(" "));
        }
    }
    ended?;
    mesh.wait_quiet()?;
    // That the tables can be read at all: a live connection is in them.
    let held = [mesh.connect(Route::Bypass, PORT, 0)?, mesh.connect(Route::Local, PORT, 0)?];
    for (mut stream, table) in held.into_iter().zip(["flows", "legs"]) {
        client::echo(&mut stream, b"held")?;
        assert_eq!(entries(mesh.agent("node-a")?, table)?, 1, "{table}");
    }
    mesh.wait_quiet()?;
    for (agent, before) in mesh.agents.iter().zip(before) {
        eventually(&format!("the descriptors of {} to be closed", agent.node()), SOON, || {
            let now = agent.descriptors()?;
            let kinds = leaks::descriptor_kinds(agent.pid())?;
            anyhow::ensure!(now <= before + DESCRIPTORS_SLACK, "{before} before, {now} now: {kinds:?}");
            Ok(true)
        })?;
        let open = agent.metric("nodemesh_connections_open", &[])?;
        assert!(open == 0.0, "{}: {open} connections by the metrics", agent.node());
        for table in TABLES {
            let left = entries(agent, table)?;
            assert_eq!(left, 0, "{}: {table} left in the kernel", agent.node());
        }
        for event in ["flows_full", "listen_full", "events_lost"] {
            let lost = agent.metric("nodemesh_kernel_events_total", &[("event", event)])?;
            assert!(lost == 0.0, "{}: {lost} {event}", agent.node());
        }
    }
    assert_eq!(mesh.lab.namespaces(), namespaces);
    eventually("the applications to see the end", SOON, || {
        Ok(apps.iter().all(|app| app.stats().open() == 0))
    })?;
    Ok(())
}
