//! The agent's own end: the order in which its parts stop, so that nothing is lost. Called by `agent::run`.

use std::time::{Duration, Instant};

use super::{Agent, CLAIM_PAUSE, End, drain};
use crate::admin::State;
use crate::proxy::worker::WorkerHandle;

impl Agent {
    /// Ends everything in the order that loses nothing. Goes on past errors and returns the first.
    pub(super) async fn end(mut self, mut end: End) -> anyhow::Result<End> {
        let since = Instant::now();
        let mut result = Ok(());
        if end == End::Kept {
            end = self.serve_on().await;
        }
        if let Some(heartbeat) = &self.heartbeat {
            heartbeat.abort();
        }
        if let Some(probers) = self.probers.take() {
            probers.abort();
        }
        self.cni.close();
        if end == End::Signal
            && self.settings.daemonset.is_some()
            && let Some((bin_dir, conf_dir)) = &self.settings.cni_dirs
        {
            // For good: a plugin that nobody answers would keep pods from starting.
            match crate::cni::files::remove(bin_dir, conf_dir) {
                Ok(_any) => {}
                Err(error) => {
                    tracing::error!(%error, "the CNI plugin is still in the node's network configuration")
                }
            }
        }
        self.view.set_state(State::Draining);
        tracing::info!(?end, connections = self.shared.connections.len(), "draining");
        if end == End::Signal {
            // New connections must not come to an agent that leaves.
            self.succession.stop();
            match self.pods.withdraw_all(&mut self.capture, &self.workers).await {
                Ok(withdrawn) => self.succession.forget(&withdrawn).await,
                Err(error) => result = Err(error),
            }
        } else {
            // The successor opens the same doors.
            self.servers.stop();
        }
        // The grace that is left after serving on.
        let deadline = if end == End::Kept { Duration::ZERO } else { self.settings.drain_deadline };
        // A pod that has handed over is told to end at once, which is no reason to cut what it still relays.
        let patient = end == End::Succeeded && self.settings.daemonset.is_some();
        let (terminate, interrupt) = (&mut self.terminate, &mut self.interrupt);
        let hurry = async {
            tokio::select! { _ = terminate.recv(), if !patient => {}, _ = interrupt.recv() => {} }
        };
        drain::drain(&self.shared, &self.workers, deadline, hurry).await;
        if end == End::Signal {
            // A predecessor that still drains needs the routes; its own deadline ends it.
            while !self.capture.claim() && since.elapsed() < deadline {
                tokio::time::sleep(CLAIM_PAUSE).await;
            }
        }
        self.servers.stop();
        self.workers.iter().for_each(WorkerHandle::end);
        for worker in self.workers {
            worker.stop();
        }
        drop(self.names);
        self.stop_certs.send_replace(true);
        result = result.and(self.certs_task.await.map_err(Into::into));
        if end == End::Signal {
            result = result.and(self.capture.shutdown().map_err(Into::into));
        }
        tracing::info!("ended");
        result.map(|()| end)
    }

    /// Told to end, with another agent to follow as soon as this one has: serves to the last moment. Whoever comes
    /// earlier takes over.
    async fn serve_on(&mut self) -> End {
        tracing::info!(
            connections = self.shared.connections.len(),
            "told to end; serving until the drain deadline"
        );
        let (shared, workers, deadline) = (&self.shared, &self.workers, self.settings.drain_deadline);
        tokio::select! {
            _idle = drain::gone_within(shared, workers, deadline) => End::Kept,
            () = self.succession.succeeded() => End::Succeeded,
            _ = self.terminate.recv() => End::Kept,
            _ = self.interrupt.recv() => End::Kept,
        }
    }
}
