//! The pods of this node: who should be in the mesh, who is. Owns: the attached pods and the retry of those
//! that cannot be attached yet. Never: touches a connection. Called by `agent`'s control loop.

mod wanted;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::succession::{Adopted, Frozen};
use crate::capture::handover::ListenerSet;
use crate::capture::{
    Capture, CaptureError, Enrolled, Namespace, PodAttachment, PodNamespaces, Wanted, WorkerListeners,
};
use crate::model::{Hits, Identity, MtlsMode, Workload, WorkloadId};
use crate::net::netns::NetNs;
use crate::observe::ConnectionTable;
use crate::proxy::limits::{Budget, MAX_CONNECTIONS_PER_WORKLOAD, TunnelBudgets};
use crate::proxy::worker::{Command, LocalPod, Shared, WorkerHandle};
use crate::world::World;

use self::wanted::{attachment, enrolled, moved, names, to_find};

/// Pause before a pod that could not be attached is tried again; doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Longest pause between two tries.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A pod that should be attached and is not.
pub(super) struct Pending {
    pub(super) error: String,
    next_try: Instant,
    pause: Duration,
}

/// A pod that is attached.
pub(super) struct Attached {
    pub(super) pod: Arc<LocalPod>,
    attachment: PodAttachment,
    /// The listeners once more, for the holder and for a successor.
    set: Arc<ListenerSet>,
}

impl Attached {
    pub(super) fn addresses(&self) -> &[IpAddr] {
        &self.attachment.addresses
    }

    /// Whether the file that named the pod's namespace names it no more. The agent's own descriptor keeps the
    /// namespace alive, so the kernel cannot have given its number to another.
    fn vanished(&self) -> bool {
        !names(&self.attachment.netns, &self.pod.netns)
    }
}

/// A pod that is not there any more, with the way to its end of what is still open.
pub(super) struct Departed {
    pub(super) pod: Arc<LocalPod>,
    pub(super) addresses: Vec<IpAddr>,
}

/// What one reconciliation changed.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) attached: Vec<WorkloadId>,
    /// Pod and namespace cookie, as listener sets are named.
    pub(super) withdrawn: Vec<(String, u64)>,
    /// Those of the withdrawn that did not just leave the mesh but are gone, or another pod by now.
    pub(super) departed: Vec<Departed>,
    /// Something is left to do: the next tick tries again.
    pub(super) unfinished: bool,
}

/// The attached and the pending pods of this node.
pub(super) struct Pods {
    pub(super) attached: BTreeMap<WorkloadId, Attached>,
    pub(super) pending: BTreeMap<WorkloadId, Pending>,
    /// Where the pods' namespaces are that no annotation names.
    pub(super) namespaces: PodNamespaces,
    /// What of them the last reconciliation has seen.
    reconciled: u64,
    /// Withdrawn pods that still have relayed connections.
    leaving: HashSet<WorkloadId>,
    /// Listeners that a former agent left and nobody has claimed yet.
    adopted: Adopted,
    /// Set while a successor has this agent's listeners and is not ready: two agents must not enrol at once.
    frozen: Frozen,
    hits: Hits,
}

impl Pods {
    /// No pods yet; `adopted` listeners are used for the pods that they belong to.
    pub(super) fn new(adopted: Adopted, frozen: Frozen, namespaces: PodNamespaces, hits: Hits) -> Self {
        Self {
            attached: BTreeMap::new(),
            pending: BTreeMap::new(),
            namespaces,
            reconciled: 0,
            leaving: HashSet::new(),
            adopted,
            frozen,
            hits,
        }
    }

    /// Whether there is something to reconcile though the world is the same: a pod that is to be tried again, or a
    /// namespace that was found.
    pub(super) fn is_due(&mut self, world: &World, node: &str) -> bool {
        let now = Instant::now();
        if self.namespaces.is_due(now) {
            let local: Vec<&Arc<Workload>> = enrolled(world, node).collect();
            self.namespaces.update(&to_find(&local), now);
        }
        !self.pending.is_empty() || self.namespaces.changes() != self.reconciled
    }

    /// Further listeners of a predecessor; pods that waited for them are tried at once.
    pub(super) fn adopt_late(&mut self, late: Adopted) {
        self.adopted.extend(late);
        self.pending.clear();
    }

    /// Every attached pod's listeners.
    pub(super) fn sets(&self) -> Vec<Arc<ListenerSet>> {
        self.attached.values().map(|attached| Arc::clone(&attached.set)).collect()
    }

    /// One pod's listeners.
    pub(super) fn set_of(&self, id: &WorkloadId) -> Option<&ListenerSet> {
        self.attached.get(id).map(|attached| &*attached.set)
    }

    /// Lets go of the adopted listeners that no pod has claimed; returns whose they were.
    pub(super) fn drop_unclaimed(&mut self) -> Vec<(String, u64)> {
        self.adopted.drain().map(|(key, _)| key).collect()
    }

    /// Brings the attached pods in line with `world`. Returns what changed. An error means that a worker is
    /// gone; what goes wrong with one pod is logged, shown and tried again.
    pub(super) async fn reconcile(
        &mut self,
        world: &World,
        capture: &mut Capture,
        shared: &Shared,
        workers: &[WorkerHandle],
    ) -> anyhow::Result<Changes> {
        let local: Vec<&Arc<Workload>> = enrolled(world, &shared.node).collect();
        // Held open, a namespace would never end.
        self.namespaces.retain(|id| world.workload(id).is_some_and(|workload| !workload.ended));
        self.namespaces.update(&to_find(&local), Instant::now());
        self.reconciled = self.namespaces.changes();
        let wanted: BTreeMap<WorkloadId, PodAttachment> = local
            .into_iter()
            .filter_map(|workload| {
                Some((workload.id.clone(), attachment(world, workload, &self.namespaces)?))
            })
            .collect();
        let mut changes = Changes::default();
        let mut ready = Vec::new();
        // Withdraw first: a pod that is made again may come back with the address of the one that goes.
        let gone: Vec<WorkloadId> = self
            .attached
            .iter()
            .filter(|(id, attached)| wanted.get(*id).is_none_or(|wanted| moved(wanted, attached)))
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            if self.frozen.get() {
                changes.unfinished = true;
                break;
            }
            let Some(attached) = self.withdraw(&id, capture, workers).await? else { continue };
            changes.withdrawn.push((attached.set.pod.clone(), attached.set.cookie));
            let here = world.workload(&id).filter(|workload| *workload.node == *shared.node);
            let same = |now: PodAttachment| !moved(&now, &attached);
            if !here.and_then(|workload| attachment(world, workload, &self.namespaces)).is_some_and(same) {
                let Attached { pod, attachment, .. } = attached;
                changes.departed.push(Departed { pod, addresses: attachment.addresses });
            }
        }
        self.pending.retain(|id, _| wanted.contains_key(id));
        for (id, attachment) in wanted {
            if self.frozen.get() {
                changes.unfinished = true;
                break;
            }
            if self.attached.contains_key(&id) {
                changes.unfinished |= !self.refresh(&id, attachment, capture);
            } else if let Some(listeners) = self.attach(&id, attachment, capture) {
                ready.push((id.clone(), listeners));
                changes.attached.push(id);
                // Enrolling takes milliseconds for each pod: the heartbeat and questions come in between.
                tokio::task::yield_now().await;
            }
        }
        if !changes.attached.is_empty() || !changes.withdrawn.is_empty() {
            self.publish(world, shared);
        }
        // Only now: a connection that is accepted may be for any other pod of the node.
        for (id, listeners) in ready {
            self.serve(&id, listeners, workers).await?;
        }
        Ok(changes)
    }

    /// Withdraws the pods that an agent before had enrolled and that left the mesh while none was there.
    pub(super) fn disown(&mut self, world: &World, node: &str, capture: &mut Capture) {
        let outside = world.workloads_on(node).filter(|workload| !workload.enrolled);
        let outside: Vec<&Arc<Workload>> =
            outside.filter(|workload| !workload.host_network && !workload.ended).collect();
        let mut namespaces = self.namespaces.another();
        namespaces.update(&to_find(&outside), Instant::now());
        let found = outside.into_iter().filter_map(|workload| {
            attachment(world, workload, &namespaces).or_else(|| attachment(world, workload, &self.namespaces))
        });
        for attachment in found {
            match capture.disown(&attachment) {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(pod = %attachment.id, "withdrawn from the mesh: it left while no agent was here");
                    self.leaving.insert(attachment.id);
                }
                Err(error) => {
                    tracing::warn!(pod = %attachment.id, %error, "a pod of an agent before could not be withdrawn");
                }
            }
        }
    }

    /// Withdraws every pod, at the agent's end.
    pub(super) async fn withdraw_all(
        &mut self,
        capture: &mut Capture,
        workers: &[WorkerHandle],
    ) -> anyhow::Result<Vec<(String, u64)>> {
        let ids: Vec<WorkloadId> = self.attached.keys().cloned().collect();
        let mut withdrawn = Vec::with_capacity(ids.len());
        for id in ids {
            let attached = self.withdraw(&id, capture, workers).await?;
            withdrawn.extend(attached.map(|attached| (attached.set.pod.clone(), attached.set.cookie)));
        }
        Ok(withdrawn)
    }

    async fn withdraw(
        &mut self,
        id: &WorkloadId,
        capture: &mut Capture,
        workers: &[WorkerHandle],
    ) -> anyhow::Result<Option<Attached>> {
        let Some(attached) = self.attached.remove(id) else { return Ok(None) };
        // Kernel first, then the listeners: what is steered to a listener must find it served.
        if let Err(error) = capture.withdraw(id) {
            tracing::warn!(pod = %id, %error, "the pod could not be withdrawn cleanly");
        }
        for worker in workers {
            worker.send(Command::Remove(id.clone())).await?;
        }
        self.leaving.insert(id.clone());
        tracing::info!(pod = %id, "withdrawn from the mesh");
        Ok(Some(attached))
    }

    /// Whether a pod's namespace went while its object stays: a pod that crashed tells nobody.
    pub(super) fn any_vanished(&self) -> bool {
        !self.frozen.get() && self.attached.values().any(Attached::vanished)
    }

    /// Tells the kernel what has changed about an attached pod. Returns whether that went well.
    fn refresh(&mut self, id: &WorkloadId, attachment: PodAttachment, capture: &mut Capture) -> bool {
        let Some(attached) = self.attached.get_mut(id) else { return true };
        if attached.attachment.fail_closed == attachment.fail_closed {
            // The same namespace may have another name now.
            attached.attachment = attachment;
            return true;
        }
        if let Err(error) = capture.set_fail_closed(id, attachment.fail_closed) {
            tracing::warn!(pod = %id, %error, "what holds without an agent could not be changed; trying again");
            return false;
        }
        attached.attachment = attachment;
        true
    }

    /// Enrols a pod. Returns the listeners that are to be served now; none if it has to wait.
    fn attach(
        &mut self,
        id: &WorkloadId,
        attachment: PodAttachment,
        capture: &mut Capture,
    ) -> Option<Vec<WorkerListeners>> {
        if self.pending.get(id).is_some_and(|pending| Instant::now() < pending.next_try) {
            return None;
        }
        let enrolled = match self.enrol(id, &attachment, capture) {
            Ok(enrolled) => enrolled,
            Err(error) => {
                if let Some(limit) = error.limit() {
                    self.hits.hit(limit);
                }
                self.postpone(id.clone(), error.to_string());
                return None;
            }
        };
        let set = match listener_set(id, &enrolled) {
            Ok(set) => Arc::new(set),
            Err(error) => {
                // Most likely no descriptors are left. What is enrolled and not served would hang.
                let undone = capture.withdraw(id).and_then(|()| capture.release(id));
                if let Err(error) = undone {
                    tracing::warn!(pod = %id, %error, "an enrolment could not be undone");
                }
                let error = format!("its listeners cannot be kept: {error}; raise the limit of open files");
                self.postpone(id.clone(), error);
                return None;
            }
        };
        self.pending.remove(id);
        self.leaving.remove(id);
        let pod = Arc::new(LocalPod {
            id: id.clone(),
            netns: enrolled.netns,
            cookie: enrolled.cookie,
            addresses: attachment.addresses.clone(),
            budget: Budget::new(MAX_CONNECTIONS_PER_WORKLOAD),
            tunnels: TunnelBudgets::of_workload(),
        });
        tracing::info!(pod = %id, addresses = ?attachment.addresses, "enrolled in the mesh");
        self.attached.insert(id.clone(), Attached { pod, attachment, set });
        Some(enrolled.listeners)
    }

    /// Hands a pod's listeners to the workers.
    async fn serve(
        &self,
        id: &WorkloadId,
        listeners: Vec<WorkerListeners>,
        workers: &[WorkerHandle],
    ) -> anyhow::Result<()> {
        let Some(attached) = self.attached.get(id) else { return Ok(()) };
        for (index, listeners) in listeners.into_iter().enumerate() {
            let worker = &workers[index % workers.len()];
            worker.send(Command::Add { pod: Arc::clone(&attached.pod), listeners }).await?;
        }
        Ok(())
    }

    /// With the listeners that a former agent left for this very namespace, or with new ones.
    fn enrol(
        &mut self,
        id: &WorkloadId,
        attachment: &PodAttachment,
        capture: &mut Capture,
    ) -> Result<Enrolled, CaptureError> {
        let left = attachment.netns.open().ok().map(|netns| (id.to_string(), netns.cookie()));
        let adopted = left.and_then(|key| self.adopted.remove(&key)).and_then(worker_listeners);
        capture.enrol_with(attachment, adopted)
    }

    fn postpone(&mut self, id: WorkloadId, error: String) {
        let pause = self.pending.get(&id).map_or(RETRY_FIRST, |last| (last.pause * 2).min(RETRY_MAX));
        if self.pending.get(&id).is_none_or(|last| last.error != error) {
            tracing::warn!(pod = %id, error, "the pod cannot be enrolled yet; trying again");
        }
        self.pending.insert(id, Pending { error, next_try: Instant::now() + pause, pause });
    }

    /// Takes away the return route of withdrawn pods whose last relayed connection has ended.
    pub(super) fn release_drained(&mut self, capture: &mut Capture, connections: &ConnectionTable) {
        if self.leaving.is_empty() {
            return;
        }
        let busy: HashSet<WorkloadId> = connections
            .list()
            .into_iter()
            .flat_map(|conn| [conn.meta.source.workload, conn.meta.destination.workload])
            .flatten()
            .map(|workload| workload.id.clone())
            .collect();
        self.leaving.retain(|id| {
            if busy.contains(id) {
                return true;
            }
            if let Err(error) = capture.release(id) {
                tracing::warn!(pod = %id, %error, "what the mesh had set up in the pod could not be undone");
            }
            false
        });
    }

    /// Tries a pod that waits for its next try at once: something about it is new.
    pub(super) fn try_now(&mut self, id: &WorkloadId) {
        self.pending.remove(id);
    }

    /// Whether a pod is attached in this very namespace.
    pub(super) fn is_attached(&self, id: &WorkloadId, cookie: u64) -> bool {
        self.attached.get(id).is_some_and(|attached| attached.pod.cookie == cookie)
    }

    /// Shows the workers who is here, and the certificate manager whose certificates are needed.
    fn publish(&self, world: &World, shared: &Shared) {
        let pods = self.attached.iter().map(|(id, attached)| (id.clone(), Arc::clone(&attached.pod)));
        shared.pods.store(Arc::new(pods.collect()));
        let identities: HashSet<Identity> = self
            .attached
            .keys()
            .filter_map(|id| world.workload(id))
            .map(|workload| workload.identity.clone())
            .collect();
        shared.certs.retain(&identities);
        for identity in identities {
            let certs = Arc::clone(&shared.certs);
            // Asked for now, so that the pod's first connection does not wait; the manager retries on its own.
            tokio::spawn(async move {
                if let Err(error) = certs.fetch(&identity).await {
                    tracing::warn!(%identity, %error, "no certificate yet");
                }
            });
        }
    }
}

/// The same listeners once more, under descriptors of their own.
fn listener_set(id: &WorkloadId, enrolled: &Enrolled) -> std::io::Result<ListenerSet> {
    let mut set = ListenerSet::empty(id.to_string(), enrolled.cookie);
    for worker in &enrolled.listeners {
        set.outbound.push(worker.outbound.try_clone()?.into());
        set.inbound.push(worker.inbound.try_clone()?.into());
        set.hbone.push(worker.hbone.try_clone()?.into());
    }
    Ok(set)
}

/// A handed-over set as the workers serve it; none if it is not complete.
fn worker_listeners(set: ListenerSet) -> Option<Vec<WorkerListeners>> {
    let ListenerSet { outbound, inbound, hbone, .. } = set;
    if outbound.is_empty() || outbound.len() != inbound.len() || outbound.len() != hbone.len() {
        return None;
    }
    let sets = outbound.into_iter().zip(inbound).zip(hbone);
    Some(
        sets.map(|((outbound, inbound), hbone)| WorkerListeners {
            outbound: outbound.into(),
            inbound: inbound.into(),
            hbone: hbone.into(),
        })
        .collect(),
    )
}
