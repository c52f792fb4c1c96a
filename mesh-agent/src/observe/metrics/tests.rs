use std::time::Duration;

use super::*;
use crate::observe::fixtures::meta;
use crate::observe::{AccessLog, BypassedFlow, ConnectionTable};

#[test]
fn a_scrape_speaks_istios_names() {
    let metrics = Metrics::new();
    let table = ConnectionTable::new(Arc::clone(&metrics), AccessLog::new(false));
    let good = table.open(meta(Direction::Outbound, Path::Hbone));
    good.established();
    good.sent().fetch_add(84, Ordering::Relaxed);
    good.received().fetch_add(358, Ordering::Relaxed);
    good.finish(None);
    table.open(meta(Direction::Inbound, Path::Plain)).finish(Some(Reason::PlaintextRefused));
    table.record_bypassed(&BypassedFlow {
        meta: meta(Direction::Local, Path::Bypass),
        sent: 10,
        received: 20,
        duration: Duration::from_secs(1),
        rtt_us: 80,
        retransmits: 3,
        reason: None,
    });
    let live = table.open(meta(Direction::Outbound, Path::Hbone));
    live.established();
    live.sent().fetch_add(1000, Ordering::Relaxed);
    metrics.limit_hit(Limit::TunnelStreams);
    metrics.set_probe(|| Probe {
        world_version: 7,
        world_stale_seconds: 1.5,
        workloads: 4,
        services: 2,
        enrolled: 1,
        kernel: vec![("captured", 12), ("refused", 1)],
        certificates: vec![(Identity::new("cluster.local", "shop", "frontend").unwrap(), 1_800_000_000)],
    });
    let text = metrics.encode().unwrap();
    insta::assert_snapshot!("scrape", text);
    drop(live);
}

#[test]
fn a_label_cannot_break_out_of_its_quotes() {
    let metrics = Metrics::new();
    let mut facts = meta(Direction::Outbound, Path::Hbone);
    let mut pod = (**facts.source.workload.as_ref().unwrap()).clone();
    pod.workload_name = "a\"} 1\nistio_fake 1".into();
    facts.source.workload = Some(Arc::new(pod));
    metrics.flows().resolve(&facts).opened();
    let text = metrics.encode().unwrap();
    assert!(!text.lines().any(|line| line.starts_with("istio_fake")), "{text}");
    assert!(text.contains(r#"source_workload="a\"} 1\nistio_fake 1""#), "{text}");
}

#[test]
fn lines_that_the_log_lost_are_a_limit_hit() {
    let metrics = Metrics::new();
    metrics.watch_log(Arc::new(AtomicU64::new(5)));
    assert_eq!(metrics.limit_count(Limit::LogLines), 5);
}
