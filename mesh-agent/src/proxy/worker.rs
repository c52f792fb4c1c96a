//! The data plane's workers. Owns: one thread each with a current-thread runtime, the accept loops of its
//! share of every pod's listeners, its tunnel pool and its balancing state. A connection never leaves the
//! worker that accepted it. Never: decides policy, opens listeners. Called by `agent`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, LocalSet};

use crate::capture::{CaptureHandle, WorkerListeners};
use crate::identity::CertManager;
use crate::model::{Hits, Identity, ServiceId, Workload, WorkloadId};
use crate::net::netns::NetNs;
use crate::observe::{ConnectionTable, Limit};
use crate::proxy::limits::{Budget, TunnelBudgets};
use crate::proxy::originate::Originator;
use crate::proxy::{http, inbound, outbound};
use crate::tunnel;
use crate::world::WorldStore;

/// Commands that may wait for one worker.
const COMMAND_QUEUE: usize = 1024;
/// Pause of an accept loop after the process ran out of descriptors: accepting again at once would spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// How often a draining worker looks whether it has nothing left to do.
const IDLE_LOOK: Duration = Duration::from_millis(10);
/// How long the tunnels of a worker that ends may take for what is still to be sent on them.
const POOL_GOODBYE: Duration = Duration::from_millis(500);

/// What every worker shares: read-mostly state, atomics, no lock on the path of a connection.
pub struct Shared {
    pub node: Arc<str>,
    pub store: Arc<WorldStore>,
    pub certs: Arc<CertManager>,
    pub connections: ConnectionTable,
    pub capture: CaptureHandle,
    pub node_budget: Arc<Budget>,
    pub node_tunnels: TunnelBudgets,
    /// Pods of this node that the agent serves now.
    pub pods: arc_swap::ArcSwap<imbl::HashMap<WorkloadId, Arc<LocalPod>>>,
    /// What workers know together of the destinations of HTTP requests.
    pub destinations: http::destination::Destinations,
    /// TLS to servers outside.
    pub originator: Originator,
    /// When the agent began: the zero of its clock.
    pub began: Instant,
    /// Round-robin positions, one per Service port for the whole node; the lock is taken when a worker meets a
    /// port for the first time, never afterwards.
    pub turns: Mutex<HashMap<(ServiceId, u16), Arc<AtomicU64>>>,
}

impl Shared {
    /// Milliseconds of a clock that does not go back.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A pod of this node that is in the mesh.
pub struct LocalPod {
    pub id: WorkloadId,
    pub netns: Arc<NetNs>,
    /// `SO_NETNS_COOKIE` of its namespace.
    pub cookie: u64,
    /// The addresses it was enrolled with: known before the API server tells them.
    pub addresses: Vec<IpAddr>,
    pub budget: Arc<Budget>,
    pub tunnels: TunnelBudgets,
}

impl LocalPod {
    /// The pod's workload, with the addresses that the CNI plugin told where the API server has not told any yet.
    pub fn with_addresses(&self, workload: &Arc<Workload>) -> Arc<Workload> {
        if !workload.addresses.is_empty() {
            return Arc::clone(workload);
        }
        Arc::new(Workload { addresses: self.addresses.clone(), ..Workload::clone(workload) })
    }
}

/// What `agent` tells a worker.
pub enum Command {
    /// Serve a pod's listeners (several sets if the predecessor had more workers).
    Add { pod: Arc<LocalPod>, listeners: WorkerListeners },
    /// Stop accepting for a pod; its live connections go on.
    Remove(WorkloadId),
    /// Stop accepting for every pod and let tunnels say goodbye.
    Drain,
}

/// A running accept loop.
struct Accepting {
    finish: oneshot::Sender<()>,
    task: AbortHandle,
}

impl Accepting {
    /// Nothing is steered to the listener any more: what waits in its backlog is served, then it is closed.
    fn finish(self) {
        // A task that has ended already has nothing left to serve.
        let _ended = self.finish.send(());
    }

    /// A successor serves the same listener: its backlog is left to it.
    fn leave(self) {
        self.task.abort();
    }
}

/// A running worker.
pub struct WorkerHandle {
    commands: mpsc::Sender<Command>,
    hits: Hits,
    thread: Option<std::thread::JoinHandle<()>>,
    end: watch::Sender<bool>,
    idle: watch::Receiver<bool>,
}

/// One worker's own state; lives on its thread.
pub struct Worker {
    pub shared: Arc<Shared>,
    pub pool: tunnel::Pool,
    pub http: http::Http,
    /// Of every tunnel, dialled and accepted.
    pub settings: tunnel::TunnelSettings,
    pub(super) draining: watch::Receiver<bool>,
    turns: RefCell<HashMap<(ServiceId, u16), Arc<AtomicU64>>>,
    random: RefCell<fastrand::Rng>,
}

impl Worker {
    /// The node's round-robin position for a Service port.
    pub fn turn(&self, service: &ServiceId, port: u16) -> Arc<AtomicU64> {
        let key = (service.clone(), port);
        let mut own = self.turns.borrow_mut();
        let turn = own.entry(key.clone()).or_insert_with(|| {
            Arc::clone(self.shared.turns.lock().entry(key).or_insert_with(|| Arc::new(AtomicU64::new(0))))
        });
        Arc::clone(turn)
    }

    /// The identity of the pod of this node with this namespace cookie.
    pub fn identity_of(&self, cookie: u64) -> Option<Identity> {
        let pods = self.shared.pods.load();
        let pod = pods.values().find(|pod| pod.cookie == cookie)?;
        Some(self.shared.store.load().workload(&pod.id)?.identity.clone())
    }

    /// Counts a connection that was refused for want of room.
    pub fn limit_reached(&self) {
        let full = self.shared.node_budget.used() >= self.shared.node_budget.max();
        let limit = if full { Limit::NodeConnections } else { Limit::WorkloadConnections };
        self.shared.connections.metrics().limit_hit(limit);
    }

    /// 64 random bits, for balancing only.
    pub fn random(&self) -> u64 {
        self.random.borrow_mut().u64(..)
    }
}

impl WorkerHandle {
    /// Starts worker number `index`.
    pub fn start(index: usize, shared: Arc<Shared>) -> anyhow::Result<Self> {
        let (commands, inbox) = mpsc::channel(COMMAND_QUEUE);
        let (end, ended) = watch::channel(false);
        let (tell_idle, idle) = watch::channel(false);
        let hits = shared.connections.metrics().hits();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            let local = LocalSet::new();
            runtime.block_on(local.run_until(run(shared, inbox, ended, tell_idle)));
        })?;
        Ok(Self { commands, hits, thread: Some(thread), end, idle })
    }

    /// Hands a command over; an error means that the worker's thread is gone.
    pub async fn send(&self, command: Command) -> anyhow::Result<()> {
        if self.commands.capacity() == 0 {
            self.hits.hit(Limit::WorkerCommands);
        }
        self.commands.send(command).await.map_err(|_gone| anyhow::anyhow!("a data-plane worker ended early"))
    }

    /// Completes when the worker has been told to drain and nothing that it accepted is left: no connection that
    /// is not in the table yet, no handshake, no tunnel that says goodbye.
    pub async fn idle(&self) {
        // A worker that is gone does nothing any more.
        let mut idle = self.idle.clone();
        drop(idle.wait_for(|idle| *idle).await);
    }

    /// Tells the worker to end; [`WorkerHandle::stop`] waits until it has.
    pub fn end(&self) {
        self.end.send_replace(true);
    }

    /// Ends the worker; what is still connected is dropped, and what tunnels have to say is sent first.
    pub fn stop(mut self) {
        self.end();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a data-plane worker panicked");
        }
    }
}

async fn run(
    shared: Arc<Shared>,
    mut inbox: mpsc::Receiver<Command>,
    mut ended: watch::Receiver<bool>,
    idle: watch::Sender<bool>,
) {
    let (drain, draining) = watch::channel(false);
    let hits = shared.connections.metrics().hits();
    let settings = tunnel::TunnelSettings { hits, ..tunnel::TunnelSettings::default() };
    let worker = Rc::new(Worker {
        shared,
        pool: tunnel::Pool::new(settings.clone()),
        http: http::Http::new(settings.hits.clone()),
        settings,
        draining,
        turns: RefCell::default(),
        random: RefCell::new(fastrand::Rng::new()),
    });
    let mut accepting: HashMap<WorkloadId, Vec<Accepting>> = HashMap::new();
    let mut look = tokio::time::interval(IDLE_LOOK);
    // It is asked for nothing until the drain: what it missed by then must not come all at once.
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sweep = tokio::time::interval(http::pool::SWEEP_EVERY);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let command = tokio::select! {
            command = inbox.recv() => command,
            _ = ended.wait_for(|ended| *ended) => None,
            _ = sweep.tick() => {
                worker.http.sweep();
                let looking = Rc::clone(&worker);
                drop(tokio::task::spawn_local(async move {
                    looking.http.follow_files(&looking.shared.originator).await;
                }));
                worker.shared.destinations.sweep();
                continue;
            }
            _ = look.tick(), if *drain.borrow() => {
                // Whatever is accepted holds the worker from that moment on.
                idle.send_replace(Rc::strong_count(&worker) == 1);
                continue;
            }
        };
        match command {
            Some(Command::Add { pod, listeners }) => {
                accepting.entry(pod.id.clone()).or_default().extend(listen(&worker, &pod, listeners));
            }
            Some(Command::Remove(id)) => {
                accepting.remove(&id).into_iter().flatten().for_each(Accepting::finish);
                worker.pool.retain(|key| key.source_pod != id);
                worker.http.pool.retain(|key| !key.is_of(&id));
            }
            Some(Command::Drain) => {
                accepting.drain().flat_map(|(_, tasks)| tasks).for_each(Accepting::leave);
                drain.send_replace(true);
            }
            None => return worker.pool.close(POOL_GOODBYE).await,
        }
    }
}

/// Starts the accept loops of one pod's listeners.
fn listen(worker: &Rc<Worker>, pod: &Arc<LocalPod>, listeners: WorkerListeners) -> Vec<Accepting> {
    let WorkerListeners { outbound, inbound, hbone } = listeners;
    [(outbound, Kind::Outbound), (inbound, Kind::Inbound), (hbone, Kind::Hbone)]
        .into_iter()
        .filter_map(|(listener, kind)| match TcpListener::from_std(listener) {
            Ok(listener) => {
                let (finish, finishing) = oneshot::channel();
                let (worker, pod) = (Rc::clone(worker), Arc::clone(pod));
                let task = tokio::task::spawn_local(async move {
                    tokio::select! {
                        Ok(()) = finishing => {}
                        never = accept(&worker, &pod, &listener, kind) => match never {},
                    }
                    empty(&worker, &pod, listener, kind);
                });
                Some(Accepting { finish, task: task.abort_handle() })
            }
            Err(error) => {
                tracing::error!(pod = %pod.id, ?kind, %error, "a listener could not be served");
                None
            }
        })
        .collect()
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Outbound,
    Inbound,
    Hbone,
}

/// Serves what has arrived at a listener that is going to be closed: nobody else would.
fn empty(worker: &Rc<Worker>, pod: &Arc<LocalPod>, listener: TcpListener, kind: Kind) {
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, peer)) = listener.accept() {
        // Accepted sockets do not take the listener's flag over (accept(2)).
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        if let Ok(stream) = stream {
            serve(worker, pod, (stream, peer), kind);
        }
    }
}

async fn accept(worker: &Rc<Worker>, pod: &Arc<LocalPod>, listener: &TcpListener, kind: Kind) -> Infallible {
    loop {
        match listener.accept().await {
            Ok(accepted) => serve(worker, pod, accepted, kind),
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) =>
            {
                worker.shared.connections.metrics().limit_hit(Limit::OpenFiles);
                tracing::warn!(pod = %pod.id, %error, "cannot accept; raise the agent's limit of open files");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
            // The peer was gone before we came: the next one may not be (accept(2)).
            Err(error) => tracing::debug!(pod = %pod.id, %error, "accept failed"),
        }
    }
}

fn serve(worker: &Rc<Worker>, pod: &Arc<LocalPod>, accepted: (TcpStream, SocketAddr), kind: Kind) {
    let (worker, pod) = (Rc::clone(worker), Arc::clone(pod));
    match kind {
        Kind::Outbound => drop(tokio::task::spawn_local(outbound::serve(worker, pod, accepted))),
        Kind::Inbound => drop(tokio::task::spawn_local(inbound::serve_plaintext(worker, pod, accepted))),
        Kind::Hbone => drop(tokio::task::spawn_local(inbound::serve_tunnel(worker, pod, accepted))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_that_finds_the_queue_full_waits_and_is_counted() {
        let (commands, mut inbox) = mpsc::channel(COMMAND_QUEUE);
        let hits = Hits::default();
        let (end, _ended) = watch::channel(false);
        let (_tell_idle, idle) = watch::channel(false);
        let handle = WorkerHandle { commands, hits: hits.clone(), thread: None, end, idle };
        for _ in 0..COMMAND_QUEUE {
            handle.send(Command::Drain).await.unwrap();
        }
        assert_eq!(hits.count(Limit::WorkerCommands), 0);
        let (sent, taken) = tokio::join!(handle.send(Command::Drain), async {
            tokio::task::yield_now().await;
            inbox.recv().await.is_some()
        });
        assert!(sent.is_ok() && taken);
        assert_eq!((hits.count(Limit::WorkerCommands), inbox.len()), (1, COMMAND_QUEUE));
    }
}
