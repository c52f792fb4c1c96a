use super::*;
use crate::model::reason::ROWS;
use crate::observe::fixtures::{meta, service};
use crate::observe::meta::Path;

#[test]
fn every_flag_of_the_table_of_reasons_has_its_counter() {
    for row in ROWS {
        assert!(FLAGS.contains(&row.flag), "{} ends with flag {}", row.label, row.flag);
    }
}

#[test]
fn a_hundred_thousand_hosts_stay_within_the_cap_and_lose_no_count() {
    let table = FlowTable::new(FLOW_LABEL_SETS_MAX);
    let mut facts = meta(Direction::Outbound, Path::Hbone);
    for host in 0..100_000_u64 {
        facts.service = Some(service(&format!("h{:x}", host.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
        let flows = table.resolve(&facts);
        flows.opened();
        flows.closed(None);
    }
    assert_eq!(table.len(), FLOW_LABEL_SETS_MAX);
    assert_eq!(table.overflowed(), 100_000 - FLOW_LABEL_SETS_MAX as u64);
    let all = table.snapshot();
    assert_eq!(all.len(), FLOW_LABEL_SETS_MAX + 1);
    let opened: u64 = all.iter().map(|flow| flow.opened.load(Ordering::Relaxed)).sum();
    assert_eq!(opened, 100_000);
    assert_eq!(&*all.last().unwrap().labels.service, "overflow");
}

#[test]
fn the_same_facts_find_the_same_counters_without_a_lookup() {
    let table = FlowTable::new(10);
    let facts = meta(Direction::Local, Path::Local);
    let first = table.resolve(&facts);
    let again = table.resolve(&facts);
    assert!(Arc::ptr_eq(&first.first, &again.first));
    assert_eq!(table.len(), 2, "source and destination report");

    // Equal labels behind another object: a lookup, but not another set.
    let other = table.resolve(&meta(Direction::Local, Path::Local));
    assert!(Arc::ptr_eq(&first.first, &other.first));
    assert_eq!(table.len(), 2);
}

#[test]
fn a_proven_identity_is_part_of_the_label_set() {
    let table = FlowTable::new(10);
    let mut facts = meta(Direction::Inbound, Path::Plain);
    let proven = table.resolve(&facts);
    facts.source.identity = None;
    let unproven = table.resolve(&facts);
    assert_eq!(&*proven.first.labels.source.principal, "spiffe://cluster.local/ns/shop/sa/frontend");
    assert_eq!(&*unproven.first.labels.source.principal, "unknown");
}

#[test]
fn a_full_table_gives_the_place_of_the_idle_to_the_new_and_keeps_the_live() {
    let table = FlowTable::new(2);
    let mut facts = meta(Direction::Outbound, Path::Hbone);
    let live = table.resolve(&facts);
    live.opened();
    facts.service = Some(service("idle"));
    let idle = table.resolve(&facts);
    idle.opened();
    idle.closed(None);

    let later = FLOW_IDLE_SECONDS + SWEEP_INTERVAL_SECONDS;
    let fresh = FlowLabels { service: "fresh".into(), ..live.first.labels.clone() };
    let fresh = table.get_or_insert(fresh, later);
    assert_eq!(&*fresh.labels.service, "fresh");
    assert_eq!(table.len(), 2);
    assert!(!live.first.retired.load(Ordering::Relaxed));
    assert!(idle.first.retired.load(Ordering::Relaxed));
    // A cached handle of what was let go is not used again.
    assert!(!Arc::ptr_eq(&table.resolve(&facts).first, &idle.first));
}
