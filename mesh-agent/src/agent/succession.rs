//! Who serves the listeners before and after this agent: a predecessor that hands them over, a holder that keeps
//! them, a successor that takes them. Owns: those three conversations. Never: opens or serves a listener.
//! Called by `agent`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::pods::{Changes, Pods};
use crate::capture::handover::{
    Event, HandoverError, HandoverServer, HolderClient, ListenerSet, Predecessor,
};
use crate::config::Settings;

/// How long the successor's doors wait for the predecessor's to close.
const BIND_PATIENCE: Duration = Duration::from_secs(5);
/// Pause after the handover socket failed.
const SERVE_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two tries to open them.
const BIND_PAUSE: Duration = Duration::from_millis(20);

/// Listener sets by pod and namespace cookie.
pub(super) type Adopted = HashMap<(String, u64), ListenerSet>;

/// The state of all three conversations.
pub(super) struct Succession {
    predecessor: Option<Predecessor>,
    holder: Option<HolderClient>,
    holder_path: Option<PathBuf>,
    server: Option<JoinHandle<()>>,
    succeeded: Option<oneshot::Receiver<()>>,
    /// What a successor would be given now.
    sets: Arc<Mutex<Vec<Arc<ListenerSet>>>>,
    adopted: Adopted,
}

/// Where an agent hands its listeners to its successor: beside its admin socket.
fn handover_path(settings: &Settings) -> PathBuf {
    let mut path = settings.admin_socket.clone().into_os_string();
    path.push(".handover");
    path.into()
}

impl Succession {
    /// Asks the predecessor, or else the holder, for the listeners.
    pub(super) async fn begin(settings: &Settings) -> Result<Self, HandoverError> {
        let mut this = Self {
            predecessor: None,
            holder: None,
            holder_path: settings.holder_socket.clone(),
            server: None,
            succeeded: None,
            sets: Arc::default(),
            adopted: Adopted::new(),
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
        if this.predecessor.is_none()
            && let Some(holder) = &mut this.holder
        {
            let sets = holder.fetch().await?;
            tracing::info!(pods = sets.len(), "took the listeners that the holder kept");
            this.adopt(sets);
        }
        Ok(this)
    }

    fn adopt(&mut self, sets: Vec<ListenerSet>) {
        self.adopted.extend(sets.into_iter().map(|set| ((set.pod.clone(), set.cookie), set)));
    }

    /// The listeners that a former agent left, once.
    pub(super) fn adopted(&mut self) -> Adopted {
        std::mem::take(&mut self.adopted)
    }

    pub(super) fn has_predecessor(&self) -> bool {
        self.predecessor.is_some()
    }

    /// Tells the predecessor that its pods are served; it stops accepting. Returns whether there was one.
    pub(super) async fn ready(&mut self, pods: &mut Pods) -> Result<bool, HandoverError> {
        let predecessor = self.predecessor.take();
        let planned = predecessor.is_some();
        if let Some(predecessor) = predecessor {
            // Pods that it enrolled in between were attached here as well, with listeners of this agent's.
            let since = predecessor.ready().await?;
            tracing::debug!(pods = since.len(), "the predecessor enrolled more in the meantime");
        }
        // What nobody claimed belongs to pods that are gone; held sockets would keep their namespaces.
        let unclaimed = pods.drop_unclaimed();
        self.forget(&unclaimed).await;
        Ok(planned)
    }

    /// Opens the door for a successor, as soon as the predecessor has closed its own.
    pub(super) async fn serve_successors(&mut self, settings: &Settings) -> Result<(), HandoverError> {
        let path = handover_path(settings);
        let server = patiently(|| HandoverServer::bind(&path)).await?;
        let (tell, succeeded) = oneshot::channel();
        let sets = Arc::clone(&self.sets);
        self.server = Some(tokio::spawn(serve(server, sets, tell)));
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
        if let Err(error) = self.try_keep(pods, changes).await {
            tracing::warn!(%error, "the holder did not take the listeners; a crash of the agent would now lose connections");
            self.holder = None;
        }
    }

    async fn try_keep(&mut self, pods: &Pods, changes: &Changes) -> Result<(), HandoverError> {
        let Some(holder) = &mut self.holder else { return Ok(()) };
        for (pod, cookie) in &changes.withdrawn {
            holder.drop_pod(pod, *cookie).await?;
        }
        for set in changes.attached.iter().filter_map(|id| pods.set_of(id)) {
            holder.put(set).await?;
        }
        Ok(())
    }

    /// The agent leaves for good: nothing is to be kept.
    pub(super) async fn forget(&mut self, withdrawn: &[(String, u64)]) {
        let Some(holder) = &mut self.holder else { return };
        for (pod, cookie) in withdrawn {
            if let Err(error) = holder.drop_pod(pod, *cookie).await {
                tracing::warn!(%error, "the holder could not be told to let go");
                return;
            }
        }
    }

    /// Finds the holder again after it failed, and gives it everything.
    pub(super) async fn mend_holder(&mut self, pods: &Pods) {
        if self.holder.is_some() || self.holder_path.is_none() {
            return;
        }
        self.connect_holder().await;
        let everything = Changes { attached: pods.attached.keys().cloned().collect(), withdrawn: Vec::new() };
        self.keep(pods, &everything).await;
    }

    async fn connect_holder(&mut self) {
        let Some(path) = self.holder_path.as_deref() else { return };
        match HolderClient::connect(path).await {
            Ok(holder) => self.holder = Some(holder),
            Err(error) => tracing::debug!(%error, "no holder"),
        }
    }
}

/// Serves one successor after the other until one is ready.
async fn serve(
    mut server: HandoverServer,
    sets: Arc<Mutex<Vec<Arc<ListenerSet>>>>,
    tell: oneshot::Sender<()>,
) {
    loop {
        match server.serve(|| sets.lock().clone()).await {
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

/// Tries to open a door until the predecessor has closed it.
pub(super) async fn patiently<T, E>(mut open: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let end = tokio::time::Instant::now() + BIND_PATIENCE;
    loop {
        match open() {
            Ok(door) => return Ok(door),
            Err(error) if tokio::time::Instant::now() >= end => return Err(error),
            Err(_) => tokio::time::sleep(BIND_PAUSE).await,
        }
    }
}
