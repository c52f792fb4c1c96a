//! The end of the agent's connections: wait for them, then cut what is left at the deadline. Owns: that order.
//! Called by `agent` at its end.

use std::time::{Duration, Instant};

use crate::model::Reason;
use crate::observe::ConnectionTable;
use crate::proxy::worker::{Command, Shared, WorkerHandle};

use super::judge;

/// How often the drain looks whether the last connection has gone.
const POLL: Duration = Duration::from_millis(20);
/// How long connections that were cut at the deadline may take to say so to both sides.
const CUT_GRACE: Duration = Duration::from_millis(500);

/// Stops accepting, lets live connections end by themselves until `deadline` or until `hurry` completes, then cuts
/// them. Policy goes on to hold for them meanwhile.
pub(super) async fn drain(
    shared: &Shared,
    workers: &[WorkerHandle],
    deadline: Duration,
    hurry: impl Future<Output = ()>,
) {
    for worker in workers {
        if let Err(error) = worker.send(Command::Drain).await {
            tracing::error!(%error, "cannot drain it");
        }
    }
    let all_gone = tokio::select! {
        gone = gone_within(shared, deadline) => gone,
        () = hurry => false,
    };
    if !all_gone {
        let cut = shared.connections.cut_if(&|_| Some(Reason::DrainDeadline));
        tracing::warn!(connections = cut, ?deadline, "cut at the drain deadline");
        cut_ones_gone(&shared.connections).await;
    }
}

/// Whether the last connection has gone by then. Looks twice: what a worker has just accepted is in the table a moment later.
pub(super) async fn gone_within(shared: &Shared, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    let mut judged = shared.store.load().version;
    let mut empty_before = false;
    loop {
        let empty = shared.connections.is_empty();
        if empty && empty_before {
            return true;
        }
        if Instant::now() >= end {
            return empty;
        }
        empty_before = empty;
        tokio::time::sleep(POLL).await;
        let version = shared.store.load().version;
        if version != judged {
            judged = version;
            judge::cut_forbidden(shared);
        }
    }
}

async fn cut_ones_gone(connections: &ConnectionTable) {
    let end = Instant::now() + CUT_GRACE;
    while !connections.is_empty() && Instant::now() < end {
        tokio::time::sleep(POLL).await;
    }
}
