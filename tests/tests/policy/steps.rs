//! Policies in steps: each step replaces the one before and is waited for on both nodes, and a fixed set of ways
//! through the mesh is tried under each.
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use mesh_tests::{App, Pod, eventually, manifests};
use serde_json::{Value, json};

use crate::mesh::{Fate, Mesh, OTHER_PORT, PORT, SOON, probe};

/// A mesh with its applications, and the policies of the present step.
pub(crate) struct Steps {
    pub(crate) apps: Vec<App>,
    pub(crate) mesh: Mesh,
    count: AtomicUsize,
}

/// A connection to try.
pub(crate) struct Way<'a> {
    /// `client>near` and the like, as expectations name it.
    pub(crate) name: &'static str,
    pub(crate) from: &'a Pod,
    pub(crate) to: SocketAddr,
    /// How it fares when it is denied.
    pub(crate) denied: Fate,
}

/// The ways' names, for expectations.
pub(crate) const CLIENT: [&str; 4] = ["client>near", "client>vip", "client>far", "client>far:8081"];
pub(crate) const PLAYER: [&str; 2] = ["player>near", "player>far"];
pub(crate) const STRANGER: [&str; 2] = ["stranger>near", "stranger>far"];

impl Steps {
    pub(crate) fn new(scenario: &str) -> Result<Self> {
        let mesh = Mesh::new(scenario)?;
        let mut apps = Vec::new();
        for server in [&mesh.near, &mesh.far] {
            for port in [PORT, OTHER_PORT] {
                apps.push(App::echo(server, port)?);
            }
        }
        Ok(Self { apps, mesh, count: AtomicUsize::new(0) })
    }

    /// Puts these policies in the place of the former step's and waits until both agents have them.
    pub(crate) fn apply(&self, policies: &[Value]) -> Result<()> {
        let name = format!("step-{}", self.count.fetch_add(1, Ordering::Relaxed));
        // A policy for nobody that shows when the file is in force, and makes no file shorter than its forerunner:
        // those are believed a little later.
        let marker = policy("AuthorizationPolicy", "nowhere", &name, json!({"action": "DENY"}));
        let mut objects = policies.to_vec();
        objects.push(marker);
        self.mesh.lab.manifests().put("policies", &objects)?;
        eventually(&format!("{name} to be in force"), SOON, || {
            for agent in &self.mesh.agents {
                let rows = agent.ask(&["policies"])?;
                let rows = rows.as_array().context("policies is not a list")?;
                if !rows.iter().any(|row| row["name"] == name.as_str()) {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        Ok(())
    }

    pub(crate) fn ways(&self) -> [Way<'_>; 8] {
        let mesh = &self.mesh;
        let way = |name, from, to, denied| Way { name, from, to, denied };
        [
            way("client>near", &mesh.client, mesh.near.v4(PORT), Fate::Refused),
            way("client>vip", &mesh.client, SocketAddr::new(mesh.vips[1], PORT), Fate::Cut),
            way("client>far", &mesh.client, mesh.far.v6(PORT), Fate::Cut),
            way("client>far:8081", &mesh.client, mesh.far.v4(OTHER_PORT), Fate::Cut),
            way("player>near", &mesh.player, mesh.near.v6(PORT), Fate::Refused),
            way("player>far", &mesh.player, mesh.far.v4(PORT), Fate::Cut),
            way("stranger>near", &mesh.stranger, mesh.near.v4(PORT), Fate::Cut),
            way("stranger>far", &mesh.stranger, mesh.far.v6(PORT), Fate::Cut),
        ]
    }

    /// Makes sure that exactly these ways are open, and that `explain` says of every way what really happens.
    pub(crate) fn expect(&self, what: &str, open: &[&str]) -> Result<()> {
        self.expect_of(self.ways(), what, open)
    }

    fn expect_of(&self, ways: [Way<'_>; 8], what: &str, open: &[&str]) -> Result<()> {
        for way in ways {
            let wanted = if open.contains(&way.name) { Fate::Echoed } else { way.denied };
            self.mesh.wait_fate(way.from, way.to, wanted).with_context(|| format!("{what}: {}", way.name))?;
            // The kernel's verdicts follow the agent's a moment later; from then on they stay.
            ensure!(probe(way.from, way.to)? == wanted, "{what}: {} is not settled", way.name);
            let told = self.mesh.agent("node-a")?.cli(&[
                "explain",
                &way.from.id(),
                &way.to.to_string(),
                "-o",
                "json",
            ])?;
            let code = i32::from(wanted != Fate::Echoed);
            ensure!(
                told.code == code && told.json()?["allowed"] == (code == 0),
                "{what}: explain ends with {} for {}: {}{}",
                told.code,
                way.name,
                told.stdout,
                told.stderr
            );
        }
        Ok(())
    }

    /// One step whose policy asks about requests: nobody can be refused before the first bytes have been looked at.
    pub(crate) fn step_of_requests(&self, what: &str, policies: &[Value], open: &[&str]) -> Result<()> {
        self.apply(policies).with_context(|| what.to_owned())?;
        self.expect_of(self.ways().map(|way| Way { denied: Fate::Cut, ..way }), what, open)
    }

    /// One step and its expectation.
    pub(crate) fn step(&self, what: &str, policies: &[Value], open: &[&str]) -> Result<()> {
        self.apply(policies).with_context(|| what.to_owned())?;
        self.expect(what, open)
    }
}

pub(crate) fn policy(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": manifests::now()},
        "spec": spec,
    })
}

/// An AuthorizationPolicy of the servers' namespace.
pub(crate) fn authz(spec: Value) -> Value {
    policy("AuthorizationPolicy", "shop", "tested", spec)
}

/// Every way but these.
pub(crate) fn all_but(closed: &[&str]) -> Vec<&'static str> {
    let all = CLIENT.into_iter().chain(PLAYER).chain(STRANGER);
    all.filter(|way| !closed.contains(way)).collect()
}
