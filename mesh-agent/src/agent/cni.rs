//! Answers the CNI plugin: a new pod waits for it, and is in the mesh before its first packet. Owns: the plugin's socket,
//! the questions that wait for the source to tell of their pod, the roll of namespaces outside. Never: enrols by itself
//! ([`super::pods`] does, from the namespace that is noted here). Called by `agent`'s control loop.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::pods::Pods;
use crate::admin::Takeover;
use crate::cni::keeper::{Keeper, Kept};
use crate::cni::protocol::{Answer, Ask, PodRef};
use crate::cni::server::{Asked, CniServer};
use crate::cni::{KNOWN_WITHIN, roll};
use crate::config::Settings;
use crate::model::{Workload, WorkloadId};
use crate::net::netns::NetNs;
use crate::observe::Metrics;
use crate::world::World;

/// A question whose pod is not known yet, or not enrolled yet.
struct Waiting {
    asked: Asked,
    until: Instant,
}

/// The plugin's desk.
pub(super) struct Cni {
    node: Arc<str>,
    socket: PathBuf,
    server: Option<JoinHandle<()>>,
    questions: Option<mpsc::Receiver<Asked>>,
    waiting: Vec<Waiting>,
    /// Whose sandboxes the plugin was called for, by `CNI_CONTAINERID`: they end by that name.
    sandboxes: HashMap<String, WorkloadId>,
    roll: roll::Writer,
    keeper: Option<Keeper>,
}

impl Cni {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            node: settings.node.as_str().into(),
            socket: settings.cni_socket.clone(),
            server: None,
            questions: None,
            waiting: Vec::new(),
            sandboxes: HashMap::new(),
            roll: roll::Writer::new(&settings.cni_socket),
            keeper: None,
        }
    }

    /// Opens the socket. `planned`: a predecessor hands over; its plugins ask here from now on.
    pub(super) fn open(&mut self, metrics: &Arc<Metrics>, planned: bool) -> anyhow::Result<()> {
        let takeover = if planned { Takeover::Planned } else { Takeover::Never };
        let (server, questions) = CniServer::bind(&self.socket, takeover, Arc::clone(metrics))?;
        self.server = Some(tokio::spawn(server.run()));
        self.questions = Some(questions);
        Ok(())
    }

    /// Keeps the plugin installed from now on: whoever is asked must be there first.
    pub(super) fn install(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let Some((bin_dir, conf_dir)) = settings.cni_dirs.clone() else { return Ok(()) };
        let kept = Kept {
            bin_dir,
            conf_dir,
            program: std::env::current_exe()?,
            socket: settings.cni_socket.clone(),
        };
        self.keeper = Some(Keeper::start(kept)?);
        Ok(())
    }

    /// Closes the socket; whoever waits asks again, perhaps a successor. The plugin's files stay.
    pub(super) fn close(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
        self.questions = None;
        self.waiting.clear();
        self.keeper = None;
    }

    /// The next question. Cancel safe.
    pub(super) async fn next(&mut self) -> Asked {
        if let Some(questions) = &mut self.questions
            && let Some(asked) = questions.recv().await
        {
            return asked;
        }
        std::future::pending().await
    }

    /// Takes a question in. Returns whether pods must be reconciled for it.
    pub(super) fn ask(&mut self, asked: Asked, pods: &mut Pods) -> bool {
        match &asked.ask {
            Ask::Add { .. } => {
                self.waiting.push(Waiting { asked, until: Instant::now() + KNOWN_WITHIN });
                false
            }
            Ask::Check { .. } => {
                self.waiting.push(Waiting { asked, until: Instant::now() });
                false
            }
            Ask::Del { sandbox } => {
                // Answered by `settle`, after the pod is withdrawn: the runtime then takes the namespace away.
                let gone = self.sandboxes.remove(sandbox);
                self.waiting.push(Waiting { asked, until: Instant::now() });
                self.forget(gone, pods)
            }
            Ask::Gc { sandboxes } => {
                let gone = |sandbox: &String| !sandboxes.contains(sandbox);
                let gone: Vec<WorkloadId> =
                    self.sandboxes.extract_if(|sandbox, _| gone(sandbox)).map(|(_, id)| id).collect();
                self.waiting.push(Waiting { asked, until: Instant::now() });
                self.forget(gone, pods)
            }
        }
    }

    /// Lets go of the namespaces of pods one of whose sandboxes has ended, unless another one of the same pod is there:
    /// the runtime may tell of an old one's end late, and twice. Returns whether there were any.
    fn forget(&self, gone: impl IntoIterator<Item = WorkloadId>, pods: &mut Pods) -> bool {
        let mut any = false;
        for id in gone {
            if !self.sandboxes.values().any(|other| *other == id) {
                pods.namespaces.forget(&id);
                any = true;
            }
        }
        any
    }

    /// Whether somebody waits.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Notes the namespaces of the pods that are asked about and known by now. Returns whether any is new, so that pods
    /// must be reconciled.
    pub(super) fn note(&mut self, world: &World, pods: &mut Pods) -> bool {
        let mut any = false;
        // Sandboxes whose end nobody has told of, as those of a pod that left the mesh, go with their pods.
        self.sandboxes.retain(|_, id| world.workload(id).is_some());
        let mut told = Vec::new();
        for waiting in &self.waiting {
            let Ask::Add { pod, addresses } = &waiting.asked.ask else { continue };
            let Some(netns) = &waiting.asked.netns else { continue };
            let Some(workload) = self.find(world, pod) else { continue };
            let told_before = self.sandboxes.get(&pod.sandbox) == Some(&workload.id);
            let done = told_before && pods.is_attached(&workload.id, netns.cookie());
            if !done && !workload.host_network {
                told.push((pod.sandbox.clone(), workload.id.clone(), addresses.clone(), Arc::clone(netns)));
            }
        }
        for (sandbox, id, addresses, netns) in told {
            if self.sandboxes.get(&sandbox) == Some(&id) && pods.pending.contains_key(&id) {
                continue;
            }
            if let Err(error) = pods.namespaces.told(&id, addresses, netns) {
                tracing::warn!(pod = %id, %error, "the namespace that the CNI plugin handed over cannot be used");
                continue;
            }
            pods.try_now(&id);
            // An older sandbox of the same pod has nothing left to end here.
            self.sandboxes.retain(|_, other| *other != id);
            self.sandboxes.insert(sandbox, id);
            any = true;
        }
        any
    }

    /// Answers whoever can be answered.
    pub(super) fn settle(&mut self, world: &World, pods: &Pods) {
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.waiting) {
            let answer = match &waiting.asked.ask {
                Ask::Del { .. } | Ask::Gc { .. } => Some(Answer::Done),
                Ask::Add { pod, .. } | Ask::Check { pod } => {
                    let netns = waiting.asked.netns.as_deref();
                    let answer = self.judge(world, pods, pod, netns);
                    answer.or_else(|| (now >= waiting.until).then(|| self.give_up(world, pods, pod)))
                }
            };
            match answer {
                // A plugin that was killed meanwhile needs no answer.
                Some(answer) => drop(waiting.asked.answer.send(answer)),
                None if waiting.asked.answer.is_closed() => {}
                None => self.waiting.push(waiting),
            }
        }
    }

    /// The answer about a pod; none while it may still come to be enrolled.
    fn judge(&self, world: &World, pods: &Pods, pod: &PodRef, netns: Option<&NetNs>) -> Option<Answer> {
        let workload = self.find(world, pod)?;
        if !workload.enrolled {
            return Some(Answer::Outside);
        }
        let is_attached = netns.is_some_and(|netns| pods.is_attached(&workload.id, netns.cookie()));
        is_attached.then_some(Answer::Enrolled)
    }

    /// The answer about a pod that has not come to be enrolled in time.
    fn give_up(&self, world: &World, pods: &Pods, pod: &PodRef) -> Answer {
        let Some(workload) = self.find(world, pod) else {
            let outside = world.namespaces().any(|(name, enrolled)| **name == *pod.namespace && !enrolled);
            return if outside { Answer::Outside } else { unknown(pod) };
        };
        let why = pods.pending.get(&workload.id).map(|pending| pending.error.clone());
        let why = why.unwrap_or_else(|| "it has no address, or the agent is handing over".to_owned());
        Answer::Refused { message: format!("pod {} cannot be enrolled: {why}", workload.id) }
    }

    /// The pod's workload, if the source has told of this very pod.
    fn find<'a>(&self, world: &'a World, pod: &PodRef) -> Option<&'a Arc<Workload>> {
        let ids = pod.ids().map(|id| WorkloadId(id.into()));
        let here = |workload: &&Arc<Workload>| *workload.node == *self.node;
        ids.filter_map(|id| world.workload(&id)).find(here)
    }

    /// Writes down which namespaces are not in the mesh, for when no agent is here.
    pub(super) fn keep_roll(&mut self, world: &World) {
        let outside = world.namespaces().filter(|(_, enrolled)| !enrolled).map(|(name, _)| &**name);
        if let Err(error) = self.roll.write(outside) {
            tracing::warn!(%error, "cni: the roll of namespaces outside the mesh cannot be written; without an agent their pods will not start");
        }
    }
}

fn unknown(pod: &PodRef) -> Answer {
    Answer::Refused {
        message: format!(
            "pod {}/{} (UID {}) is not known to the agent after {} s; see `mesh-agent status` for its source",
            pod.namespace,
            pod.name,
            pod.uid.as_deref().unwrap_or("unsaid"),
            KNOWN_WITHIN.as_secs()
        ),
    }
}
