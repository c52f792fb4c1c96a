//! Circuit breaking: how much may be under way to one destination at once (`connectionPool`, `retryBudget`). Owns: the
//! counters, shared by all workers, and the places taken in them. What is over a limit is refused at once: a request that
//! would wait helps nobody. Never: waits, or knows what is done with a place. Called by `proxy`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::model::traffic::{PoolLimits, RetryBudget};

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// `tcp.maxConnections`
    Connections,
    /// `http.http1MaxPendingRequests`
    Pending,
    /// `http.http2MaxRequests`
    Requests,
    /// `http.maxRetries`, or the retry budget.
    Retries,
}

impl Overflow {
    pub const fn field(self) -> &'static str {
        match self {
            Self::Connections => "connectionPool.tcp.maxConnections",
            Self::Pending => "connectionPool.http.http1MaxPendingRequests",
            Self::Requests => "connectionPool.http.http2MaxRequests",
            Self::Retries => "connectionPool.http.maxRetries",
        }
    }
}

/// What is under way to one destination (host, subset and port).
#[derive(Debug, Default)]
pub struct Circuit {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
}

/// A place; free again when this is dropped.
#[derive(Debug)]
pub struct Guard {
    circuit: Arc<Circuit>,
    kind: Overflow,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.circuit.counter(self.kind).fetch_sub(1, Ordering::AcqRel);
    }
}

/// How much is under way, for people to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Load {
    pub connections: u32,
    pub pending: u32,
    pub requests: u32,
    pub retries: u32,
}

impl Circuit {
    /// A connection to one of the destination's endpoints.
    ///
    /// # Errors
    /// The limit is reached; so for the others.
    pub fn try_connection(self: &Arc<Self>, limits: &PoolLimits) -> Result<Guard, Overflow> {
        self.take(Overflow::Connections, limits.max_connections)
    }

    /// A request that has to wait until a connection is there.
    pub fn try_pending(self: &Arc<Self>, limits: &PoolLimits) -> Result<Guard, Overflow> {
        self.take(Overflow::Pending, limits.max_pending)
    }

    /// A request, until its answer is complete.
    pub fn try_request(self: &Arc<Self>, limits: &PoolLimits) -> Result<Guard, Overflow> {
        self.take(Overflow::Requests, limits.max_requests)
    }

    /// A retry, until its answer is complete. A budget takes the place of `maxRetries`, as in Envoy.
    pub fn try_retry(
        self: &Arc<Self>,
        limits: &PoolLimits,
        budget: Option<&RetryBudget>,
    ) -> Result<Guard, Overflow> {
        let limit = budget.map_or(limits.max_retries, |budget| Some(self.budgeted(budget)));
        self.take(Overflow::Retries, limit)
    }

    pub fn load(&self) -> Load {
        let now = |kind| self.counter(kind).load(Ordering::Relaxed);
        Load {
            connections: now(Overflow::Connections),
            pending: now(Overflow::Pending),
            requests: now(Overflow::Requests),
            retries: now(Overflow::Retries),
        }
    }

    fn budgeted(&self, budget: &RetryBudget) -> u32 {
        let load = self.load();
        let active = u64::from(load.requests) + u64::from(load.pending);
        let share = active * u64::from(budget.percent.0) / 1_000_000;
        u32::try_from(share).unwrap_or(u32::MAX).max(budget.min_retries)
    }

    fn counter(&self, kind: Overflow) -> &AtomicU32 {
        match kind {
            Overflow::Connections => &self.connections,
            Overflow::Pending => &self.pending,
            Overflow::Requests => &self.requests,
            Overflow::Retries => &self.retries,
        }
    }

    fn take(self: &Arc<Self>, kind: Overflow, limit: Option<u32>) -> Result<Guard, Overflow> {
        let limit = limit.unwrap_or(u32::MAX);
        let more = |now: u32| (now < limit).then(|| now + 1);
        match self.counter(kind).fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_before) => Ok(Guard { circuit: Arc::clone(self), kind }),
            Err(_full) => Err(kind),
        }
    }
}

#[cfg(test)]
mod tests;
