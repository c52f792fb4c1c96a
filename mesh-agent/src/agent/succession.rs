//! Who serves the listeners before and after this agent: a predecessor that hands them over, a holder that keeps
//! them, a successor that takes them. Owns: those three conversations. Never: opens or serves a listener.
//! Called by `agent`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::pods::{Changes, Pods};
use super::servers::{BIND_PATIENCE, patiently};
use crate::capture::handover::{
    Event, HandoverError, HandoverServer, HolderClient, ListenerSet, Predecessor, Refusal,
};
use crate::config::Settings;
use crate::model::{Hits, Limit};

/// Pause after the handover socket failed.
const SERVE_PAUSE: Duration = Duration::from_secs(1);

/// How long the holder may take for one exchange: the control loop waits for it, and a holder is only a net.
const HOLDER_PATIENCE: Duration = Duration::from_millis(500);
/// Pause after a holder failed before it is looked for again.
const HOLDER_PAUSE: Duration = Duration::from_secs(2);

/// Listener sets by pod and namespace cookie.
pub(super) type Adopted = HashMap<(String, u64), ListenerSet>;

/// Whether a successor is between taking the listeners and being ready. Until then pods are neither enrolled
/// nor withdrawn here and verdicts not written: it does that already.
#[derive(Clone, Debug, Default)]
pub(super) struct Frozen(Arc<AtomicBool>);

impl Frozen {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, frozen: bool) {
        self.0.store(frozen, Ordering::Release);
    }
}

/// The state of all three conversations.
pub(super) struct Succession {
    predecessor: Option<Predecessor>,
    holder: Option<HolderClient>,
    holder_path: Option<PathBuf>,
    /// When to ask the holder whether it is still there, or to look for one.
    holder_due: tokio::time::Instant,
    server: Option<JoinHandle<()>>,
    succeeded: Option<oneshot::Receiver<()>>,
    /// What a successor would be given now.
    sets: Arc<Mutex<Vec<Arc<ListenerSet>>>>,
    adopted: Adopted,
    frozen: Frozen,
    hits: Hits,
}

/// Where an agent hands its listeners to its successor: beside its admin socket.
fn handover_path(settings: &Settings) -> PathBuf {
    let mut path = settings.admin_socket.clone().into_os_string();
    path.push(".handover");
    path.into()
}

impl Succession {
    /// Whether an agent is at work that would hand over; nothing is asked of it.
    pub(super) async fn somebody_there(settings: &Settings) -> bool {
        Predecessor::connect(&handover_path(settings)).await.is_ok()
    }

    /// Asks the predecessor, or else the holder, for the listeners.
    pub(super) async fn begin(settings: &Settings, hits: Hits) -> Result<Self, HandoverError> {
        let mut this = Self {
            predecessor: None,
            holder: None,
            holder_path: settings.holder_socket.clone(),
            holder_due: tokio::time::Instant::now(),
            server: None,
            succeeded: None,
            sets: Arc::default(),
            adopted: Adopted::new(),
            frozen: Frozen::default(),
            hits,
        };
        match Predecessor::connect(&handover_path(settings)).await {
            Ok(mut predecessor) => {
                let sets = predecessor.take().await?;
                tracing::info!(pods = sets.len(), "took the listeners of the running agent");
                this.adopt(sets);
                this.predecessor = Some(predecessor);
            }
            Err(HandoverError::NobodyThere { .. }) => {}
            Err(error) => return Err(error),
        }
        this.connect_holder().await;
        if this.predecessor.is_none() {
            this.fetch().await;
        }
        Ok(this)
    }

    /// Takes what the holder kept. A holder that fails must not keep the node without an agent.
    async fn fetch(&mut self) {
        let Some(holder) = &mut self.holder else { return };
        match holder.fetch().await {
            Ok(sets) => {
                tracing::info!(pods = sets.len(), "took the listeners that the holder kept");
                self.adopt(sets);
            }
            Err(error) => {
                tracing::warn!(%error, "the holder gave no listeners; connections that waited are lost");
                self.holder = None;
            }
        }
    }

    fn adopt(&mut self, sets: Vec<ListenerSet>) {
        self.adopted.extend(keyed(sets));
    }

    /// Whether a successor is at work.
    pub(super) fn frozen(&self) -> Frozen {
        self.frozen.clone()
    }

    /// The listeners that a former agent left, once.
    pub(super) fn adopted(&mut self) -> Adopted {
        std::mem::take(&mut self.adopted)
    }

    pub(super) fn has_predecessor(&self) -> bool {
        self.predecessor.is_some()
    }

    /// Tells the predecessor, if there was one, that its pods are served; it stops accepting. Returns what it has
    /// enrolled in the meantime: it is not served by anybody else any more.
    pub(super) async fn ready(&mut self) -> Adopted {
        let Some(predecessor) = self.predecessor.take() else { return Adopted::new() };
        match predecessor.ready().await {
            Ok(late) => keyed(late).collect(),
            Err(error) => {
                // It may have stopped accepting or not; going on is right in both cases, ending only in one.
                tracing::warn!(%error, "the agent before did not take leave; going on");
                Adopted::new()
            }
        }
    }

    /// Opens the door for a successor, as soon as the predecessor has closed its own.
    pub(super) async fn serve_successors(&mut self, settings: &Settings) -> Result<(), HandoverError> {
        let path = handover_path(settings);
        let bind = || std::future::ready(HandoverServer::bind(&path));
        let server = patiently(BIND_PATIENCE, bind).await?;
        let (tell, succeeded) = oneshot::channel();
        let sets = Arc::clone(&self.sets);
        self.server = Some(tokio::spawn(serve(server, sets, self.frozen.clone(), tell)));
        self.succeeded = Some(succeeded);
        Ok(())
    }

    /// Completes when a successor serves the listeners. Cancel safe.
    pub(super) async fn succeeded(&mut self) {
        let told = match &mut self.succeeded {
            Some(succeeded) => succeeded.await.is_ok(),
            None => false,
        };
        if !told {
            std::future::pending::<()>().await;
        }
    }

    /// Closes the door.
    pub(super) fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }

    /// Shows the holder what was attached and what is gone. A holder that fails costs only the safety net.
    pub(super) async fn keep(&mut self, pods: &Pods, changes: &Changes) {
        *self.sets.lock() = pods.sets();
        if self.holder.is_none() {
            return;
        }
        let kept = tokio::time::timeout(HOLDER_PATIENCE, self.try_keep(pods, changes)).await;
        let error = match kept {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => format!("it did not answer for {HOLDER_PATIENCE:?}"),
        };
        tracing::warn!(
            error,
            "the holder did not take the listeners; a crash of the agent would now lose connections"
        );
        self.holder = None;
    }

    async fn try_keep(&mut self, pods: &Pods, changes: &Changes) -> Result<(), HandoverError> {
        let Some(holder) = &mut self.holder else { return Ok(()) };
        for (pod, cookie) in &changes.withdrawn {
            holder.drop_pod(pod, *cookie).await?;
        }
        for set in changes.attached.iter().filter_map(|id| pods.set_of(id)) {
            match holder.put(set).await {
                Err(HandoverError::Refused { refusal: refusal @ Refusal::Full { .. } }) => {
                    self.hits.hit(Limit::Holder);
                    tracing::warn!(pod = set.pod, %refusal, "the holder is full; a crash of the agent would lose connections to this pod");
                }
                put => drop(put?),
            }
        }
        Ok(())
    }

    /// The agent leaves for good: nothing is to be kept.
    pub(super) async fn forget(&mut self, withdrawn: &[(String, u64)]) {
        if self.holder.is_none() || withdrawn.is_empty() {
            return;
        }
        let told = tokio::time::timeout(HOLDER_PATIENCE, self.try_forget(withdrawn)).await;
        let error = match told {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => format!("it did not answer for {HOLDER_PATIENCE:?}"),
        };
        tracing::warn!(error, "the holder could not be told to let go");
        self.holder = None;
    }

    async fn try_forget(&mut self, withdrawn: &[(String, u64)]) -> Result<(), HandoverError> {
        let Some(holder) = &mut self.holder else { return Ok(()) };
        for (pod, cookie) in withdrawn {
            holder.drop_pod(pod, *cookie).await?;
        }
        Ok(())
    }

    /// Notices that the holder has gone, finds it again after it failed, and gives it everything.
    pub(super) async fn mend_holder(&mut self, pods: &Pods) {
        if self.holder_path.is_none() || tokio::time::Instant::now() < self.holder_due {
            return;
        }
        self.holder_due = tokio::time::Instant::now() + HOLDER_PAUSE;
        if let Some(holder) = &mut self.holder {
            if matches!(tokio::time::timeout(HOLDER_PATIENCE, holder.count()).await, Ok(Ok(_))) {
                return;
            }
            tracing::warn!("the holder has gone; a crash of the agent would now lose connections");
            self.holder = None;
        }
        self.connect_holder().await;
        let Some(holder) = &mut self.holder else { return };
        // The same holder may still be there, with pods that were withdrawn while it could not be told.
        let kept = match tokio::time::timeout(HOLDER_PATIENCE, holder.fetch()).await {
            Ok(Ok(kept)) => kept,
            _ => {
                self.holder = None;
                return;
            }
        };
        let sets = pods.sets();
        let known =
            |kept: &ListenerSet| sets.iter().any(|set| set.pod == kept.pod && set.cookie == kept.cookie);
        let everything = Changes {
            attached: pods.attached.keys().cloned().collect(),
            withdrawn: kept.into_iter().filter(|set| !known(set)).map(|set| (set.pod, set.cookie)).collect(),
            ..Changes::default()
        };
        self.keep(pods, &everything).await;
        if self.holder.is_some() {
            tracing::info!(pods = sets.len(), "the holder keeps the listeners");
        }
    }

    async fn connect_holder(&mut self) {
        let Some(path) = self.holder_path.as_deref() else { return };
        match tokio::time::timeout(HOLDER_PATIENCE, HolderClient::connect(path)).await {
            Ok(Ok(holder)) => self.holder = Some(holder),
            Ok(Err(error)) => tracing::debug!(%error, "no holder"),
            Err(_elapsed) => tracing::debug!("the holder does not answer"),
        }
    }
}

fn keyed(sets: Vec<ListenerSet>) -> impl Iterator<Item = ((String, u64), ListenerSet)> {
    sets.into_iter().map(|set| ((set.pod.clone(), set.cookie), set))
}

/// Serves one successor after the other until one is ready.
async fn serve(
    mut server: HandoverServer,
    sets: Arc<Mutex<Vec<Arc<ListenerSet>>>>,
    frozen: Frozen,
    tell: oneshot::Sender<()>,
) {
    loop {
        let provider = || {
            frozen.set(true);
            sets.lock().clone()
        };
        let served = server.serve(provider).await;
        if !matches!(served, Ok(Event::SuccessorReady { .. })) {
            frozen.set(false);
        }
        match served {
            Ok(Event::SuccessorReady { handed }) => {
                tracing::info!(pods = handed.len(), "a successor serves the listeners now");
                // Nobody waits for it any more: the agent is ending anyway.
                let _late = tell.send(());
                return;
            }
            Ok(Event::SuccessorFailed { error }) => {
                tracing::warn!(%error, "a successor came and failed; this agent goes on");
            }
            Err(error) => {
                tracing::warn!(%error, "the handover socket failed; trying again");
                tokio::time::sleep(SERVE_PAUSE).await;
            }
        }
    }
}
