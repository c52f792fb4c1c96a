//! The composition root of `mesh-agent run`: builds every part, connects them, runs the control loop and ends
//! them in order. Owns: the lifetime of every task and thread of the agent. Never: decides anything itself.
//! Called by `main`.

mod drain;
mod judge;
mod pods;
mod succession;
mod view;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use self::pods::Pods;
use self::succession::Succession;
use crate::capture::{Capture, CaptureConfig, Event};
use crate::config::Settings;
use crate::identity::{Ca, CertManager, CertSettings, DirCa, SystemClock};
use crate::observe::{AccessLog, ConnectionTable, Limit, Metrics};
use crate::proxy::limits::{Budget, MAX_CONNECTIONS_PER_NODE};
use crate::proxy::worker::{Shared, WorkerHandle};
use crate::source::dir::DirSource;
use crate::world::WorldStore;

/// How often the kernel is told that the agent lives, and what could not be done is tried again.
const TICK: Duration = Duration::from_millis(500);
/// A bypassed flow that was opened by a verdict read just before it was withdrawn shows up this much later.
const RECHECK: Duration = Duration::from_millis(50);
/// Descriptors the agent asks for: two per relayed connection and some for itself.
const OPEN_FILES: u64 = 2 * MAX_CONNECTIONS_PER_NODE as u64 + 4096;

/// Runs the agent until SIGTERM or SIGINT, or until a successor took over.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    raise_open_files();
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    control.block_on(async {
        let mut agent = Agent::start(settings).await?;
        let end = agent.live().await?;
        agent.end(end).await
    })
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
    source: DirSource,
    pods: Pods,
    workers: Vec<WorkerHandle>,
    succession: Succession,
    servers: view::Servers,
    /// The view that the admin API reads; brought up to date by the control loop.
    node_view: Arc<view::NodeView>,
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
        let store = Arc::new(WorldStore::new(settings.mesh()));
        let source = DirSource::start(&settings.manifests, Arc::clone(&store))
            .with_context(|| format!("--manifests {}", settings.manifests.display()))?;
        let capture = Capture::load(&CaptureConfig {
            bpf_dir: settings.bpf_dir.clone(),
            workers: settings.workers,
        })?;
        let ca = DirCa::open(&settings.ca_dir)?;
        let cert_settings = CertSettings { lifetime: settings.cert_lifetime, ..CertSettings::default() };
        let certs = CertManager::new(Ca::Dir(ca), Arc::new(SystemClock), cert_settings);
        let (stop_certs, mut stopped) = watch::channel(false);
        let certs_task = tokio::spawn(Arc::clone(&certs).run(async move {
            drop(stopped.wait_for(|stop| *stop).await);
        }));
        let metrics = Metrics::new();
        let connections =
            ConnectionTable::new(Arc::clone(&metrics), AccessLog::new(settings.access_log));
        let shared = Arc::new(Shared {
            node: settings.node.as_str().into(),
            store,
            certs,
            connections,
            capture: capture.handle(),
            node_budget: Budget::new(MAX_CONNECTIONS_PER_NODE),
            pods: arc_swap::ArcSwap::default(),
            turns: parking_lot::Mutex::default(),
        });
        let workers = (0..settings.workers)
            .map(|index| WorkerHandle::start(index, Arc::clone(&shared)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let node_view = view::NodeView::new(&settings, Arc::clone(&shared), source.status());
        let mut agent = Self {
            pods: Pods::new(succession.adopted()),
            servers: view::Servers::default(),
            settings,
            shared,
            capture,
            source,
            workers,
            succession,
            node_view,
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
        self.shared.capture.heartbeat()?;
        self.reconcile().await?;
        self.succession.ready(&mut self.pods).await?;
        self.servers.start(&self.settings, Arc::clone(&self.node_view)).await?;
        self.succession.serve_successors(&self.settings)?;
        self.node_view.set_ready(true);
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
        let mut events = self.capture.events()?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut recheck: Option<Instant> = None;
        loop {
            let recheck_at = recheck.map(tokio::time::Instant::from_std);
            tokio::select! {
                _ = self.terminate.recv() => return Ok(End::Signal),
                _ = self.interrupt.recv() => return Ok(End::Signal),
                handed = self.succession.succeeded(&self.pods) => {
                    if handed? {
                        return Ok(End::Succeeded);
                    }
                }
                _ = changed.changed() => {
                    self.reconcile().await?;
                    self.judge_again()?;
                    recheck = Some(Instant::now() + RECHECK);
                }
                Some(event) = events.recv() => {
                    if self.kernel_event(event) {
                        self.publish_verdicts()?;
                    }
                }
                () = tokio::time::sleep_until(recheck_at.unwrap_or_else(tokio::time::Instant::now)),
                    if recheck_at.is_some() =>
                {
                    recheck = None;
                    self.judge_flows()?;
                }
                _ = tick.tick() => {
                    self.shared.capture.heartbeat()?;
                    if !self.pods.pending.is_empty() {
                        self.reconcile().await?;
                    }
                }
            }
        }
    }

    /// Brings pods, verdicts and the holder in line with the current snapshot.
    async fn reconcile(&mut self) -> anyhow::Result<()> {
        let world = self.shared.store.load();
        let changes = self.pods.reconcile(&world, &mut self.capture, &self.shared, &self.workers).await?;
        self.succession.keep(&self.pods, &changes).await;
        self.node_view.update(&self.pods);
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
                    ports: self.shared.capture.listening(attached.pod.cookie),
                })
            })
            .collect();
        let (verdicts, left_out) = judge::verdicts(&world, &self.shared.node, &pods);
        if left_out > 0 {
            self.shared.connections.metrics().limit_hits(Limit::Verdicts, left_out as u64);
        }
        self.shared.capture.set_verdicts(&verdicts)?;
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
            let owner = self.pods.attached.iter().find(|(_, attached)| attached.pod.cookie == flow.cookie);
            let Some((id, attached)) = owner else { continue };
            let source = world.workload(id).map(Arc::as_ref);
            if judge::flow_allowed(&world, source, &flow) {
                continue;
            }
            tracing::info!(source = %id, from = %flow.local, to = %flow.remote, "bypassed flow cut: policy changed");
            if let Err(error) = self.shared.capture.destroy(&attached.pod.netns, &flow) {
                tracing::warn!(from = %flow.local, to = %flow.remote, %error, "a bypassed flow could not be cut");
            }
            self.node_view.flow_cut(&flow);
        }
        Ok(())
    }

    /// Files what the kernel reports. Returns whether the verdicts must be computed anew.
    fn kernel_event(&self, event: Event) -> bool {
        match event {
            Event::Listening { .. } => true,
            Event::FlowClosed(closed) => {
                self.node_view.flow_closed(&self.pods, &closed);
                false
            }
        }
    }

    /// Ends everything in the order that loses nothing.
    async fn end(mut self, end: End) -> anyhow::Result<()> {
        self.node_view.set_ready(false);
        tracing::info!(?end, connections = self.shared.connections.len(), "draining");
        if end == End::Signal {
            // New connections must not come to an agent that leaves.
            self.pods.withdraw_all(&mut self.capture, &self.workers).await?;
            self.succession.forget(&self.pods).await;
        } else {
            self.servers.stop();
        }
        drain::drain(&self.shared.connections, &self.workers, self.settings.drain_deadline).await?;
        self.servers.stop();
        for worker in self.workers {
            worker.stop();
        }
        self.stop_certs.send_replace(true);
        drop(self.certs_task.await);
        self.source.stop().await;
        if end == End::Signal {
            self.capture.shutdown()?;
        } else {
            self.capture.leave();
        }
        tracing::info!("ended");
        Ok(())
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
