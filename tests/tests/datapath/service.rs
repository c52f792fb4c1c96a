//! Services by their addresses: who gets a connection, and what happens when nobody can.
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use mesh_tests::{App, Pod, PodSpec, client, eventually};
use serde_json::json;

use crate::endings::reset_at_once;
use crate::mesh::{Mesh, SOON};

/// Of the application; the Service's port is another one.
const TARGET: u16 = 9090;
const PORT: u16 = 80;
const NAME: &str = "reviews";
const NOT_READY: &str = "not ready";

/// Three pods behind one Service: one on the client's node, two on the other.
struct Shop {
    // Applications go before their pods.
    apps: Vec<App>,
    pods: Vec<Pod>,
    vips: [IpAddr; 2],
    mesh: Mesh,
}

impl Shop {
    fn new(scenario: &str, balance: &str) -> Result<Self> {
        let mesh = Mesh::new(scenario)?;
        let mut pods = Vec::new();
        for (name, node) in [("reviews-1", "node-a"), ("reviews-2", "node-b"), ("reviews-3", "node-b")] {
            pods.push(mesh.lab.pod(PodSpec::new("shop", name, node).account("reviews"))?);
        }
        let apps: Result<Vec<App>> = pods.iter().map(|pod| App::echo(pod, TARGET)).collect();
        let shop = Self { apps: apps?, pods, vips: mesh.lab.vips(), mesh };
        shop.publish(balance, &[true, true, true])?;
        Ok(shop)
    }

    /// Writes the Service with these pods ready, and waits until the client's agent knows.
    fn publish(&self, balance: &str, ready: &[bool; 3]) -> Result<()> {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": NAME, "namespace": "shop", "annotations": {"nodemesh.io/balance": balance},
            },
            "spec": {
                "clusterIP": self.vips[0], "clusterIPs": self.vips,
                "ports": [{"name": "tcp", "port": PORT, "targetPort": TARGET, "protocol": "TCP"}],
            },
        });
        let slice = |family: usize| {
            let endpoints: Vec<_> = (self.pods.iter().zip(ready))
                .map(|(pod, ready)| {
                    json!({
                        "addresses": [pod.ips()[family]], "nodeName": pod.node(),
                        "conditions": {"ready": ready, "serving": ready, "terminating": false},
                        "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod.name(), "uid": pod.uid()},
                    })
                })
                .collect();
            let kind = ["IPv4", "IPv6"][family];
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{NAME}-{}", kind.to_lowercase()), "namespace": "shop",
                    "labels": {"kubernetes.io/service-name": NAME},
                },
                "addressType": kind, "endpoints": endpoints,
                "ports": [{"name": "tcp", "port": TARGET, "protocol": "TCP"}],
            })
        };
        self.mesh.lab.manifests().put("service-shop-reviews", &[service, slice(0), slice(1)])?;
        let agent = self.mesh.agent("node-a")?;
        eventually("the agent to know the Service", SOON, || {
            let all = agent.ask(&["services"])?;
            let found = all.as_array().and_then(|all| all.iter().find(|one| one["name"] == NAME));
            let endpoints = found.map(|one| &one["ports"][0]["endpoints"]).and_then(|list| list.as_array());
            let known = endpoints.context("no such Service")?;
            let is = |pod: &Pod, ready: bool| {
                let mine = |one: &&serde_json::Value| one["workload"] == format!("shop/{}", pod.name());
                let mut both = known.iter().filter(mine).peekable();
                both.peek().is_some() && both.all(|one| one["ready"] == ready)
            };
            Ok(self.pods.iter().zip(ready).all(|(pod, ready)| is(pod, *ready)))
        })?;
        // Of the pods, too: an endpoint of a pod that its agent has not attached yet is tried in vain.
        for pod in &self.pods {
            let agent = self.mesh.agent(pod.node())?;
            eventually(&format!("{} to be captured", pod.name()), SOON, || {
                let all = agent.ask(&["workloads"])?;
                let mut named =
                    all.as_array().context("no list")?.iter().filter(|one| one["name"] == pod.name());
                Ok(named.any(|one| one["enrolment"] == "captured"))
            })?;
        }
        Ok(())
    }

    fn at(&self, family: usize) -> SocketAddr {
        SocketAddr::new(self.vips[family], PORT)
    }

    /// One exchange; the server has to see the client by its address of the family that was dialled.
    fn call(&self, family: usize) -> Result<()> {
        let mut stream = self.mesh.client.connect(self.at(family))?;
        client::echo(&mut stream, b"which one")?;
        assert_eq!(stream.peer_addr()?, self.at(family));
        Ok(())
    }

    fn accepted(&self) -> Vec<u64> {
        self.apps.iter().map(|app| app.stats().accepted()).collect()
    }
}

/// Round robin gives each endpoint its exact share, whichever worker takes the connection, in each family.
#[test]
fn round_robin_is_exact() -> Result<()> {
    let shop = Shop::new("round robin", "round-robin")?;
    for family in [0, 1] {
        let before = shop.accepted();
        for _ in 0..30 {
            shop.call(family)?;
        }
        let shares: Vec<u64> = shop.accepted().iter().zip(before).map(|(now, then)| now - then).collect();
        assert_eq!(shares, [10, 10, 10]);
        for (app, pod) in shop.apps.iter().zip(&shop.pods) {
            let seen = app.stats().last().context("nobody came")?;
            assert_eq!(seen.peer.ip(), shop.mesh.client.ips()[family], "{}", pod.name());
            assert_eq!(seen.local, pod.both(TARGET)[family]);
        }
    }
    Ok(())
}

/// Least request uses every endpoint, and prefers those that have less to do.
#[test]
fn least_request_spreads() -> Result<()> {
    let shop = Shop::new("least request", "least-request")?;
    for family in [0, 1] {
        // Held open: with every connection that stays, its endpoint becomes less attractive.
        let held: Result<Vec<_>> = (0..60).map(|_| shop.mesh.client.connect(shop.at(family))).collect();
        let mut held = held?;
        for stream in &mut held {
            client::echo(stream, b"held")?;
        }
        let open: Vec<u64> = shop.apps.iter().map(|app| app.stats().open()).collect();
        assert_eq!(open.iter().sum::<u64>(), 60);
        // A blind choice of two workers' leaves nobody with so little by chance (p < 1e-6).
        assert!(open.iter().all(|open| *open >= 5), "{open:?}");
        drop(held);
        eventually("all to close", SOON, || Ok(shop.apps.iter().all(|app| app.stats().open() == 0)))?;
    }
    Ok(())
}

/// An endpoint that is not ready gets nothing, and its share goes to the others; ready again, it gets its own.
#[test]
fn an_endpoint_that_is_not_ready_is_left_out() -> Result<()> {
    let shop = Shop::new(NOT_READY, "round-robin")?;
    shop.publish("round-robin", &[true, false, true])?;
    for family in [0, 1] {
        for _ in 0..10 {
            shop.call(family)?;
        }
    }
    assert_eq!(shop.accepted(), [10, 0, 10]);
    shop.publish("round-robin", &[true, true, true])?;
    for _ in 0..30 {
        shop.call(0)?;
    }
    assert_eq!(shop.accepted(), [20, 10, 20]);
    Ok(())
}

/// An endpoint that refuses is passed over for one that does not: nothing had been sent yet.
#[test]
fn a_refusing_endpoint_is_passed_over() -> Result<()> {
    let mut shop = Shop::new("refusing endpoint", "round-robin")?;
    shop.apps.remove(1).stop();
    for family in [0, 1] {
        for _ in 0..6 {
            shop.call(family)?;
        }
    }
    Ok(())
}

/// A Service without a ready endpoint, or without the port, resets at once, and the agent says why.
#[test]
fn a_service_without_endpoints_resets() -> Result<()> {
    let shop = Shop::new("no endpoint", "least-request")?;
    shop.publish("least-request", &[false, false, false])?;
    for family in [0, 1] {
        reset_at_once(shop.mesh.client.connect(shop.at(family)))?;
        let to = format!("dst.addr={}", shop.at(family));
        shop.mesh.wait_logged("node-a", &[&to, "reason=\"no_endpoint\""])?;
        let no_port = SocketAddr::new(shop.vips[family], 81);
        reset_at_once(shop.mesh.client.connect(no_port))?;
        shop.mesh.wait_logged("node-a", &[&format!("dst.addr={no_port}"), "reason=\"no_such_port\""])?;
    }
    assert_eq!(shop.accepted(), [0, 0, 0]);
    Ok(())
}
