use std::sync::atomic::AtomicU32;

use super::*;
use crate::model::route::Millionths;

#[test]
fn each_limit_is_its_own_and_a_place_is_free_again_when_it_is_given_back() {
    let circuit = Arc::new(Circuit::default());
    let limits = PoolLimits {
        max_connections: Some(1),
        max_pending: Some(2),
        max_requests: Some(3),
        max_retries: Some(0),
        ..PoolLimits::default()
    };
    let connection = circuit.try_connection(&limits).unwrap();
    assert_eq!(circuit.try_connection(&limits).unwrap_err(), Overflow::Connections);
    let pending: Vec<_> = (0..2).map(|_| circuit.try_pending(&limits).unwrap()).collect();
    assert_eq!(circuit.try_pending(&limits).unwrap_err(), Overflow::Pending);
    let requests: Vec<_> = (0..3).map(|_| circuit.try_request(&limits).unwrap()).collect();
    assert_eq!(circuit.try_request(&limits).unwrap_err(), Overflow::Requests);
    assert_eq!(circuit.try_retry(&limits, None).unwrap_err(), Overflow::Retries);
    assert_eq!(circuit.load(), Load { connections: 1, pending: 2, requests: 3, retries: 0 });
    drop((connection, pending, requests));
    assert_eq!(circuit.load(), Load::default());
    assert!(circuit.try_connection(&limits).is_ok());
}

#[test]
fn without_limits_there_is_always_a_place() {
    let circuit = Arc::new(Circuit::default());
    let limits = PoolLimits::default();
    let held: Vec<_> = (0..1_000).map(|_| circuit.try_request(&limits).unwrap()).collect();
    assert_eq!(held.len(), 1_000);
    assert!(circuit.try_connection(&limits).is_ok() && circuit.try_retry(&limits, None).is_ok());
}

#[test]
fn a_budget_is_a_share_of_what_is_under_way_and_never_less_than_its_minimum() {
    for (requests, pending, percent, least, wanted) in [
        (0, 0, 20, 3, 3),
        (10, 0, 20, 3, 3),
        (100, 0, 20, 3, 20),
        (80, 20, 20, 3, 20),
        (7, 0, 50, 0, 3),
        (0, 0, 20, 0, 0),
    ] {
        let circuit = Arc::new(Circuit::default());
        // A budget beats the plain limit, which alone would let nothing through.
        let limits = PoolLimits { max_retries: Some(0), ..PoolLimits::default() };
        let _requests: Vec<_> = (0..requests).map(|_| circuit.try_request(&limits).unwrap()).collect();
        let _pending: Vec<_> = (0..pending).map(|_| circuit.try_pending(&limits).unwrap()).collect();
        let budget = RetryBudget { percent: Millionths(percent * 10_000), min_retries: least };
        let held: Vec<_> = (0..200).map_while(|_| circuit.try_retry(&limits, Some(&budget)).ok()).collect();
        assert_eq!(held.len(), wanted, "{requests} {pending} {percent} {least}");
    }
}

#[test]
fn many_threads_never_pass_a_limit() {
    let circuit = Arc::new(Circuit::default());
    let limits = PoolLimits { max_requests: Some(5), ..PoolLimits::default() };
    let most = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    let held: Vec<_> = (0..3).filter_map(|_| circuit.try_request(&limits).ok()).collect();
                    most.fetch_max(circuit.load().requests, Ordering::Relaxed);
                    drop(held);
                }
            });
        }
    });
    assert!(most.into_inner() <= 5);
    assert_eq!(circuit.load(), Load::default());
}
