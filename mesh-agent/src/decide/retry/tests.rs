use proptest::prelude::*;

use super::*;
use crate::model::route::RetryOn;
use crate::model::traffic::Defaults;

fn policy(on: RetryOn) -> RetryPolicy {
    RetryPolicy {
        attempts: 3,
        per_try_timeout: None,
        on,
        backoff: Duration::from_millis(25),
        exclude_previous_hosts: true,
    }
}

const fn answer(status: u16) -> Outcome {
    Outcome::Answer { status, grpc: None, rate_limited: false }
}

const fn grpc(code: u8) -> Outcome {
    Outcome::Answer { status: 200, grpc: Some(code), rate_limited: false }
}

const SENT: Outcome = Outcome::Reset { sent: true };
const UNSENT: Outcome = Outcome::Reset { sent: false };

/// Every condition with every outcome.
#[test]
fn a_condition_takes_what_envoy_says_it_takes() {
    use Outcome::{ConnectFailed, RefusedStream, TryTimedOut};
    let nothing = [ConnectFailed, RefusedStream, SENT, UNSENT, TryTimedOut];
    let all: Vec<Outcome> = [200, 404, 409, 429, 500, 501, 502, 503, 504]
        .map(answer)
        .into_iter()
        .chain([1, 4, 8, 13, 14, 2].map(grpc))
        .chain(nothing)
        .chain([Outcome::Overflow])
        .collect();
    let with = |of: &[Outcome], more: &[Outcome]| [of, more].concat();
    for (name, on, wanted) in [
        ("none", RetryOn::default(), vec![]),
        (
            "5xx",
            RetryOn { server_error: true, ..RetryOn::default() },
            with(&nothing, &[500, 501, 502, 503, 504].map(answer)),
        ),
        (
            "gateway-error",
            RetryOn { gateway_error: true, ..RetryOn::default() },
            with(&nothing, &[502, 503, 504].map(answer)),
        ),
        ("reset", RetryOn { reset: true, ..RetryOn::default() }, nothing.to_vec()),
        (
            "reset-before-request",
            RetryOn { reset_before_request: true, ..RetryOn::default() },
            vec![UNSENT, ConnectFailed],
        ),
        ("connect-failure", RetryOn { connect_failure: true, ..RetryOn::default() }, vec![ConnectFailed]),
        ("retriable-4xx", RetryOn { retriable_4xx: true, ..RetryOn::default() }, vec![answer(409)]),
        ("refused-stream", RetryOn { refused_stream: true, ..RetryOn::default() }, vec![RefusedStream]),
        (
            "statuses",
            RetryOn { statuses: vec![404, 503], ..RetryOn::default() },
            vec![answer(404), answer(503)],
        ),
        ("grpc", RetryOn { grpc: vec![14, 1], ..RetryOn::default() }, vec![grpc(14), grpc(1)]),
    ] {
        for outcome in &all {
            let retried = worth_retry(&policy(on.clone()), *outcome);
            assert_eq!(retried, wanted.contains(outcome), "{name}: {outcome:?}");
        }
    }
}

#[test]
fn where_nothing_is_said_only_what_was_never_looked_at_is_sent_again() {
    let policy = Defaults::default().retry;
    assert_eq!((policy.attempts, policy.backoff), (2, Duration::from_millis(25)));
    for (outcome, again) in [
        (Outcome::ConnectFailed, true),
        (Outcome::RefusedStream, true),
        (grpc(14), true),
        (grpc(1), true),
        (answer(503), false),
        (answer(500), false),
        (SENT, false),
        (UNSENT, false),
        (Outcome::TryTimedOut, false),
    ] {
        assert_eq!(worth_retry(&policy, outcome), again, "{outcome:?}");
    }
}

#[test]
fn who_is_asked_to_come_less_often_does_not_come_again() {
    let on = RetryOn { server_error: true, statuses: vec![429], ..RetryOn::default() };
    for status in [429, 503] {
        let limited = Outcome::Answer { status, grpc: None, rate_limited: true };
        assert!(!worth_retry(&policy(on.clone()), limited));
        assert!(worth_retry(&policy(on.clone()), answer(status)));
    }
}

#[test]
fn pauses_double_up_to_ten_times_the_base() {
    for (retry, below) in
        [(0, 25_000), (1, 25_000), (2, 50_000), (3, 100_000), (4, 200_000), (5, 250_000), (200, 250_000)]
    {
        let longest = backoff(&policy(RetryOn::default()), retry, below - 1);
        assert_eq!(longest, Duration::from_micros(below - 1), "{retry}");
        assert_eq!(backoff(&policy(RetryOn::default()), retry, below), Duration::ZERO, "{retry}");
    }
    let none = RetryPolicy { backoff: Duration::ZERO, ..policy(RetryOn::default()) };
    assert_eq!(backoff(&none, 3, 77), Duration::ZERO);
}

proptest! {
    #[test]
    fn a_pause_is_below_its_bound(base_ms in 0_u64..10_000, retry: u32, random: u64) {
        let policy = RetryPolicy { backoff: Duration::from_millis(base_ms), ..policy(RetryOn::default()) };
        let pause = backoff(&policy, retry, random);
        prop_assert!(pause <= Duration::from_millis(base_ms * 10));
        prop_assert!(pause < Duration::from_millis(base_ms) || retry > 1 || base_ms == 0);
    }
}
