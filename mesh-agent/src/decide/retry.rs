//! Retries: whether a request that went badly is sent again, and after which pause (VirtualService `retries`; Envoy's
//! conditions). Owns: the conditions and the pause. Never: whether there is still a place for a retry (`circuit`), or
//! whether its body can be sent again (`proxy::http`, which calls this).

use std::time::Duration;

use crate::model::route::RetryPolicy;

/// How one try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The head of an answer came.
    Answer {
        status: u16,
        /// Of an answer that has only trailers: they are its head (gRPC over HTTP/2, "Trailers-Only").
        grpc: Option<u8>,
        /// `x-envoy-ratelimited`: sending again would make it worse.
        rate_limited: bool,
    },
    /// No connection, also for want of time.
    ConnectFailed,
    /// REFUSED_STREAM, or a GOAWAY that leaves the request out: nobody has looked at it.
    RefusedStream,
    /// The connection broke, or the stream was reset, before an answer. `sent`: something of the request had gone out.
    Reset { sent: bool },
    /// No answer within the time of one try.
    TryTimedOut,
    /// One of our own limits said no (`circuit`).
    Overflow,
}

/// Whether the policy has this sent again. How often is for the caller to count.
pub fn worth_retry(policy: &RetryPolicy, outcome: Outcome) -> bool {
    let on = &policy.on;
    // What came to nothing counts as the 5xx that the client would see, for both conditions (Envoy).
    let nothing_came = on.server_error || on.gateway_error || on.reset;
    match outcome {
        Outcome::Overflow | Outcome::Answer { rate_limited: true, .. } => false,
        Outcome::Answer { status, grpc, .. } => {
            (on.server_error && status >= 500)
                || (on.gateway_error && matches!(status, 502..=504))
                || (on.retriable_4xx && status == 409)
                || on.statuses.contains(&status)
                || grpc.is_some_and(|code| on.grpc.contains(&code))
        }
        Outcome::ConnectFailed => nothing_came || on.connect_failure || on.reset_before_request,
        Outcome::RefusedStream => nothing_came || on.refused_stream,
        Outcome::Reset { sent } => nothing_came || (on.reset_before_request && !sent),
        Outcome::TryTimedOut => nothing_came,
    }
}

/// The pause before retry number `retry`, counted from 1: drawn below the base, twice the base, and so on, up to ten
/// times the base (Envoy's jittered back-off), so that clients that failed together do not come back together.
pub fn backoff(policy: &RetryPolicy, retry: u32, random: u64) -> Duration {
    let base = u64::try_from(policy.backoff.as_micros()).unwrap_or(u64::MAX);
    let doubled = 1_u64.checked_shl(retry.saturating_sub(1)).unwrap_or(u64::MAX);
    let below = base.saturating_mul(doubled).min(base.saturating_mul(10));
    Duration::from_micros(random.checked_rem(below).unwrap_or_default())
}

#[cfg(test)]
mod tests;
