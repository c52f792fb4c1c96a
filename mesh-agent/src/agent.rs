//! The composition root of `mesh-agent run`: builds every part, connects them, runs the control loop and ends
//! them in order. Owns: the lifetime of every task and thread of the agent. Never: decides anything itself.
//! Called by `main`.

mod drain;
mod judge;
mod pods;
mod servers;
mod succession;
mod view;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use self::pods::Pods;
use self::servers::Servers;
use self::succession::Succession;
use self::view::NodeView;
use crate::admin::State;
use crate::capture::{Capture, CaptureConfig, Event};
use crate::compile::MeshSettings;
use crate::config::Settings;
use crate::identity::{Ca, CertManager, CertSettings, DirCa, SystemClock};
use crate::observe::{AccessLog, ConnectionTable, Limit, Metrics, logging};
use crate::proxy::limits::{Budget, MAX_CONNECTIONS_PER_NODE};
use crate::proxy::worker::{Shared, WorkerHandle};
use crate::source::dir::{DirSettings, DirSource};
use crate::world::{World, WorldStore};

/// Verdicts the kernel holds at once.
const VERDICTS_MAX: usize = mesh_common::VERDICTS_MAX as usize;
/// How often the kernel is told that the agent lives, and what could not be done is tried again.
const TICK: Duration = Duration::from_millis(500);
/// A bypassed flow that was opened by a verdict read just before it was withdrawn shows up this much later.
const RECHECK: Duration = Duration::from_millis(50);
/// Descriptors the agent asks for: two per relayed connection and some for itself.
const OPEN_FILES: u64 = 2 * MAX_CONNECTIONS_PER_NODE as u64 + 4096;

/// Runs the agent until SIGTERM or SIGINT, or until a successor took over.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    let _log = logging::init(settings.log_format, &settings.log_level)?;
    raise_open_files();
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    control.block_on(async {
        let mut agent = Agent::start(settings).await?;
        let end = agent.live().await?;
        agent.end(end).await
    })
}

/// Runs the holder process.
pub fn hold(args: crate::cli::HoldArgs) -> anyhow::Result<()> {
    let _log = logging::init(logging::LogFormat::Text, "info")?;
    Ok(crate::capture::handover::holder::run(&args.socket)?)
}

/// Why the control loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A signal: nobody takes over, capture is undone.
    Signal,
    /// A successor serves the listeners: capture stays.
    Succeeded,
}

/// Everything the agent is made of.
struct Agent {
    settings: Settings,
    shared: Arc<Shared>,
    capture: Capture,
    pods: Pods,
    workers: Vec<WorkerHandle>,
    succession: Succession,
    servers: Servers,
    /// What the admin API reads; brought up to date by the control loop.
    view: Arc<NodeView>,
    stop_certs: watch::Sender<bool>,
    certs_task: tokio::task::JoinHandle<()>,
    interrupt: Signal,
    terminate: Signal,
}

impl Agent {
    async fn start(settings: Settings) -> anyhow::Result<Self> {
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        // The predecessor first: whatever fails below, it has not been told to stop yet.
        let mut succession = Succession::begin(&settings).await?;
        let mesh = MeshSettings {
            trust_domain: settings.trust_domain.as_str().into(),
            cluster_domain: settings.cluster_domain.as_str().into(),
            root_namespace: settings.root_namespace.as_str().into(),
        };
        let store = Arc::new(WorldStore::new(World::new(mesh)));
        let source = DirSource::start(&settings.manifests, DirSettings::default(), Arc::clone(&store))?;
        let capture = Capture::load(&CaptureConfig {
            bpf_dir: settings.bpf_dir.clone(),
            workers: settings.workers,
            cgroup_root: None,
            succeeds: succession.has_predecessor(),
        })?;
        let certs = CertManager::new(
            Ca::Dir(Arc::new(DirCa::open(&settings.ca_dir)?)),
            Arc::new(SystemClock),
            CertSettings { lifetime: settings.cert_lifetime, ..CertSettings::default() },
        );
        let (stop_certs, mut stopped) = watch::channel(false);
        let certs_task = tokio::spawn(Arc::clone(&certs).run(async move {
            // A sender that is gone means the same.
            let _stopped = stopped.wait_for(|stop| *stop).await;
        }));
        let shared = Arc::new(Shared {
            node: settings.node.as_str().into(),
            store,
            certs,
            connections: ConnectionTable::new(Metrics::new(), AccessLog::new(settings.access_log)),
            capture: capture.handle(),
            node_budget: Budget::new(MAX_CONNECTIONS_PER_NODE),
            pods: arc_swap::ArcSwap::default(),
            turns: parking_lot::Mutex::default(),
        });
        let workers = (0..settings.workers)
            .map(|index| WorkerHandle::start(index, Arc::clone(&shared)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let view = NodeView::new(&settings, Arc::clone(&shared), source);
        let mut agent = Self {
            pods: Pods::new(succession.adopted()),
            servers: Servers::default(),
            settings,
            shared,
            capture,
            workers,
            succession,
            view,
            stop_certs,
            certs_task,
            interrupt,
            terminate,
        };
        agent.take_office().await?;
        Ok(agent)
    }

    /// Serves this node's pods, tells the predecessor, opens the doors for questions.
    async fn take_office(&mut self) -> anyhow::Result<()> {
        self.reconcile().await?;
        let planned = self.succession.ready(&mut self.pods).await?;
        let gone = self.capture.prune()?;
        if gone > 0 {
            tracing::info!(pods = gone, "forgot pods that an agent before had enrolled and that are gone");
        }
        self.servers.start(&self.settings, &self.view, planned).await?;
        self.succession.serve_successors(&self.settings).await?;
        self.view.set_state(State::Ready);
        tracing::info!(
            node = %self.shared.node,
            version = env!("CARGO_PKG_VERSION"),
            pods = self.pods.attached.len(),
            workers = self.workers.len(),
            "ready"
        );
        Ok(())
    }

    /// The control loop.
    async fn live(&mut self) -> anyhow::Result<End> {
        let (published, mut changed) = watch::channel(0);
        self.shared.store.on_publish(Box::new(move |version| {
            published.send_replace(version);
        }));
        // What was published between the first reconciliation and now is caught up with.
        changed.mark_changed();
        let mut events = self.capture.events()?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut recheck: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Ok(End::Signal),
                _ = self.interrupt.recv() => return Ok(End::Signal),
                () = self.succession.succeeded() => return Ok(End::Succeeded),
                _ = changed.changed() => {
                    self.reconcile().await?;
                    self.judge_again()?;
                    recheck = Some(Instant::now() + RECHECK);
                }
                event = events.next() => {
                    if self.kernel_event(event?) {
                        self.publish_verdicts()?;
                    }
                }
                () = at(recheck) => {
                    recheck = None;
                    self.judge_flows()?;
                }
                _ = tick.tick() => self.tick().await?,
            }
        }
    }

    /// What must be done again and again.
    async fn tick(&mut self) -> anyhow::Result<()> {
        self.shared.capture.heartbeat()?;
        self.capture.claim();
        if !self.pods.pending.is_empty() {
            self.reconcile().await?;
        }
        self.pods.release_drained(&mut self.capture, &self.shared.connections);
        self.succession.mend_holder(&self.pods).await;
        Ok(())
    }

    /// Brings pods, verdicts and the holder in line with the current snapshot.
    async fn reconcile(&mut self) -> anyhow::Result<()> {
        let world = self.shared.store.load();
        let changes = self.pods.reconcile(&world, &mut self.capture, &self.shared, &self.workers).await?;
        self.succession.keep(&self.pods, &changes).await;
        self.view.update(&self.pods);
        self.publish_verdicts()
    }

    /// Installs the kernel's verdicts for flows between pods of this node.
    fn publish_verdicts(&self) -> anyhow::Result<()> {
        let world = self.shared.store.load();
        let pods: Vec<judge::LocalView<'_>> = self
            .pods
            .attached
            .iter()
            .filter_map(|(id, attached)| {
                Some(judge::LocalView {
                    cookie: attached.pod.cookie,
                    workload: world.workload(id)?,
                    ports: self.shared.capture.listening(attached.pod.cookie).unwrap_or_default(),
                })
            })
            .collect();
        let (verdicts, left_out) = judge::verdicts(&world, &self.shared.node, &pods, VERDICTS_MAX);
        let change = self.shared.capture.set_verdicts(&verdicts)?;
        let left_out = left_out + change.over_limit;
        if left_out > 0 {
            self.shared.connections.metrics().limit_hits(Limit::Verdicts, left_out as u64);
        }
        Ok(())
    }

    /// Judges everything that is open under the new snapshot: the relayed connections and the bypassed flows.
    fn judge_again(&self) -> anyhow::Result<()> {
        let world = self.shared.store.load();
        let cut = self.shared.connections.cut_if(&|meta| judge::still_allowed(&world, meta));
        if cut > 0 {
            tracing::info!(connections = cut, "cut: the new state does not allow them");
        }
        self.judge_flows()
    }

    fn judge_flows(&self) -> anyhow::Result<()> {
        let world = self.shared.store.load();
        for flow in self.shared.capture.flows()? {
            let owner = self.pods.attached.iter().find(|(_, attached)| attached.pod.cookie == flow.opener);
            let Some((id, attached)) = owner else { continue };
            let source = world.workload(id).map(Arc::as_ref);
            if judge::flow_allowed(&world, source, &flow) {
                continue;
            }
            tracing::info!(source = %id, from = %flow.local, to = %flow.remote, "bypassed flow cut: policy changed");
            self.view.flow_cut(&flow);
            if let Err(error) = self.shared.capture.destroy(&attached.pod.netns, &flow) {
                tracing::warn!(from = %flow.local, to = %flow.remote, %error, "a bypassed flow could not be cut");
            }
        }
        Ok(())
    }

    /// Files what the kernel reports. Returns whether the verdicts must be computed anew.
    fn kernel_event(&self, event: Event) -> bool {
        match event {
            Event::Listening { .. } => true,
            Event::FlowClosed(closed) => {
                self.view.flow_closed(&closed);
                false
            }
        }
    }

    /// Ends everything in the order that loses nothing.
    async fn end(mut self, end: End) -> anyhow::Result<()> {
        self.view.set_state(State::Draining);
        tracing::info!(?end, connections = self.shared.connections.len(), "draining");
        if end == End::Signal {
            // New connections must not come to an agent that leaves.
            self.succession.stop();
            let withdrawn = self.pods.withdraw_all(&mut self.capture, &self.workers).await?;
            self.succession.forget(&withdrawn).await;
        } else {
            // The successor opens the same doors.
            self.servers.stop();
        }
        drain::drain(&self.shared.connections, &self.workers, self.settings.drain_deadline).await?;
        self.servers.stop();
        for worker in self.workers {
            worker.stop();
        }
        self.stop_certs.send_replace(true);
        self.certs_task.await?;
        if end == End::Signal {
            self.capture.shutdown()?;
        }
        tracing::info!("ended");
        Ok(())
    }
}

/// Completes at a point in time; never, if there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Raises the soft limit of open files to what the agent's own limits need, as far as the hard limit lets it.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = OPEN_FILES.min(hard);
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_err() {
        tracing::warn!(soft, wanted, "the limit of open files could not be raised");
    }
}
