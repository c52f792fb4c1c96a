//! What a cluster's size costs the agent: 1,000, 10,000 and 100,000 pods through the path that objects take from the
//! API server's text to a published world. What `cargo xtask bench scale` runs; no server is needed.
//!
//! Prints, for each size, how long the first world takes, what one change costs afterwards (it must not grow with the
//! cluster), and the resident memory per workload, with its share of Services and endpoints. Each size is measured in
//! a process of its own, so that none inherits another's memory.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on must say so at once")]

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_agent::compile::{Kind, MeshSettings};
use mesh_agent::source::kube::{Intake, Taken};
use mesh_agent::world::{World, WorldStore};
use serde_json::{Value, json};

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
/// Pods of one Deployment, which is one Service with its EndpointSlice.
const REPLICAS: usize = 10;
const DEPLOYMENTS_PER_NAMESPACE: usize = 20;
const PODS_PER_NODE: usize = 100;
/// Changes of each sort that are timed.
const CHANGES: usize = 501;
/// What DESIGN allows for a remote workload, bytes.
const BAR_BYTES: f64 = 1.5 * 1024.0;
/// A change may cost this many times as much in the largest cluster as in the smallest: trees grow by a level or two,
/// and caches hold less of them.
const GROWTH_MAX: f64 = 4.0;

/// Figures of one size.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct Figures {
    pods: usize,
    first_world_seconds: f64,
    pod_change_us: f64,
    slice_change_us: f64,
    no_change_us: f64,
    bytes_per_workload: f64,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--one") {
        let figures = measure(args[at + 1].parse().unwrap());
        println!("{}", serde_json::to_string(&figures).unwrap());
        return;
    }
    let json = args.iter().any(|arg| arg == "--json");
    let all: Vec<Figures> = SIZES.iter().map(|size| one(*size)).collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&all).unwrap());
    } else {
        print(&all);
    }
    let (small, large) = (all.first().unwrap(), all.last().unwrap());
    let mut missed = Vec::new();
    if large.bytes_per_workload > BAR_BYTES {
        missed.push(format!("{:.0} bytes per workload, above {BAR_BYTES:.0}", large.bytes_per_workload));
    }
    let changes = [
        ("a pod's change", small.pod_change_us, large.pod_change_us),
        ("a slice's change", small.slice_change_us, large.slice_change_us),
    ];
    for (what, small, large) in changes {
        if large > small * GROWTH_MAX {
            missed.push(format!("{what} grows from {small:.0} to {large:.0} µs with the cluster"));
        }
    }
    if !missed.is_empty() {
        eprintln!("missed: {}", missed.join("; "));
        std::process::exit(1);
    }
}

/// One size in a process of its own.
fn one(size: usize) -> Figures {
    let own = std::env::current_exe().unwrap();
    let output = Command::new(own).args(["--one", &size.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn print(all: &[Figures]) {
    println!(
        "{:>8} {:>12} {:>12} {:>14} {:>12} {:>14}",
        "PODS", "FIRST WORLD", "POD CHANGE", "SLICE CHANGE", "NO CHANGE", "PER WORKLOAD"
    );
    for one in all {
        println!(
            "{:>8} {:>10.2} s {:>9.0} µs {:>11.0} µs {:>9.0} µs {:>12.0} B",
            one.pods,
            one.first_world_seconds,
            one.pod_change_us,
            one.slice_change_us,
            one.no_change_us,
            one.bytes_per_workload
        );
    }
}

/// The agent's state that grows with the cluster.
struct Agent {
    pods: Intake,
    services: Intake,
    slices: Intake,
    namespaces: Intake,
    world: World,
    store: WorldStore,
}

impl Agent {
    fn new() -> Self {
        let mesh = Arc::new(MeshSettings::default());
        let intake = |kind| Intake::of(kind, Arc::clone(&mesh), "node-0".into()).unwrap();
        let world = World::new(MeshSettings::clone(&mesh));
        Self {
            pods: intake(Kind::Pod),
            services: intake(Kind::Service),
            slices: intake(Kind::EndpointSlice),
            namespaces: intake(Kind::Namespace),
            store: WorldStore::new(world.clone()),
            world,
        }
    }

    /// As the source does it; returns whether the world has changed.
    fn take(&mut self, taken: Option<Taken>) -> bool {
        let Some(taken) = taken else { return false };
        assert!(taken.diagnostics.is_empty(), "{:?}", taken.diagnostics);
        taken.change.is_some_and(|change| self.world.apply(change))
    }

    fn publish(&self) {
        self.store.publish(self.world.clone());
    }
}

fn measure(pods: usize) -> Figures {
    let mut agent = Agent::new();
    // What the allocator and the code itself need is not the cluster's: let both be there first.
    let warm = agent.pods.put("v1", pod(0, 1));
    agent.take(warm);
    agent.publish();
    let before = resident_bytes();
    let begun = Instant::now();
    // Making the objects is the API server's work.
    let mut making = Duration::ZERO;
    let mut made = |make: &dyn Fn() -> Value| {
        let begun = Instant::now();
        let object = make();
        making += begun.elapsed();
        object
    };
    for number in 0..pods {
        let object = made(&|| pod(number, 1));
        let taken = agent.pods.put("v1", object);
        agent.take(taken);
    }
    for deployment in 0..pods / REPLICAS {
        if deployment % DEPLOYMENTS_PER_NAMESPACE == 0 {
            let object = made(&|| namespace(deployment));
            let taken = agent.namespaces.put("v1", object);
            agent.take(taken);
        }
        let object = made(&|| service(deployment));
        let taken = agent.services.put("v1", object);
        agent.take(taken);
        let object = made(&|| slice(deployment, 1, true));
        let taken = agent.slices.put("v1", object);
        agent.take(taken);
    }
    agent.publish();
    let first = begun.elapsed() - making;
    let bytes = resident_bytes().saturating_sub(before) as f64 / pods as f64;
    assert_eq!(agent.world.workload_count(), pods);
    assert_eq!(agent.world.service_count(), pods / REPLICAS);
    // Over the whole cluster, each pod once.
    let step = (pods / CHANGES).max(1);
    let changed = |change: usize| pod(change * step, 2 + change as u64);
    let pod_change_us = median(|change| {
        let object = changed(change);
        timed(&mut agent, |agent| agent.pods.put("v1", object), true)
    });
    let no_change_us = median(|change| {
        let object = heartbeat(changed(change), change);
        timed(&mut agent, |agent| agent.pods.put("v1", object), false)
    });
    let deployments = pods / REPLICAS;
    let slice_change_us = median(|change| {
        // A Service that comes round again in a small cluster gets another endpoint that is not ready.
        let round = (change / deployments) as u64;
        let object = slice(change * step % deployments, 2 + round, false);
        timed(&mut agent, |agent| agent.slices.put("v1", object), true)
    });
    Figures {
        pods,
        first_world_seconds: first.as_secs_f64(),
        pod_change_us,
        slice_change_us,
        no_change_us,
        bytes_per_workload: bytes,
    }
}

/// From the parsed object to the published world.
fn timed(agent: &mut Agent, take: impl FnOnce(&mut Agent) -> Option<Taken>, changes: bool) -> Duration {
    let begun = Instant::now();
    let taken = take(agent);
    let changed = agent.take(taken);
    if changed {
        agent.publish();
    }
    let elapsed = begun.elapsed();
    assert_eq!(changed, changes);
    elapsed
}

fn median(mut one: impl FnMut(usize) -> Duration) -> f64 {
    let mut all: Vec<Duration> = (0..CHANGES).map(&mut one).collect();
    all.sort_unstable();
    all[CHANGES / 2].as_secs_f64() * 1e6
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn address(number: usize) -> String {
    format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255)
}

fn names(deployment: usize) -> (String, String) {
    (format!("team-{}", deployment / DEPLOYMENTS_PER_NAMESPACE), format!("service-{deployment}"))
}

fn pod_name(number: usize) -> String {
    let (_, service) = names(number / REPLICAS);
    format!("{service}-7c9d8f6b5-{:05x}", number % 0xf_ffff)
}

fn uid(number: usize) -> String {
    format!("1b4e28ba-2fa1-41d2-883f-{number:012x}")
}

/// As a Deployment's pod comes from the API server: most of it is of no interest.
fn pod(number: usize, version: u64) -> Value {
    let (namespace, service) = names(number / REPLICAS);
    let image = "registry.example.org/team/application:1.2.3";
    let condition =
        |name: &str| json!({"type": name, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    json!({
        "metadata": {
            "name": pod_name(number), "namespace": namespace, "uid": uid(number),
            "generateName": format!("{service}-7c9d8f6b5-"),
            "resourceVersion": format!("{version}{number:06}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            // Changes with the version: a label that a person sets.
            "labels": {"app": service, "version": "v1", "pod-template-hash": "7c9d8f6b5",
                       "app.kubernetes.io/name": service, "app.kubernetes.io/part-of": "shop",
                       "edition": if version == 1 { "first".to_owned() } else { format!("edition-{version}") }},
            "annotations": {"kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{service}-7c9d8f6b5"),
                                 "uid": uid(number / REPLICAS), "controller": true}],
            "managedFields": [{"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": {}}}}],
        },
        "spec": {
            "nodeName": format!("node-{}", number / PODS_PER_NODE), "serviceAccountName": service,
            "containers": [{"name": "app", "image": image, "ports": [{"containerPort": 8080}],
                            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                            "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets", "readOnly": true}]}],
            "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
        },
        "status": {
            "phase": "Running", "podIP": address(number), "podIPs": [{"ip": address(number)}],
            "hostIP": "192.0.2.1", "startTime": "2026-01-01T00:00:00Z",
            "conditions": [condition("Ready"), condition("Initialized"), condition("PodScheduled")],
            "containerStatuses": [{"name": "app", "image": image, "imageID": image, "ready": true, "restartCount": 0,
                                   "containerID": format!("containerd://{number:064x}")}],
        },
    })
}

/// A change of the pod that means nothing to the mesh: the time of a condition.
fn heartbeat(mut object: Value, change: usize) -> Value {
    object["metadata"]["resourceVersion"] = format!("beat-{change}").into();
    object["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-02T00:00:00Z".into();
    object
}

fn namespace(deployment: usize) -> Value {
    let (namespace, _) = names(deployment);
    json!({"metadata": {"name": namespace, "resourceVersion": "1", "labels": {"nodemesh.io/mesh": "enabled"}}})
}

fn service(deployment: usize) -> Value {
    let (namespace, name) = names(deployment);
    let vip = format!("10.96.{}.{}", deployment >> 8 & 255, deployment & 255);
    json!({
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": "1", "uid": uid(deployment)},
        "spec": {"clusterIP": vip, "clusterIPs": [vip], "type": "ClusterIP", "selector": {"app": name},
                 "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]},
    })
}

/// The first endpoint is ready or not.
fn slice(deployment: usize, version: u64, ready: bool) -> Value {
    let (namespace, name) = names(deployment);
    let endpoints: Vec<Value> = (deployment * REPLICAS..(deployment + 1) * REPLICAS)
        .map(|number| {
            let ready = ready || number % REPLICAS != version as usize % REPLICAS;
            json!({
                "addresses": [address(number)], "nodeName": format!("node-{}", number / PODS_PER_NODE),
                "conditions": {"ready": ready, "serving": ready, "terminating": false},
                "targetRef": {"kind": "Pod", "name": pod_name(number), "namespace": namespace, "uid": uid(number)},
            })
        })
        .collect();
    json!({
        "metadata": {"name": format!("{name}-abcde"), "namespace": namespace, "resourceVersion": format!("{version}-{deployment}"),
                     "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}
