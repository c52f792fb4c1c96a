//! Which pods a request goes to: by header, by weight, and a copy elsewhere.
use std::collections::BTreeMap;

use anyhow::{Context, Result};
use mesh_tests::client::{Ask, Session};
use mesh_tests::{eventually, guide};
use serde_json::Value;

use crate::shop::{SOON, Service, Shop};

pub(crate) const SUBSETS: &str = r"apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: myapp-subsets
  namespace: default
spec:
  host: myapp
  subsets:
  - name: stable
    labels: {version: v1}
  - name: canary
    labels: {version: v2}
  - name: v1
    labels: {version: v1}
  - name: v2
    labels: {version: v2}
";

/// `myapp` in two versions, one pod of each on each node.
pub(crate) fn myapp(scenario: &str) -> Result<(Shop, Service)> {
    let pods = [
        ("stable-near", "myapp", "v1", "node-a"),
        ("stable-far", "myapp", "v1", "node-b"),
        ("canary-near", "myapp", "v2", "node-a"),
        ("canary-far", "myapp", "v2", "node-b"),
    ];
    let shop = Shop::within("default", scenario, &pods)?;
    let service = shop.service("myapp", Some("http"))?;
    Ok((shop, service))
}

pub(crate) fn text<'a>(said: &'a Value, field: &str) -> &'a str {
    said[field].as_str().unwrap_or_default()
}

/// Requests of one session, by what the answers say in a field.
fn answers(
    session: &mut Session,
    count: usize,
    ask: &Ask<'_>,
    field: &str,
) -> Result<BTreeMap<String, usize>> {
    let mut found = BTreeMap::new();
    for _ in 0..count {
        let reply = session.ask(ask)?;
        anyhow::ensure!(reply.status == 200, "status {}: {}", reply.status, reply.text());
        *found.entry(text(&reply.json()?, field).to_owned()).or_default() += 1;
    }
    Ok(found)
}

/// The guide's `reviews`: jason is served by v2, everybody else by v1; removed again, by both.
#[test]
fn jason_sees_another_version() -> Result<()> {
    let pods = [("reviews-v1", "reviews", "v1", "node-a"), ("reviews-v2", "reviews", "v2", "node-b")];
    let shop = Shop::new("jason", &pods)?;
    let service = shop.service("reviews", Some("http"))?;
    shop.apply("destinationrule", guide::DESTINATIONRULE_REVIEWS)?;
    shop.apply("virtualservice", guide::VIRTUALSERVICE_REVIEWS)?;
    let mut session = shop.session(&service)?;
    let jason = [("end-user", "jason")];
    for (headers, version) in [(&jason[..], "v2"), (&[("end-user", "jasmin")][..], "v1"), (&[][..], "v1")] {
        let found = answers(&mut session, 10, &Ask::get("/").headers(headers), "version")?;
        assert_eq!(found, BTreeMap::from([(version.to_owned(), 10)]), "{headers:?}");
    }
    // On the same connection, the next request already goes by what is in force then.
    shop.lab.manifests().remove("virtualservice")?;
    eventually("both versions to be used again", SOON, || {
        Ok(answers(&mut session, 20, &Ask::get("/").headers(&jason), "version")?.len() == 2)
    })?;
    Ok(())
}

/// The guide's canary: 10 of 100 requests, within five standard deviations over 10,000; by header all of them.
#[test]
fn a_canary_gets_its_share() -> Result<()> {
    let (shop, service) = myapp("canary")?;
    shop.apply("subsets", SUBSETS)?;
    shop.apply("virtualservice", guide::VIRTUALSERVICE_CANARY_DEPLOYMENT)?;
    let mut found = BTreeMap::new();
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| answers(&mut shop.session(&service)?, 2500, &Ask::get("/"), "version")))
            .collect();
        for worker in workers {
            for (version, count) in worker.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))?? {
                *found.entry(version).or_insert(0) += count;
            }
        }
        Ok(())
    })?;
    let canary = found.get("v2").copied().unwrap_or_default();
    assert_eq!(found.values().sum::<usize>(), 10_000);
    // sqrt(10,000 * 0.1 * 0.9) = 30.
    assert!(canary.abs_diff(1000) <= 150, "{found:?}");
    let mut session = shop.session(&service)?;
    let chosen = [("canary", "true")];
    let found = answers(&mut session, 50, &Ask::get("/").headers(&chosen), "pod")?;
    assert!(found.keys().all(|pod| pod.starts_with("canary")) && found.len() == 2, "{found:?}");
    Ok(())
}

/// The guide's mirror: a tenth of the requests is copied to v2, whose answers nobody sees.
#[test]
fn a_mirror_gets_copies_that_nobody_waits_for() -> Result<()> {
    let (shop, service) = myapp("mirror")?;
    shop.apply("subsets", SUBSETS)?;
    shop.apply("virtualservice", guide::VIRTUALSERVICE_MIRROR_TRAFFIC)?;
    let mut session = shop.session(&service)?;
    let found = answers(&mut session, 1000, &Ask::post("/order?number=1", b"copied too"), "version")?;
    assert_eq!(found, BTreeMap::from([("v1".to_owned(), 1000)]));
    let canaries = [shop.server("canary-near")?, shop.server("canary-far")?];
    let copies = || canaries.iter().map(|server| server.app.stats().requests()).sum::<u64>();
    // sqrt(1000 * 0.1 * 0.9) = 9.5.
    eventually("the copies to come", SOON, || Ok(copies() >= 53))?;
    assert!(copies() <= 147, "{}", copies());
    for server in canaries {
        let asked = server.app.stats().asked();
        let first = asked.first().context("no copy came")?;
        assert!(asked.iter().all(|asked| asked.host == "myapp-shadow"), "{first:?}");
        assert_eq!(first.path, "/order?number=1");
        let received = server.app.stats().received();
        assert_eq!(received, 10 * server.app.stats().requests(), "bodies are copied");
    }
    Ok(())
}

/// Rewrites, redirects, direct answers and header operations, each as its rule says.
#[test]
fn a_rule_edits_what_it_routes() -> Result<()> {
    let (shop, service) = myapp("edits")?;
    shop.apply(
        "virtualservice",
        r"apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edits, namespace: default}
spec:
  hosts: [myapp]
  http:
  - match: [{uri: {prefix: /old}}]
    rewrite: {uri: /new, authority: other.example}
    headers:
      request: {set: {x-set: one}, add: {x-add: two}, remove: [x-gone]}
      response: {set: {x-answer: three}}
    route: [{destination: {host: myapp}}]
  - match: [{uri: {exact: /moved}}]
    redirect: {uri: /there, authority: there.example, redirectCode: 307}
  - match: [{uri: {exact: /said}}]
    directResponse: {status: 418, body: {string: short}}
  - match: [{uri: {prefix: /only}}]
    route: [{destination: {host: myapp}}]
",
    )?;
    let mut session = shop.session(&service)?;
    let reply = session.ask(&Ask::get("/old/path?q=1").headers(&[("x-gone", "1"), ("x-add", "0")]))?;
    assert_eq!((reply.status, reply.header("x-answer")), (200, Some("three")));
    let said = reply.json()?;
    assert_eq!(text(&said, "path"), "/new/path?q=1");
    assert_eq!(said["headers"]["host"][0], "other.example");
    assert_eq!(said["headers"]["x-set"][0], "one");
    assert_eq!(said["headers"]["x-add"], serde_json::json!(["0", "two"]));
    assert!(said["headers"]["x-gone"].is_null());
    let reply = session.get("/moved")?;
    assert_eq!((reply.status, reply.header("location")), (307, Some("http://there.example/there")));
    let reply = session.get("/said")?;
    assert_eq!((reply.status, reply.text().as_str()), (418, "short"));
    assert_eq!(session.get("/only/this")?.status, 200);
    assert_eq!(session.get("/nothing")?.status, 404);
    // One form of a path is judged, routed and forwarded (reference 4.6).
    let said = session.get("/only/./x/../%74his")?.json()?;
    assert_eq!(text(&said, "path"), "/only/this");
    Ok(())
}
