//! Certificates of a few seconds are renewed under traffic that does not notice.
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::{AgentSpec, App};

use crate::mesh::{Fate, Mesh, PORT, fate_of, probe};

/// How many certificates of each identity the test sees come and go.
const ROTATIONS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(90);

/// While every certificate on both nodes is renewed several times, new connections are made all the time and two
/// live ones go on, none of them fails.
#[test]
fn certificates_rotate_under_traffic() -> Result<()> {
    let short = || AgentSpec {
        arguments: vec!["--cert-lifetime".to_owned(), "4s".to_owned()],
        ..AgentSpec::default()
    };
    let mesh = Mesh::with("certificate rotation", true, |_| Ok([short(), short()]))?;
    let _echo = App::echo(&mesh.far, PORT)?;
    let mut live: Vec<_> =
        mesh.far.both(PORT).map(|to| mesh.client.connect(to)).into_iter().collect::<Result<_>>()?;
    let ends = [mesh.client.spiffe("cluster.local"), mesh.far.spiffe("cluster.local")];
    let mut serials = [BTreeSet::new(), BTreeSet::new()];
    let start = Instant::now();
    let mut connections = 0;
    while serials.iter().any(|seen| seen.len() <= ROTATIONS) {
        ensure!(start.elapsed() < PATIENCE, "only {serials:?} after {connections} connections");
        for to in mesh.far.both(PORT) {
            let fate = probe(&mesh.client, to)?;
            ensure!(
                fate == Fate::Echoed,
                "connection {connections} to {to}: {fate:?} after {:?}",
                start.elapsed()
            );
            connections += 1;
        }
        for stream in &mut live {
            ensure!(fate_of(stream)? == Fate::Echoed, "a live connection ended after {:?}", start.elapsed());
        }
        if connections % 20 != 0 {
            continue;
        }
        for ((agent, identity), seen) in mesh.agents.iter().zip(&ends).zip(&mut serials) {
            let rows = agent.ask(&["certs"])?;
            let row =
                rows.as_array().context("no certificates")?.iter().find(|row| row["identity"] == *identity);
            let row = row.with_context(|| format!("{identity} has none: {rows}"))?;
            ensure!(row["state"] == "valid", "{row}");
            seen.insert(row["serial"].as_str().context("no serial")?.to_owned());
        }
    }
    println!("{connections} connections over {:?}, serials {serials:?}", start.elapsed());
    Ok(())
}
