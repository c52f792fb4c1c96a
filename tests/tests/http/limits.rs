//! Limits of the pipeline that a whole agent hits; those of its pools are hit in `proxy/http/pool`.
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::client::{Ask, Session};
use mesh_tests::manifests::ServicePort;
use mesh_tests::{App, PodSpec, ServiceSpec, eventually};

use crate::routing::{SUBSETS, myapp};
use crate::shop::{PORT, SOON, Shop, TARGET};

/// `REPLAY_MAX_BYTES` of the agent.
const REPLAY_BYTES: usize = 64 * 1024;
/// `MIRRORS_MAX` and `MIRROR_TIMEOUT` of the agent.
const MIRRORS: usize = 1024;
const MIRROR_TIME: Duration = Duration::from_secs(15);

fn hits(shop: &Shop, limit: &str) -> Result<f64> {
    shop.agent("node-a")?.metric("nodemesh_limit_hits_total", &[("limit", limit)])
}

const RETRIES_AND_A_MIRROR: &str = r"apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: myapp, namespace: default}
spec:
  hosts: [myapp]
  http:
  - match: [{uri: {prefix: /again}}]
    route: [{destination: {host: myapp}}]
    retries: {attempts: 2, retryOn: 5xx}
  - match: [{uri: {prefix: /copied}}]
    route: [{destination: {host: myapp, subset: v1}}]
    mirror: {host: myapp, subset: v2}
";

/// A body that fits is sent again and copied; a longer one reaches one endpoint whole, once, and that is counted.
#[test]
fn a_body_too_long_to_keep_is_sent_once() -> Result<()> {
    let (shop, service) = myapp("replay")?;
    shop.apply("subsets", SUBSETS)?;
    shop.apply("virtualservice", RETRIES_AND_A_MIRROR)?;
    let mut session = shop.session(&service)?;
    let total = || shop.servers.iter().map(|server| server.app.stats().requests()).sum::<u64>();
    let received = || shop.servers.iter().map(|server| server.app.stats().received()).sum::<u64>();
    for (path, bytes, status, requests, counted) in [
        ("/again?status=503", REPLAY_BYTES, 503, 3, 0.0),
        ("/again?status=503", 4 * REPLAY_BYTES, 503, 1, 1.0),
        ("/again", 4 * REPLAY_BYTES, 200, 1, 0.0),
        ("/copied", REPLAY_BYTES, 200, 2, 0.0),
        ("/copied", 4 * REPLAY_BYTES, 200, 1, 1.0),
    ] {
        let (asked, came, hit) = (total(), received(), hits(&shop, "http_replay")?);
        let reply = session.ask(&Ask::post(path, &vec![b'b'; bytes]))?;
        ensure!(reply.status == status, "{path}: {}", reply.text());
        let all = requests * bytes as u64;
        eventually(&format!("all of {bytes} bytes to {path}"), SOON, || Ok(received() - came == all))?;
        ensure!(total() - asked == requests, "{path}, {bytes} bytes: {} requests", total() - asked);
        let more = hits(&shop, "http_replay")? - hit;
        ensure!((more - counted).abs() < 0.5, "{path}, {bytes} bytes: counted {more} times");
    }
    Ok(())
}

/// Copies to a server that never answers take their places and no more; what is over is not copied and counted, the
/// requests themselves do not notice, and after their time the copies are given up.
#[test]
fn copies_that_nobody_answers_are_bounded() -> Result<()> {
    let shop = Shop::within("default", "mirrors", &[("near", "myapp", "v1", "node-a")])?;
    let service = shop.service("myapp", Some("http"))?;
    let sink = shop.lab.pod(PodSpec::new("default", "sink", "node-b").label("app", "sink"))?;
    let silent = App::swallow(&sink, TARGET)?;
    shop.lab.manifests().service(&ServiceSpec {
        namespace: "default",
        name: "sink",
        vips: shop.lab.vips().to_vec(),
        ports: vec![ServicePort { name: "p", port: PORT, target: TARGET, app_protocol: Some("http") }],
        pods: vec![&sink],
    })?;
    shop.apply(
        "virtualservice",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: myapp, namespace: default}\n\
         spec: {hosts: [myapp], http: [{route: [{destination: {host: myapp}}], mirror: {host: sink}}]}\n",
    )?;
    // One connection is one worker's; its places are what this is about.
    let mut session = shop.session(&service)?;
    let ask = |session: &mut Session| -> Result<()> {
        ensure!(session.get("/")?.status == 200);
        Ok(())
    };
    for _ in 0..MIRRORS + 20 {
        ask(&mut session)?;
    }
    let over = hits(&shop, "http_mirrors")?;
    ensure!(over >= 1.0, "nothing was counted over the limit");
    // Those of the first requests may be over already on a machine that is busy; none is ever beyond the limit.
    ensure!(silent.stats().open() <= MIRRORS as u64, "{} copies", silent.stats().open());
    eventually("the copies to be given up", MIRROR_TIME + SOON, || Ok(silent.stats().open() == 0))?;
    let copied = silent.stats().accepted();
    ask(&mut session)?;
    eventually("copies to be made again", SOON, || Ok(silent.stats().accepted() > copied))?;
    Ok(())
}
