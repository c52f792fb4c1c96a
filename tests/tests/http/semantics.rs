//! Rules of VirtualService and DestinationRule that show on the wire only; `docs/semantics.md` lists where the others are.
use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use mesh_tests::client::Ask;
use mesh_tests::eventually;

use crate::routing::myapp;
use crate::shop::{SOON, Shop};

fn requests(shop: &Shop) -> BTreeMap<String, u64> {
    shop.servers.iter().map(|one| (one.pod.name().to_owned(), one.app.stats().requests())).collect()
}

fn total(shop: &Shop) -> u64 {
    requests(shop).values().sum()
}

const RULES: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: myapp, namespace: default}
spec:
  hosts: [myapp]
  http:
  - match: [{uri: {prefix: /slow}}]
    route: [{destination: {host: myapp}}]
    timeout: 1s
    retries: {attempts: 10, retryOn: 5xx}
  - match: [{uri: {prefix: /fault}}]
    fault: {delay: {fixedDelay: 1ms, percentage: {value: 100}}}
    route: [{destination: {host: myapp}}]
    timeout: 100ms
    retries: {attempts: 3, retryOn: 5xx}
  - match: [{uri: {prefix: /never}}]
    fault: {delay: {fixedDelay: 30s}}
    route: [{destination: {host: myapp}}]
    retries: {attempts: 1, retryOn: 5xx}
  - match: [{uri: {prefix: /subset}}]
    route: [{destination: {host: myapp, subset: nowhere}}]
  - match: [{uri: {prefix: /once}}]
    route: [{destination: {host: myapp}}]
    retries: {attempts: 0}
  - match: [{uri: {prefix: /codes}}]
    route: [{destination: {host: myapp}}]
    retries: {attempts: 2, retryOn: '429'}
  - route: [{destination: {host: myapp}}]
";

/// Times and tries: what a rule says of them, what holds where none says anything, and what takes both away.
#[test]
fn times_and_tries() -> Result<()> {
    let (mut shop, service) = myapp("times and tries")?;
    shop.apply("rules", RULES)?;
    let mut session = shop.session(&service)?;
    for (path, status, sent) in [
        // The time covers all tries together.
        ("/slow?delay=300&status=503", 504, 1..=4),
        // Where a rule injects faults there is neither a timeout nor another try.
        ("/fault?delay=500&status=503", 503, 1..=1),
        // A fault without a percentage never happens, and takes nothing away.
        ("/never?status=503", 503, 2..=2),
        ("/subset", 503, 0..=0),
        ("/once?status=503", 503, 1..=1),
        ("/codes?status=429", 429, 3..=3),
        ("/codes?status=503", 503, 1..=1),
        // By default an answer is an answer.
        ("/plain?status=503", 503, 1..=1),
    ] {
        let before = total(&shop);
        let reply = session.get(path)?;
        ensure!(reply.status == status, "{path}: {} {}", reply.status, reply.text());
        let came = total(&shop) - before;
        ensure!(sent.contains(&came), "{path}: sent {came} times");
    }
    let agent = shop.agent("node-a")?;
    ensure!(agent.metric("istio_requests_total", &[("response_flags", "NC")])? >= 1.0);
    // Two of four are down: what cannot have been seen is sent again, to others, unless the rule forbids it.
    for name in ["stable-far", "canary-near"] {
        let place = shop.servers.iter().position(|server| server.pod.name() == name).unwrap_or_default();
        shop.servers.swap_remove(place).app.stop();
    }
    let mut session = shop.session(&service)?;
    // A connection from before may end under a request, which goes again because it is a GET.
    for _ in 0..40 {
        ensure!(session.get("/plain")?.status == 200);
    }
    for _ in 0..40 {
        ensure!(session.ask(&Ask::post("/plain", b"not lost"))?.status == 200);
    }
    let mut failed = 0;
    for _ in 0..40 {
        failed += usize::from(session.get("/once")?.status == 503);
    }
    ensure!(failed > 0, "no request met an endpoint that is down");
    Ok(())
}

const HASHED: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: myapp, namespace: default}
spec: {host: myapp, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: myapp, namespace: default}
spec: {hosts: [myapp], http: [{route: [{destination: {host: myapp}}], retries: {attempts: 2, retryOn: 5xx}}]}
";

/// Another try goes to another endpoint, but where a key chooses it stays where the key leads.
#[test]
fn a_key_is_kept_through_retries() -> Result<()> {
    let (shop, service) = myapp("keys")?;
    let mut session = shop.session(&service)?;
    let spread = |before: &BTreeMap<String, u64>| -> Vec<u64> {
        let after = requests(&shop);
        after.iter().map(|(name, count)| count - before[name]).filter(|count| *count > 0).collect()
    };
    shop.apply("rules", HASHED)?;
    for user in ["a", "b", "c", "d"] {
        let before = requests(&shop);
        let headers = [("x-user", user)];
        ensure!(session.ask(&Ask::get("/?status=503").headers(&headers))?.status == 503);
        ensure!(spread(&before) == [3], "{user}: {:?}", spread(&before));
    }
    shop.apply("rules", HASHED.split("---\n").nth(1).unwrap_or_default())?;
    for _ in 0..5 {
        let before = requests(&shop);
        ensure!(session.get("/?status=503")?.status == 503);
        ensure!(spread(&before) == [1, 1, 1], "{:?}", spread(&before));
    }
    Ok(())
}

/// `tls.mode: DISABLE` towards a server that is STRICT breaks the traffic, on either node; without it all is well.
#[test]
fn plaintext_towards_strict_is_refused() -> Result<()> {
    let (shop, service) = myapp("disable and strict")?;
    shop.apply(
        "strict",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: default}\nspec: {mtls: {mode: STRICT}}\n",
    )?;
    let mut session = shop.session(&service)?;
    for _ in 0..20 {
        ensure!(session.get("/")?.status == 200);
    }
    shop.apply(
        "disable",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: myapp, namespace: default}\n\
         spec: {host: myapp, trafficPolicy: {tls: {mode: DISABLE}}}\n",
    )?;
    let before = total(&shop);
    for _ in 0..20 {
        let status = session.get("/")?.status;
        ensure!(status == 503, "{status}");
    }
    ensure!(total(&shop) == before, "a request came through");
    shop.lab.manifests().remove("disable")?;
    eventually("the rule to go", SOON, || Ok(session.get("/")?.status == 200))?;
    Ok(())
}
