//! Endpoints that fail: tries, circuit breaking, ejection, and who gets the next request.
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use mesh_tests::client::Ask;
use mesh_tests::{eventually, guide};

use crate::routing::{myapp, text};
use crate::shop::{SOON, Shop};

/// The guide's retries, on /api only: after 5xx, a reset or a refused connection a request is sent again, three times
/// at most, and a body with it.
#[test]
fn what_failed_is_sent_again() -> Result<()> {
    let (mut shop, service) = myapp("retries")?;
    shop.apply("virtualservice", guide::VIRTUALSERVICE_RETRY_POLICY)?;
    let mut session = shop.session(&service)?;
    let total = |shop: &Shop| shop.servers.iter().map(|server| server.app.stats().requests()).sum::<u64>();
    let mut before = total(&shop);
    for (path, status, sent) in [
        ("/api?status=503", 503, 4),
        ("/api?status=404", 404, 1),
        ("/api?reset=100&key=a", 503, 4),
        ("/api?bad=stable-near", 200, 0),
    ] {
        for ask in [Ask::get(path), Ask::post(path, b"again")] {
            let reply = session.ask(&ask)?;
            assert_eq!(reply.status, status, "{path}: {}", reply.text());
            let after = total(&shop);
            if sent > 0 {
                assert_eq!(after - before, sent, "{} {path}", ask.method);
            }
            before = after;
        }
    }
    // No rule takes it.
    assert_eq!(session.get("/other")?.status, 404);
    // One of the four refuses connections: nobody notices.
    shop.servers.swap_remove(1).app.stop();
    for _ in 0..20 {
        assert_eq!(session.get("/api")?.status, 200);
    }
    Ok(())
}

/// The guide's circuit breaker: what is over the limits is refused at once, and says so.
#[test]
fn a_full_destination_refuses_at_once() -> Result<()> {
    let (shop, service) = myapp("circuit")?;
    shop.apply("destinationrule", guide::DESTINATIONRULE_CIRCUIT_BREAKER)?;
    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    std::thread::scope(|scope| -> Result<()> {
        let calls: Vec<_> = (0..150)
            .map(|_| {
                scope.spawn(|| -> Result<u16> {
                    let mut session = shop.session(&service)?.patient(Duration::from_secs(20))?;
                    let reply = session.get("/?delay=3000")?;
                    anyhow::ensure!(
                        reply.status == 200 || reply.text().contains("overflow"),
                        "{}",
                        reply.text()
                    );
                    Ok(reply.status)
                })
            })
            .collect();
        for call in calls {
            *statuses
                .entry(call.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))??)
                .or_default() += 1;
        }
        Ok(())
    })?;
    let (well, refused) =
        (statuses.get(&200).copied().unwrap_or_default(), statuses.get(&503).copied().unwrap_or_default());
    assert_eq!(well + refused, 150, "{statuses:?}");
    // At most 100 are under way; where more than 10 at a moment wait for their connections, they are refused as well.
    assert!((10..=100).contains(&well), "{statuses:?}");
    let agent = shop.agent("node-a")?;
    assert!(agent.metric("istio_requests_total", &[("response_flags", "UO")])? >= refused as f64);
    Ok(())
}

/// Two endpoints, one of which answers with errors: five in a row and it is left alone; the other gets everything.
#[test]
fn a_failing_endpoint_is_ejected() -> Result<()> {
    let pods = [("near", "myapp", "v1", "node-a"), ("far", "myapp", "v1", "node-b")];
    let shop = Shop::within("default", "ejection", &pods)?;
    let service = shop.service("myapp", Some("http"))?;
    shop.apply("destinationrule", guide::DESTINATIONRULE_CIRCUIT_BREAKER)?;
    let mut session = shop.session(&service)?;
    let mut failures = 0;
    eventually("the failing endpoint to be ejected", SOON, || {
        let reply = session.get("/?bad=far")?;
        failures += usize::from(reply.status == 500);
        Ok(failures >= 5)
    })?;
    let before = shop.server("far")?.app.stats().requests();
    for _ in 0..50 {
        assert_eq!(session.get("/?bad=far")?.status, 200);
    }
    assert_eq!(shop.server("far")?.app.stats().requests(), before);
    // Half of two may be out: the other one stays, however it answers.
    for _ in 0..10 {
        assert_eq!(session.get("/?bad=near")?.status, 500);
    }
    Ok(())
}

/// The guide's LEAST_CONN: requests go where fewer are under way.
#[test]
fn the_less_busy_endpoint_is_chosen() -> Result<()> {
    let pods = [("near", "myapp", "v1", "node-a"), ("far", "myapp", "v1", "node-b")];
    let shop = Shop::within("default", "least connections", &pods)?;
    let service = shop.service("myapp", Some("http"))?;
    shop.apply("destinationrule", guide::DESTINATIONRULE_LOAD_BALANCING)?;
    std::thread::scope(|scope| -> Result<()> {
        let held: Vec<_> = (0..40)
            .map(|_| scope.spawn(|| shop.session(&service)?.get("/?delay=3000").map(|reply| reply.status)))
            .collect();
        for call in held {
            assert_eq!(call.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))??, 200);
        }
        Ok(())
    })?;
    for name in ["near", "far"] {
        let requests = shop.server(name)?.app.stats().requests();
        assert!((8..=32).contains(&requests), "{name}: {requests} of 40");
    }
    Ok(())
}

/// While routes change, no request is lost.
#[test]
fn a_change_of_routes_loses_nothing() -> Result<()> {
    let (shop, service) = myapp("changes")?;
    shop.apply("subsets", crate::routing::SUBSETS)?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let callers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| -> Result<usize> {
                    let mut session = shop.session(&service)?;
                    let mut count = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let reply = session.ask(&Ask::get("/"))?;
                        anyhow::ensure!(reply.status == 200, "status {}", reply.status);
                        anyhow::ensure!(!text(&reply.json()?, "pod").is_empty(), "nobody answered");
                        count += 1;
                    }
                    Ok(count)
                })
            })
            .collect();
        for turn in 0..6 {
            let canary = guide::VIRTUALSERVICE_CANARY_DEPLOYMENT;
            let mirror = guide::VIRTUALSERVICE_MIRROR_TRAFFIC;
            shop.apply("virtualservice", if turn % 2 == 0 { canary } else { mirror })?;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for caller in callers {
            assert!(caller.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))?? > 50);
        }
        Ok(())
    })?;
    Ok(())
}
