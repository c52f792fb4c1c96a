//! The end of the agent's connections: wait for them, then cut what is left at the deadline. Owns: that order.
//! Called by `agent` at its end.

use std::time::{Duration, Instant};

use crate::model::Reason;
use crate::observe::ConnectionTable;
use crate::proxy::worker::{Command, WorkerHandle};

/// How often the drain looks whether the last connection has gone.
const POLL: Duration = Duration::from_millis(20);
/// How long connections that were cut at the deadline may take to say so to both sides.
const CUT_GRACE: Duration = Duration::from_millis(500);

/// Stops accepting, lets live connections end by themselves until `deadline`, then cuts them.
pub(super) async fn drain(
    connections: &ConnectionTable,
    workers: &[WorkerHandle],
    deadline: Duration,
) -> anyhow::Result<()> {
    for worker in workers {
        worker.send(Command::Drain).await?;
    }
    if !gone_within(connections, deadline).await {
        let cut = connections.cut_if(&|_| Some(Reason::DrainDeadline));
        tracing::warn!(connections = cut, ?deadline, "cut at the drain deadline");
        gone_within(connections, CUT_GRACE).await;
    }
    Ok(())
}

async fn gone_within(connections: &ConnectionTable, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while !connections.is_empty() {
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}
