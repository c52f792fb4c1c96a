//! The end of an agent that is a pod of a DaemonSet. Owns two decisions: whether a pod that is told to end takes the
//! node's pods out of the mesh, and how long an agent stays after it has handed over. Called by `agent::run`.
//!
//! A pod ends because its node, its version or its settings change; another agent follows, and for the seconds between
//! the two the node's pods must neither fail nor speak in clear. It also ends because the mesh is removed. The kubelet
//! sends the same signal for both, so the agent asks the API server which of the two it is.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, Config};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::End;
use crate::config::{ObjectName, Settings};

/// How long the API server may take; the pod has seconds to live.
const API_PATIENCE: Duration = Duration::from_secs(3);
/// How often an agent that has handed over looks whether the other one is there.
const WATCH_PAUSE: Duration = Duration::from_secs(1);
/// The other one may be restarted in place; this many times in a row nobody means that it is gone.
const MISSES_MAX: u32 = 10;

/// What an agent of a DaemonSet does at its end; nothing for any other.
pub(super) struct Farewell {
    daemonset: Option<ObjectName>,
    admin_socket: PathBuf,
    /// Since the agent's start: a signal that came while it drained is not lost.
    told: Signal,
}

impl Farewell {
    pub(super) fn new(settings: &Settings) -> std::io::Result<Self> {
        Ok(Self {
            daemonset: settings.daemonset.clone(),
            admin_socket: settings.admin_socket.clone(),
            told: signal(SignalKind::terminate())?,
        })
    }

    /// Turns the end by a signal into what it is.
    pub(super) async fn weigh(&self, end: End) -> End {
        let Some(daemonset) = self.daemonset.as_ref().filter(|_| end == End::Signal) else { return end };
        if removed(daemonset).await { End::Signal } else { End::Kept }
    }

    /// Waits, idle, until it is told to end: the kubelet would start a container that has ended again, and the old
    /// agent would take over from the new one. If that one goes, it ends and so comes back into office.
    pub(super) async fn wait(mut self) -> anyhow::Result<()> {
        if self.daemonset.is_none() {
            return Ok(());
        }
        tracing::info!("handed over; waiting to be told to end");
        let mut misses = 0;
        loop {
            tokio::select! {
                _ = self.told.recv() => return Ok(()),
                () = tokio::time::sleep(WATCH_PAUSE) => {}
            }
            misses = if UnixStream::connect(&self.admin_socket).await.is_ok() { 0 } else { misses + 1 };
            if misses == MISSES_MAX {
                anyhow::bail!("the agent that took over has gone; starting again");
            }
        }
    }
}

/// Whether the mesh is being removed from the cluster. Without an answer the pods stay in it: what is left behind can
/// be cleaned by the next agent, what was sent in clear cannot be taken back.
async fn removed(daemonset: &ObjectName) -> bool {
    match tokio::time::timeout(API_PATIENCE, ask(daemonset)).await {
        Ok(Ok(removed)) => {
            tracing::info!(removed, "told to end");
            removed
        }
        Ok(Err(kube::Error::Api(status))) => {
            // Its rights or its account may go before the DaemonSet does.
            let removed = matches!(status.code, 401 | 403 | 404);
            tracing::info!(removed, answer = status.message, "told to end");
            removed
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "told to end, and the API server does not say why: the pods stay in the mesh");
            false
        }
        Err(_elapsed) => {
            tracing::warn!("told to end, and the API server does not answer: the pods stay in the mesh");
            false
        }
    }
}

async fn ask(daemonset: &ObjectName) -> Result<bool, kube::Error> {
    let client = Client::try_from(Config::infer().await.map_err(kube::Error::InferConfig)?)?;
    let set = Api::<DaemonSet>::namespaced(client.clone(), &daemonset.namespace).get(&daemonset.name).await?;
    if set.metadata.deletion_timestamp.is_some() {
        return Ok(true);
    }
    // With its namespace the pods may go before the DaemonSet does.
    let namespace = Api::<Namespace>::all(client).get(&daemonset.namespace).await?;
    Ok(namespace.metadata.deletion_timestamp.is_some())
}
