//! The composition root of `mesh-agent run`: builds every part, connects them, runs the control loop and ends
//! them in order. Owns: the lifetime of every task and thread of the agent. Never: decides anything itself.
//! Called by `main`.

mod backlogs;
mod cni;
mod drain;
mod ending;
mod flows;
mod judge;
mod leave;
mod origin;
mod pods;
mod probers;
mod servers;
mod succession;
mod view;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use self::cni::Cni;
use self::flows::Flows;
use self::origin::{read_first, start_source};
use self::pods::Pods;
use self::servers::Servers;
use self::succession::Succession;
use self::view::NodeView;
use crate::admin::State;
use crate::capture::{Capture, CaptureConfig, CaptureError, CaptureHandle, Event, PodNamespaces};
use crate::compile::{MeshSettings, mesh_config};
use crate::config::{CaSettings, Settings};
use crate::identity::{Ca, CaService, CertManager, CertSettings, DirCa, SystemClock};
use crate::observe::{AccessLog, ConnectionTable, Limit, Metrics, logging};
use crate::proxy::limits::{Budget, MAX_CONNECTIONS_PER_NODE, TUNNELS_PER_NODE_MAX, TunnelBudgets};
use crate::proxy::originate::Originator;
use crate::proxy::worker::{Shared, WorkerHandle};
use crate::source::Source;
use crate::source::names::{self, NamesHandle, NamesSettings};
use crate::world::{World, WorldStore};

/// Verdicts the kernel holds at once.
const VERDICTS_MAX: usize = mesh_common::VERDICTS_MAX as usize;
/// How often the kernel is told that the agent lives, and what could not be done is tried again.
const TICK: Duration = Duration::from_millis(500);
/// Pods that start many listeners at once cost one computation of the verdicts, not one for each.
const LISTENING_PAUSE: Duration = Duration::from_millis(5);
/// How often the end asks whether a predecessor that still drains has gone.
const CLAIM_PAUSE: Duration = Duration::from_millis(100);
/// Events of the kernel that are filed before the control loop looks at anything else: about a millisecond's work.
const EVENTS_AT_ONCE: usize = 1024;
/// A bypassed flow that was opened by a verdict read just before it was withdrawn shows up this much later.
const RECHECK: Duration = Duration::from_millis(50);
/// When the start is taken to be over: what it has needed of the program is not needed again soon.
const STARTED: Duration = Duration::from_secs(1);
/// How long the start waits for the first answers to names.
const NAMES_WAIT: Duration = Duration::from_secs(2);
/// Descriptors the agent asks for: two per relayed connection, one per tunnel of either side, some for itself.
const OPEN_FILES: u64 = 2 * (MAX_CONNECTIONS_PER_NODE + TUNNELS_PER_NODE_MAX) as u64 + 4096;

/// Runs the agent until SIGTERM or SIGINT, or until a successor took over.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    let log = logging::init(settings.log_format, &settings.log_level)?;
    raise_open_files();
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    control.block_on(async {
        let farewell = leave::Farewell::new(&settings)?;
        let mut agent = Agent::start(settings, log.dropped_lines()).await?;
        let end = farewell.weigh(agent.live().await?).await;
        match agent.end(end).await? {
            End::Succeeded => farewell.wait().await,
            End::Signal | End::Kept => Ok(()),
        }
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
    /// A signal, and another agent will follow: capture stays, and its backlogs with the holder.
    Kept,
}

/// Everything the agent is made of.
struct Agent {
    settings: Settings,
    shared: Arc<Shared>,
    capture: Capture,
    pods: Pods,
    workers: Vec<WorkerHandle>,
    succession: Succession,
    cni: Cni,
    /// Looks for the node's kubelet; none where it could not be recognised.
    probers: Option<tokio::task::JoinHandle<()>>,
    servers: Servers,
    /// What the admin API reads; brought up to date by the control loop.
    view: Arc<NodeView>,
    stop_certs: watch::Sender<bool>,
    certs_task: tokio::task::JoinHandle<()>,
    /// Begins when the pods are served: until then no agent lives for them.
    heartbeat: Option<tokio::task::JoinHandle<()>>,
    source: Arc<Source>,
    /// Resolves the names of ServiceEntries.
    names: NamesHandle,
    /// What was to be done failed or had to wait: the next tick does it.
    behind: bool,
    interrupt: Signal,
    terminate: Signal,
}

impl Agent {
    async fn start(settings: Settings, dropped_lines: Arc<AtomicU64>) -> anyhow::Result<Self> {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Capture::check_node()?;
        let metrics = Metrics::new();
        metrics.watch_log(dropped_lines);
        let mesh = MeshSettings {
            trust_domain: settings.trust_domain.as_str().into(),
            cluster_domain: settings.cluster_domain.as_str().into(),
            root_namespace: settings.root_namespace.as_str().into(),
            denied: Arc::default(),
        };
        let store = Arc::new(WorldStore::new(World::new(mesh.clone())));
        let source = Arc::new(start_source(&settings, mesh, &store, metrics.hits()).await?);
        let resolving = NamesSettings { resolv_conf: settings.resolv_conf.clone(), hits: metrics.hits() };
        let names = names::start(Arc::clone(&store), resolving);
        if !source.is_synced() && Succession::somebody_there(&settings).await {
            // A predecessor that handed over enrols nobody until this agent is ready.
            read_first(&source, &mut interrupt, &mut terminate).await?;
        }
        // The predecessor first: whatever fails below, it has not been told to stop yet.
        let mut succession = Succession::begin(&settings, metrics.hits()).await?;
        let ca = match &settings.ca {
            CaSettings::Dir(dir) => Ca::Dir(Arc::new(DirCa::open(dir)?)),
            CaSettings::Service(service) => {
                Ca::Service(Arc::new(CaService::new(service.clone(), Arc::new(SystemClock))?))
            }
        };
        // The last that may fail for a reason outside: what fails before leaves nothing in the kernel.
        let capture = Capture::load(&CaptureConfig {
            bpf_dir: settings.bpf_dir.clone(),
            workers: settings.workers,
            cgroup_root: None,
            succeeds: succession.has_predecessor(),
        })?;
        let renewal = CertSettings {
            lifetime: settings.cert_lifetime,
            hits: metrics.hits(),
            ..CertSettings::default()
        };
        let certs = CertManager::new(ca, Arc::new(SystemClock), renewal);
        let (stop_certs, mut stopped) = watch::channel(false);
        let certs_task = tokio::spawn(Arc::clone(&certs).run(async move {
            // A sender that is gone means the same.
            let _stopped = stopped.wait_for(|stop| *stop).await;
        }));
        let shared = Arc::new(Shared {
            node: settings.node.as_str().into(),
            store,
            certs,
            connections: ConnectionTable::new(Arc::clone(&metrics), AccessLog::new(settings.access_log)),
            capture: capture.handle(),
            node_budget: Budget::new(MAX_CONNECTIONS_PER_NODE),
            node_tunnels: TunnelBudgets::of_node(),
            pods: arc_swap::ArcSwap::default(),
            turns: parking_lot::Mutex::default(),
            destinations: crate::proxy::http::destination::Destinations::default(),
            originator: Originator::new(settings.tls_dir.clone()),
            began: Instant::now(),
        });
        let workers = (0..settings.workers)
            .map(|index| WorkerHandle::start(index, Arc::clone(&shared)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let view = NodeView::new(&settings, Arc::clone(&shared), Arc::clone(&source));
        let mut agent = Self {
            pods: Pods::new(
                succession.adopted(),
                succession.frozen(),
                PodNamespaces::new(settings.proc_dir.clone()),
                metrics.hits(),
            ),
            heartbeat: None,
            source,
            names,
            cni: Cni::new(&settings),
            probers: probers::start(&shared.capture, &settings.proc_dir),
            servers: Servers::default(),
            settings,
            shared,
            capture,
            workers,
            succession,
            view,
            stop_certs,
            certs_task,
            behind: false,
            interrupt,
            terminate,
        };
        if let Err(error) = agent.take_office().await {
            // Where an agent was before, its pods stay as it left them until the next try.
            if agent.capture.is_fresh()
                && let Err(error) = agent.capture.shutdown()
            {
                tracing::warn!(%error, "what a failed start has left could not be undone");
            }
            return Err(error);
        }
        Ok(agent)
    }

    /// Serves this node's pods, tells the predecessor, opens the doors for questions.
    async fn take_office(&mut self) -> anyhow::Result<()> {
        let planned = self.succession.has_predecessor();
        if !planned {
            // A port that is taken is found out before any pod is captured, and "starting" is a true answer.
            self.servers.start(&self.settings, &self.view, planned).await?;
            self.cni.open(self.view.metrics(), planned)?;
        }
        // What an agent before has captured goes directly meanwhile, or waits if it is fail closed.
        read_first(&self.source, &mut self.interrupt, &mut self.terminate).await?;
        // So that whom it takes over from is not missed; a name that nobody answers for holds nothing up for long.
        let version = self.shared.store.load().version;
        drop(tokio::time::timeout(NAMES_WAIT, self.names.tried(version)).await);
        self.heartbeat = Some(tokio::spawn(heartbeat(self.shared.capture.clone())));
        self.shared.capture.heartbeat()?;
        self.reconcile().await?;
        let late = self.succession.ready().await;
        if !late.is_empty() {
            tracing::info!(pods = late.len(), "took listeners that the agent before had opened since");
            self.pods.adopt_late(late);
            self.capture.adopt_late()?;
            self.reconcile().await?;
        }
        // What nobody claimed belongs to pods that are gone; held sockets would keep their namespaces.
        let unclaimed = self.pods.drop_unclaimed();
        self.succession.forget(&unclaimed).await;
        self.pods.disown(&self.shared.store.load(), &self.shared.node, &mut self.capture);
        let gone = self.capture.prune()?;
        if gone > 0 {
            tracing::info!(pods = gone, "forgot pods that an agent before had enrolled and that are gone");
        }
        if planned {
            self.servers.start(&self.settings, &self.view, planned).await?;
            self.cni.open(self.view.metrics(), planned)?;
        }
        self.cni.install(&self.settings)?;
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
        let mut listening: Option<Instant> = None;
        let mut started = Some(Instant::now() + STARTED);
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Ok(End::Signal),
                _ = self.interrupt.recv() => return Ok(End::Signal),
                () = self.succession.succeeded() => return Ok(End::Succeeded),
                _ = changed.changed() => {
                    self.catch_up().await?;
                    recheck = Some(Instant::now() + RECHECK);
                }
                event = events.next() => {
                    let mut open = self.kernel_event(event?);
                    // What has gathered is filed in one go: to go round for each would cost more than to file it.
                    for event in std::iter::from_fn(|| events.take()).take(EVENTS_AT_ONCE) {
                        open |= self.kernel_event(event);
                    }
                    if open {
                        listening.get_or_insert_with(|| Instant::now() + LISTENING_PAUSE);
                    }
                }
                () = at(listening) => {
                    listening = None;
                    self.publish_verdicts();
                }
                () = at(recheck) => {
                    recheck = None;
                    self.judge_flows();
                }
                () = at(started) => {
                    started = None;
                    match crate::net::pages::give_back() {
                        Ok(bytes) => tracing::debug!(bytes, "code that only the start has needed is given back"),
                        Err(error) => tracing::debug!(%error, "the program's pages stay in memory"),
                    }
                }
                asked = self.cni.next() => {
                    if self.cni.ask(asked, &mut self.pods) {
                        self.reconcile().await?;
                    }
                    self.answer_cni().await?;
                }
                _ = tick.tick() => self.tick().await?,
            }
        }
    }

    /// What must be done again and again.
    async fn tick(&mut self) -> anyhow::Result<()> {
        // A predecessor that still drains relays over the routes of pods that were withdrawn here.
        if self.capture.claim() && !self.succession.frozen().get() {
            self.pods.release_drained(&mut self.capture, &self.shared.connections);
        }
        if self.behind || self.pods.any_vanished() {
            self.catch_up().await?;
        } else if self.pods.is_due(&self.shared.store.load(), &self.shared.node) {
            self.reconcile().await?;
        }
        self.answer_cni().await?;
        self.succession.mend_holder(&self.pods).await;
        Ok(())
    }

    /// Enrols the pods whose network has just been made, and lets their runtime go on.
    async fn answer_cni(&mut self) -> anyhow::Result<()> {
        if !self.cni.is_waited_for() {
            return Ok(());
        }
        let world = self.shared.store.load();
        if self.cni.note(&world, &mut self.pods) {
            self.reconcile().await?;
        }
        self.cni.settle(&world, &self.pods);
        Ok(())
    }

    /// Makes the current snapshot hold for everything.
    async fn catch_up(&mut self) -> anyhow::Result<()> {
        self.behind = false;
        self.follow_settings();
        self.reconcile().await?;
        judge::cut_forbidden(&self.shared);
        self.judge_flows();
        self.answer_cni().await
    }

    /// Puts the mesh-wide settings in force that hold for the agent itself.
    fn follow_settings(&self) {
        let wanted = mesh_config::access_log(&self.shared.store.load().config);
        let on = wanted.filter(|_| !self.settings.own.access_log).unwrap_or(self.settings.access_log);
        self.shared.connections.set_access_log(on);
    }

    /// Brings pods, verdicts and the holder in line with the current snapshot.
    async fn reconcile(&mut self) -> anyhow::Result<()> {
        let world = self.shared.store.load();
        let changes = self.pods.reconcile(&world, &mut self.capture, &self.shared, &self.workers).await?;
        self.behind |= changes.unfinished;
        let ended = self.flows().end_of(&changes.departed);
        self.note_flows(ended);
        // The verdicts before anything that may take time: they are what policy is for flows of this node.
        self.publish_verdicts();
        self.succession.keep(&self.pods, &changes).await;
        self.cni.keep_roll(&world);
        self.view.update(&self.pods);
        Ok(())
    }

    /// Installs the kernel's verdicts for flows between pods of this node.
    fn publish_verdicts(&mut self) {
        if self.succession.frozen().get() {
            self.behind = true;
            return;
        }
        let Err(error) = self.try_publish_verdicts() else { return };
        self.behind = true;
        tracing::warn!(%error, "the kernel did not take the verdicts; all connections go through the agent until it does");
        // A verdict that should have gone may hold: void them all, which costs speed and nothing else.
        if let Err(error) = self.shared.capture.bump_generation() {
            tracing::error!(%error, "nor could they be voided");
        }
    }

    fn try_publish_verdicts(&self) -> Result<(), CaptureError> {
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

    /// Cuts the bypassed flows that the current snapshot does not allow.
    fn judge_flows(&mut self) {
        let judged = self.flows().judge();
        self.note_flows(judged);
    }

    fn flows(&self) -> Flows<'_> {
        Flows { shared: &self.shared, pods: &self.pods, view: &self.view }
    }

    /// What could not be ended, or not be looked at, is tried again.
    fn note_flows(&mut self, done: Result<bool, CaptureError>) {
        match done {
            Ok(done) => self.behind |= !done,
            Err(error) => {
                tracing::warn!(%error, "the bypassed flows cannot be judged; trying again");
                self.behind = true;
            }
        }
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
}

/// Tells the kernel that the agent lives. A task of its own: the control loop may wait for the holder or for a
/// predecessor, and pods must not be taken for unserved meanwhile.
async fn heartbeat(capture: CaptureHandle) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = capture.heartbeat() {
            tracing::warn!(%error, "the kernel could not be told that the agent lives");
        }
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
