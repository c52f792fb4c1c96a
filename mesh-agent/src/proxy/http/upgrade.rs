//! What follows an answer of 101: bytes both ways, until either side ends. Owns: that relay. Never: parses what the two
//! have agreed to speak. Called by `proxy::http::server`.

use std::time::Duration;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::time::timeout;

use super::downstream::Downstream;
use super::io::HttpIo;
use super::pool::Lease;
use crate::model::Reason;

/// Buffer of each direction, bytes.
pub const UPGRADED_BUFFER_BYTES: usize = 16 * 1024;
/// How long the upstream's connection may take to be handed over after its 101.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// Relays to the end; says how it ended badly.
pub(super) async fn relay(down: &Downstream, mut client: HttpIo, lease: Lease) -> Option<Reason> {
    let Ok(Some(mut server)) = timeout(HANDOVER_TIMEOUT, lease.into_switched()).await else {
        client.reset();
        return Some(Reason::ServerReset);
    };
    let copied = tokio::select! {
        biased;
        reason = down.conn.cancelled() => Err(Some(reason)),
        copied = copy_bidirectional_with_sizes(
            &mut client,
            &mut server,
            UPGRADED_BUFFER_BYTES,
            UPGRADED_BUFFER_BYTES,
        ) => copied.map_err(|_broken| None),
    };
    match copied {
        Ok(_bytes) => None,
        Err(reason) => {
            client.reset();
            server.reset();
            Some(reason.unwrap_or(Reason::ServerReset))
        }
    }
}
