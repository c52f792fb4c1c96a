//! The end of the agent's connections: wait for them, then cut what is left at the deadline. Owns: that order.
//! Called by `agent` at its end.

use std::time::{Duration, Instant};

use crate::model::Reason;
use crate::observe::ConnectionTable;
use crate::proxy::worker::{Command, Shared, WorkerHandle};

use super::judge;

/// How often the drain looks whether the last connection has gone.
const POLL: Duration = Duration::from_millis(20);
/// How long handshakes and goodbyes of tunnels may take once no connection is left: what a handshake is given.
const TUNNELS_GRACE: Duration = Duration::from_secs(10);
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
        gone = gone_within(shared, workers, deadline) => gone,
        () = hurry => false,
    };
    if !all_gone {
        let cut = shared.connections.cut_if(&|_, _| Some(Reason::DrainDeadline));
        tracing::warn!(connections = cut, ?deadline, "cut at the drain deadline");
        cut_ones_gone(&shared.connections).await;
    }
}

/// Whether the last connection has gone by then. Asks the workers as well as the table: what they have accepted is in
/// the table only a moment later, a tunnel that is being set up brings its first connection after that, and one whose
/// last connection has ended may still have its last bytes to send.
pub(super) async fn gone_within(shared: &Shared, workers: &[WorkerHandle], limit: Duration) -> bool {
    let end = Instant::now() + limit;
    let mut judged = shared.store.load().version;
    let mut empty_since = None;
    loop {
        let empty = shared.connections.is_empty();
        if !empty {
            empty_since = None;
        } else {
            let since = *empty_since.get_or_insert_with(Instant::now);
            if all_idle(workers).await && shared.connections.is_empty() {
                return true;
            }
            if since.elapsed() >= TUNNELS_GRACE {
                return true;
            }
        }
        if Instant::now() >= end {
            return empty;
        }
        tokio::time::sleep(POLL).await;
        let version = shared.store.load().version;
        if version != judged {
            judged = version;
            judge::cut_forbidden(shared);
        }
    }
}

/// Whether every worker has become idle within a moment.
async fn all_idle(workers: &[WorkerHandle]) -> bool {
    let all = async {
        for worker in workers {
            worker.idle().await;
        }
    };
    tokio::time::timeout(POLL, all).await.is_ok()
}

async fn cut_ones_gone(connections: &ConnectionTable) {
    let end = Instant::now() + CUT_GRACE;
    while !connections.is_empty() && Instant::now() < end {
        tokio::time::sleep(POLL).await;
    }
}
