//! Which endpoint gets a request when some are far, failing, new or many: DestinationRules over the data path.
use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use mesh_tests::client::{Ask, Session};
use mesh_tests::manifests::ServicePort;
use mesh_tests::{Pod, ServiceSpec, eventually};

use crate::shop::{PORT, SOON, Service, Shop, TARGET};

/// node-a is in the client's region, node-b in another.
const NODES: &str = "apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: a}}
---
apiVersion: v1
kind: Node
metadata: {name: node-b, labels: {topology.kubernetes.io/region: us, topology.kubernetes.io/zone: a}}
";

const TWO_AND_ONE: [(&str, &str, &str, &str); 3] = [
    ("near-1", "myapp", "v1", "node-a"),
    ("near-2", "myapp", "v1", "node-a"),
    ("far-1", "myapp", "v1", "node-b"),
];

fn policy(text: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: myapp, namespace: default}}\n\
         spec: {{host: myapp, trafficPolicy: {{{text}}}}}\n"
    )
}

/// How many requests each pod got while `work` was done.
fn spread(shop: &Shop, work: impl FnOnce() -> Result<()>) -> Result<BTreeMap<String, u64>> {
    let now = || -> BTreeMap<String, u64> {
        shop.servers.iter().map(|one| (one.pod.name().to_owned(), one.app.stats().requests())).collect()
    };
    let before = now();
    work()?;
    Ok(now().into_iter().map(|(name, count)| (name.clone(), count - before[&name])).collect())
}

fn all_well(session: &mut Session, count: usize) -> Result<()> {
    for _ in 0..count {
        let reply = session.get("/")?;
        ensure!(reply.status == 200, "{}: {}", reply.status, reply.text());
    }
    Ok(())
}

/// The endpoints of `myapp` that are ejected now, by pod, as `services` tells.
fn ejected(shop: &Shop) -> Result<Vec<String>> {
    let all = shop.agent("node-a")?.ask(&["services"])?;
    let service = all.as_array().and_then(|all| all.iter().find(|one| one["name"] == "myapp"));
    let endpoints = service.context("no Service")?["ports"][0]["endpoints"].clone();
    let out = endpoints.as_array().context("no endpoints")?.iter().filter(|one| {
        one["ejected"].as_array().is_some_and(|by| by.iter().any(|by| by["by"] == "default/client"))
    });
    let mut pods: Vec<String> = out
        .filter_map(|one| one["workload"].as_str())
        .filter_map(|name| Some(name.split_once('/')?.1.to_owned()))
        .collect();
    pods.sort();
    pods.dedup();
    Ok(pods)
}

/// Has a pod answer with errors until the client's agent leaves it alone.
fn fail(shop: &Shop, session: &mut Session, pod: &str) -> Result<()> {
    let path = format!("/?bad={pod}");
    eventually(&format!("{pod} to be ejected"), SOON, || {
        session.get(&path)?;
        Ok(ejected(shop)?.iter().any(|name| name == pod))
    })?;
    Ok(())
}

/// Requests stay in their region while it can serve them, go over as it fails, and all of them when it is gone.
#[test]
fn the_next_region_takes_over_when_the_own_one_fails() -> Result<()> {
    let shop = Shop::within("default", "failover", &TWO_AND_ONE)?;
    let service = shop.service("myapp", Some("http"))?;
    let outlier =
        "outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 300s, maxEjectionPercent: 100}";
    shop.apply("nodes", NODES)?;
    shop.apply("rule", &policy(outlier))?;
    let mut session = shop.session(&service)?;
    let near = spread(&shop, || all_well(&mut session, 40))?;
    ensure!(near["far-1"] == 0 && near["near-1"] > 0 && near["near-2"] > 0, "{near:?}");
    fail(&shop, &mut session, "near-1")?;
    // One of two, times 1.4: seven of ten stay (five standard deviations of 200: 32).
    let most = spread(&shop, || all_well(&mut session, 200))?;
    ensure!(most["near-1"] == 0 && most["far-1"].abs_diff(60) <= 33, "{most:?}");
    fail(&shop, &mut session, "near-2")?;
    let far = spread(&shop, || all_well(&mut session, 20))?;
    ensure!(far["far-1"] == 20, "{far:?}");
    // People see it too.
    let wide = shop.agent("node-a")?.cli(&["services", "-o", "wide"])?.stdout;
    ensure!(wide.matches("ejected by default/client until ").count() >= 2, "{wide}");
    Ok(())
}

/// `distribute`: a fifth of the requests goes to the other region.
#[test]
fn regions_get_the_shares_that_they_are_given() -> Result<()> {
    let shop = Shop::within("default", "distribute", &TWO_AND_ONE)?;
    let service = shop.service("myapp", Some("http"))?;
    shop.apply("nodes", NODES)?;
    let shares =
        "loadBalancer: {localityLbSetting: {distribute: [{from: 'eu/*', to: {'eu/*': 80, 'us/*': 20}}]}}";
    shop.apply("rule", &policy(shares))?;
    let mut session = shop.session(&service)?;
    // sqrt(500 * 0.2 * 0.8) = 9.
    let found = spread(&shop, || all_well(&mut session, 500))?;
    ensure!(found["far-1"].abs_diff(100) <= 45, "{found:?}");
    Ok(())
}

fn write_service(shop: &Shop, service: &Service, pods: Vec<&Pod>) -> Result<()> {
    shop.lab.manifests().service(&ServiceSpec {
        namespace: "default",
        name: service.name,
        vips: service.vips.to_vec(),
        ports: vec![ServicePort { name: "p", port: PORT, target: TARGET, app_protocol: Some("http") }],
        pods,
    })
}

/// An endpoint that joins later gets little at first.
#[test]
fn a_new_endpoint_is_warmed_up() -> Result<()> {
    let shop = Shop::within("default", "warmup", &TWO_AND_ONE)?;
    let service = shop.service("myapp", Some("http"))?;
    let version = || shop.agent("node-a")?.metric("nodemesh_world_version", &[]);
    let write = |pods: Vec<&Pod>| -> Result<()> {
        let before = version()?;
        write_service(&shop, &service, pods)?;
        eventually("the agent to know the endpoints", SOON, || Ok(version()? > before))?;
        Ok(())
    };
    let pods: Vec<&Pod> = shop.servers.iter().map(|server| &server.pod).collect();
    write(pods[..2].to_vec())?;
    shop.apply("rule", &policy("loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 3600s}}"))?;
    let mut session = shop.session(&service)?;
    let old = spread(&shop, || all_well(&mut session, 20))?;
    ensure!(old["far-1"] == 0, "{old:?}");
    write(pods)?;
    // A tenth of what each of the others gets; without warmup it would be 200 of 600.
    let new = spread(&shop, || all_well(&mut session, 600))?;
    ensure!((1..=70).contains(&new["far-1"]), "{new:?}");
    Ok(())
}

/// With every endpoint ejected nobody is asked, unless `minHealthPercent` says that the failing are better than none;
/// and when their time is over they come back.
#[test]
fn all_ejected_is_nobody_or_everybody() -> Result<()> {
    let shop = Shop::within("default", "panic", &TWO_AND_ONE[1..])?;
    let service = shop.service("myapp", Some("http"))?;
    let outlier = |more: &str| {
        policy(&format!(
            "outlierDetection: {{consecutive5xxErrors: 1, interval: 1s, maxEjectionPercent: 100, {more}}}"
        ))
    };
    shop.apply("rule", &outlier("baseEjectionTime: 300s"))?;
    let mut session = shop.session(&service)?;
    for pod in ["near-2", "far-1"] {
        fail(&shop, &mut session, pod)?;
    }
    let nobody = spread(&shop, || {
        let reply = session.get("/")?;
        ensure!((reply.status, reply.text().as_str()) == (503, "no healthy upstream"), "{}", reply.text());
        Ok(())
    })?;
    ensure!(nobody.values().sum::<u64>() == 0, "{nobody:?}");
    shop.apply("rule", &outlier("baseEjectionTime: 300s, minHealthPercent: 50"))?;
    let everybody = spread(&shop, || all_well(&mut session, 40))?;
    ensure!(everybody.values().all(|count| *count > 0), "{everybody:?}");
    shop.apply("rule", &outlier("baseEjectionTime: 1s"))?;
    eventually("the endpoints to come back", SOON, || {
        session.get("/")?;
        Ok(ejected(&shop)?.is_empty())
    })?;
    all_well(&mut session, 10)
}

/// A budget of one retry at a time: of many requests that fail together few are sent again, and the rest is told apart.
#[test]
fn a_budget_bounds_retries() -> Result<()> {
    const CALLS: usize = 40;
    let shop = Shop::within("default", "budget", &TWO_AND_ONE)?;
    let service = shop.service("myapp", Some("http"))?;
    let route = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: myapp, namespace: default}\n\
                 spec: {hosts: [myapp], http: [{route: [{destination: {host: myapp}}], retries: {attempts: 1, retryOn: 5xx}}]}\n";
    shop.apply("route", route)?;
    let fail_together = || -> Result<()> {
        std::thread::scope(|scope| -> Result<()> {
            let calls: Vec<_> = (0..CALLS)
                .map(|_| {
                    scope.spawn(|| -> Result<u16> {
                        let mut session = shop.session(&service)?.patient(SOON)?;
                        Ok(session.ask(&Ask::get("/?status=503&delay=2000"))?.status)
                    })
                })
                .collect();
            for call in calls {
                let status = call.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))??;
                ensure!(status == 503, "{status}");
            }
            Ok(())
        })
    };
    let sent = |found: BTreeMap<String, u64>| found.values().sum::<u64>();
    let without = sent(spread(&shop, fail_together)?);
    ensure!(without == 2 * CALLS as u64, "each is sent twice: {without}");
    shop.apply("rule", &policy("retryBudget: {percent: {value: 0}, minRetryConcurrency: 1}"))?;
    let with = sent(spread(&shop, fail_together)?);
    // The calls overlap; a client that starts late on a busy machine may find the place free again.
    ensure!((CALLS as u64 + 1..=CALLS as u64 + 10).contains(&with), "{with}");
    let flagged = shop.agent("node-a")?.metric("istio_requests_total", &[("response_flags", "UO")])?;
    ensure!(flagged >= 1.0, "the budget is not told: {flagged}");
    Ok(())
}

/// On a port that is called TCP a connection that cannot be made counts, and the endpoint is left alone.
#[test]
fn an_endpoint_that_refuses_connections_is_ejected() -> Result<()> {
    let mut shop = Shop::within("default", "tcp ejection", &TWO_AND_ONE[1..])?;
    let service = shop.service("myapp", Some("tcp"))?;
    let outlier =
        "outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 300s, maxEjectionPercent: 50}";
    shop.apply("rule", &policy(outlier))?;
    let place = shop.servers.iter().position(|server| server.pod.name() == "far-1").unwrap_or_default();
    shop.servers.swap_remove(place).app.stop();
    let once = || shop.session(&service).and_then(|mut session| session.get("/"));
    eventually("the endpoint to be ejected", SOON, || {
        ensure!(once()?.status == 200, "another endpoint is there");
        Ok(ejected(&shop)? == ["far-1"])
    })?;
    let agent = shop.agent("node-a")?;
    let refused = || agent.metric("nodemesh_connections_ended_total", &[("reason", "connection_refused")]);
    let before = refused()?;
    for _ in 0..20 {
        ensure!(once()?.status == 200);
    }
    ensure!((refused()? - before).abs() < 0.5, "it was asked again");
    Ok(())
}
