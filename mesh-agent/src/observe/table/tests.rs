use super::*;
use crate::observe::fixtures::{meta, workload};
use crate::observe::meta::Direction;

fn table() -> ConnectionTable {
    ConnectionTable::new(Metrics::new(), AccessLog::new(false))
}

fn hbone() -> ConnMeta {
    meta(Direction::Outbound, Path::Hbone)
}

#[test]
fn a_connection_is_listed_while_it_lives_and_forgotten_once() {
    let table = table();
    let conn = table.open(hbone());
    conn.sent().fetch_add(5, Ordering::Relaxed);
    let listed = table.list();
    assert_eq!((listed.len(), listed[0].id, listed[0].sent, listed[0].established), (1, conn.id(), 5, false));
    conn.finish(None);
    assert!(table.is_empty());
    drop(table.open(hbone()));
    assert_eq!((table.len(), table.list().len()), (0, 0));
    assert_eq!(table.metrics().open_connections(Direction::Outbound, Path::Hbone), 0);
}

#[tokio::test]
async fn a_cut_reaches_the_relay_whether_it_waits_already_or_not() {
    let table = table();
    let early = table.open(hbone());
    let late = table.open(hbone());
    let spared = table.open(meta(Direction::Inbound, Path::Hbone));
    let waiting = tokio::spawn(async move { late.cancelled().await });
    tokio::task::yield_now().await;
    let told =
        table.cut_if(&|meta, _| (meta.direction == Direction::Outbound).then_some(Reason::PolicyChanged));
    assert_eq!(told, 2);
    assert_eq!(waiting.await.unwrap(), Reason::PolicyChanged);
    assert_eq!(early.cancelled().await, Reason::PolicyChanged);
    assert_eq!(early.cancelled().await, Reason::PolicyChanged, "it stays cut");
    assert_eq!(spared.cut_reason(), None);
    assert_eq!(table.cut_if(&|_, _| Some(Reason::DrainDeadline)), 1, "the first reason stays");
    assert_eq!(early.cut_reason(), Some(Reason::PolicyChanged));
}

#[tokio::test]
async fn waiting_for_a_cut_may_be_given_up_and_begun_again() {
    let table = table();
    let conn = table.open(hbone());
    for _ in 0..3 {
        tokio::select! {
            biased;
            reason = conn.cancelled() => panic!("cut for {reason}"),
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(table.cut(conn.id(), Reason::WorkloadGone));
    assert_eq!(conn.cancelled().await, Reason::WorkloadGone);
    assert!(!table.cut(conn.id() + 1, Reason::WorkloadGone));
}

#[test]
fn bytes_of_a_live_connection_count_at_each_scrape_and_never_twice() {
    let table = table();
    let conn = table.open(hbone());
    conn.established();
    let received = || table.metrics().flows().snapshot()[0].received.load(Ordering::Relaxed);
    conn.sent().fetch_add(100, Ordering::Relaxed);
    table.metrics().encode().unwrap();
    assert_eq!(received(), 100);
    table.metrics().encode().unwrap();
    assert_eq!(received(), 100);
    conn.sent().fetch_add(50, Ordering::Relaxed);
    conn.finish(None);
    assert_eq!(received(), 150);
}

#[test]
fn another_endpoint_after_a_failed_attempt_is_the_one_that_counts() {
    let table = table();
    let conn = table.open(hbone());
    let other = Party::local(workload("ratings", "10.2.0.9"), "10.2.0.9:9080".parse().unwrap());
    conn.set_destination(other, Path::Plain, None);
    conn.established();
    assert_eq!(table.metrics().open_connections(Direction::Outbound, Path::Plain), 1);
    conn.finish(None);
    let flows = table.metrics().flows().snapshot();
    assert_eq!(flows.len(), 1);
    assert_eq!(&*flows[0].labels.destination.workload, "ratings");
    assert_eq!(table.metrics().open_connections(Direction::Outbound, Path::Plain), 0);
    assert_eq!(table.metrics().open_connections(Direction::Outbound, Path::Hbone), 0);
}

#[test]
fn threads_that_open_and_finish_leave_nothing_behind() {
    let table = table();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..1_000 {
                    let conn = table.open(hbone());
                    conn.established();
                    conn.sent().fetch_add(1, Ordering::Relaxed);
                    conn.finish(None);
                }
            });
        }
        scope.spawn(|| (0..50).for_each(|_| drop(table.metrics().encode().unwrap())));
    });
    assert!(table.is_empty());
    let flows = table.metrics().flows().snapshot();
    assert_eq!(flows.len(), 1);
    for counter in [&flows[0].opened, &flows[0].closed, &flows[0].received] {
        assert_eq!(counter.load(Ordering::Relaxed), 8_000);
    }
}
