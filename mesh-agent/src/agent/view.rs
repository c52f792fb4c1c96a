//! What the agent tells about itself through the admin API: one implementation of `AdminSource` over the real
//! modules. Owns: the mapping from their types to the API's. Never: changes anything. Called by `admin`'s servers.

mod connections;
mod explain;
mod routes;
mod rows;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};

use super::backlogs::Backlogs;
use super::pods::Pods;
use crate::admin::{
    AdminSource, CaptureView, CertCounts, CertView, Check, ConnView, ExplainError, ExplainQuery, Explanation,
    LimitView, PolicyView, RoutesView, ServiceView, SourceView, State, Status, WorkloadCounts, WorkloadView,
};
use crate::capture::{ClosedFlow, LiveFlow};
use crate::compile::mesh_config;
use crate::config::Settings;
use crate::model::{Reason, Service, WorkloadId};
use crate::observe::{BypassedFlow, ConnMeta, DecisionId, Direction, Limit, Metrics, Party, Path, Probe};
use crate::proxy::http::destination::Seen;
use crate::proxy::limits;
use crate::proxy::worker::Shared;
use crate::source::Source;

/// Cut flows whose end the kernel has not reported yet.
const CUT_FLOWS_MAX: usize = 4096;

/// A pod of this node as the control loop last saw it.
#[derive(Clone, Debug, Default)]
pub(super) struct PodState {
    pub(super) cookie: Option<u64>,
    pub(super) problem: Option<String>,
}

/// The view. Shared between the control loop, which updates it, and the servers, which read it.
pub(super) struct NodeView {
    settings: Settings,
    shared: Arc<Shared>,
    pub(super) source: Arc<Source>,
    started: SystemTime,
    state: AtomicU8,
    pods: RwLock<BTreeMap<WorkloadId, PodState>>,
    /// Those of them that are attached, by their namespaces' cookies.
    openers: RwLock<HashMap<u64, WorkloadId>>,
    backlogs: Backlogs,
    /// Bypassed flows that the agent cut, by the opener's address: their end has a reason.
    cut: Mutex<Vec<(SocketAddr, SocketAddr, Reason)>>,
}

impl NodeView {
    pub(super) fn new(settings: &Settings, shared: Arc<Shared>, source: Arc<Source>) -> Arc<Self> {
        let view = Arc::new(Self {
            settings: settings.clone(),
            shared,
            source,
            started: SystemTime::now(),
            state: AtomicU8::new(State::Starting as u8),
            pods: RwLock::default(),
            openers: RwLock::default(),
            backlogs: Backlogs::default(),
            cut: Mutex::default(),
        });
        let weak = Arc::downgrade(&view);
        view.shared
            .connections
            .metrics()
            .set_probe(move || weak.upgrade().map(|view| view.probe()).unwrap_or_default());
        view
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        self.shared.connections.metrics()
    }

    pub(super) fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            state if state == State::Starting as u8 => State::Starting,
            state if state == State::Ready as u8 => State::Ready,
            _ => State::Draining,
        }
    }

    /// Takes over what the control loop did.
    pub(super) fn update(&self, pods: &Pods) {
        let attached = pods.attached.iter().map(|(id, attached)| {
            (id.clone(), PodState { cookie: Some(attached.pod.cookie), problem: None })
        });
        let pending = pods.pending.iter().map(|(id, pending)| {
            (id.clone(), PodState { cookie: None, problem: Some(pending.error.clone()) })
        });
        let lost = pods
            .namespaces
            .lost()
            .map(|(id, problem)| (id.clone(), PodState { cookie: None, problem: Some(problem) }));
        let states: BTreeMap<WorkloadId, PodState> = attached.chain(pending).chain(lost).collect();
        *self.openers.write() =
            states.iter().filter_map(|(id, pod)| Some((pod.cookie?, id.clone()))).collect();
        *self.pods.write() = states;
        self.backlogs.update(&pods.sets());
    }

    /// Remembers that a flow was cut, until the kernel reports its end.
    pub(super) fn flow_cut(&self, flow: &LiveFlow, reason: Reason) {
        let mut cut = self.cut.lock();
        if cut.len() < CUT_FLOWS_MAX {
            cut.push((flow.local, flow.remote, reason));
        }
    }

    /// Counts and logs a bypassed flow at its end.
    pub(super) fn flow_closed(&self, closed: &ClosedFlow) {
        let meta = self.bypass_meta(closed.opener, closed.local, closed.remote);
        let mut cut = self.cut.lock();
        let found = cut.iter().position(|(from, to, _)| (*from, *to) == (closed.local, closed.remote));
        let reason = found.map(|index| cut.swap_remove(index).2);
        drop(cut);
        self.shared.connections.record_bypassed(&BypassedFlow {
            meta,
            sent: closed.sent,
            received: closed.received,
            duration: closed.duration,
            rtt_us: u64::try_from(closed.round_trip.as_micros()).unwrap_or(u64::MAX),
            retransmits: closed.retransmits.into(),
            reason,
        });
    }

    /// Who talks to whom on a bypassed flow; the opener is known by its namespace.
    fn bypass_meta(&self, cookie: u64, local: SocketAddr, remote: SocketAddr) -> ConnMeta {
        let world = self.shared.store.load();
        let openers = self.openers.read();
        let source = openers.get(&cookie).and_then(|id| world.workload(id));
        let party = |workload: Option<&Arc<_>>, address| match workload {
            Some(workload) => Party::local(Arc::clone(workload), address),
            None => Party::unknown(address),
        };
        ConnMeta {
            direction: Direction::Local,
            path: Path::Bypass,
            source: party(source, local),
            destination: party(world.workload_at(remote.ip()), remote),
            hbone_address: None,
            service: None,
            rule: None,
            decision_id: DecisionId::new(),
        }
    }

    /// Pods that are attached.
    fn enrolled(&self) -> usize {
        self.openers.read().len()
    }

    fn probe(&self) -> Probe {
        self.backlogs.count(&self.metrics().hits());
        let world = self.shared.store.load();
        let seconds =
            |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let stale =
            self.source.stale_since().and_then(|since| since.elapsed().ok()).unwrap_or(Duration::ZERO);
        Probe {
            world_version: world.version,
            world_stale_seconds: stale.as_secs_f64(),
            workloads: world.workload_count() as u64,
            services: world.service_count() as u64,
            enrolled: self.enrolled() as u64,
            kernel: self.shared.capture.counters().unwrap_or_default(),
            certificates: (self.shared.certs.list().into_iter())
                .filter_map(|cert| Some((cert.identity, seconds(cert.not_after?))))
                .collect(),
        }
    }

    /// What is wrong with the kernel side, if its tables cannot be read.
    fn kernel_problem(&self) -> Option<String> {
        self.shared.capture.counters().err().map(|error| error.to_string())
    }

    fn limits(&self) -> Vec<LimitView> {
        let metrics = self.shared.connections.metrics();
        let budget = &self.shared.node_budget;
        let known = |limit| match limit {
            Limit::Pods => Some((Some(self.enrolled() as u64), mesh_common::PODS_MAX.into())),
            Limit::NodeConnections => Some((Some(budget.used() as u64), budget.max() as u64)),
            Limit::WorkloadConnections => Some((None, limits::MAX_CONNECTIONS_PER_WORKLOAD as u64)),
            Limit::Tunnels => Some((None, limits::TUNNELS_PER_NODE_MAX as u64)),
            Limit::Handshakes => Some((None, limits::HANDSHAKES_PER_NODE_MAX as u64)),
            Limit::Verdicts => Some((None, super::VERDICTS_MAX as u64)),
            _ => None,
        };
        Limit::ALL
            .into_iter()
            .filter_map(|limit| {
                let hits = metrics.limit_count(limit);
                let (used, max) = known(limit).or((hits > 0).then_some((None, 0)))?;
                Some(LimitView { name: limit.label().to_owned(), used, max, hits })
            })
            .collect()
    }

    fn source_view(&self) -> SourceView {
        let world = self.shared.store.load();
        let stale_since = self.source.stale_since();
        let stale = stale_since.and_then(|since| since.elapsed().ok());
        SourceView {
            from: self.source.describe(),
            world_version: world.version,
            loaded: self.source.last_load().into(),
            stale_since: stale_since.map(Into::into),
            stale_seconds: stale.map_or(0, |stale| stale.as_secs()),
            kinds: self.source.kinds().into_iter().map(rows::kind).collect(),
            diagnostics: world.diagnostics().iter().map(rows::diagnostic).collect(),
        }
    }
}

impl AdminSource for NodeView {
    fn status(&self) -> Status {
        let world = self.shared.store.load();
        let mut connections: BTreeMap<Path, u64> = BTreeMap::new();
        for conn in self.connections() {
            *connections.entry(conn.path).or_default() += 1;
        }
        let certs = self.shared.certs.list();
        Status {
            instance: self.settings.instance.clone(),
            node: self.settings.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.state(),
            missing: self.missing(),
            pid: std::process::id(),
            started: self.started.into(),
            trust_domain: world.mesh.trust_domain.to_string(),
            workers: self.settings.workers,
            capture: CaptureView {
                attached: true,
                bpf_dir: self.settings.bpf_dir.display().to_string(),
                abi: format!("v{}", mesh_common::ABI_VERSION),
                problem: self.kernel_problem(),
            },
            source: self.source_view(),
            workloads: WorkloadCounts {
                known: world.workload_count(),
                local: world.workloads_on(&self.shared.node).count(),
                enrolled: self.enrolled(),
            },
            services: world.service_count(),
            policies: world.all_authz().count() + world.all_peer_auths().count(),
            certificates: CertCounts {
                valid: certs.iter().filter(|cert| cert.state == crate::identity::CertState::Valid).count(),
                total: certs.len(),
            },
            connections,
            limits: self.limits(),
            settings: mesh_config::settings(&world.config, &world.mesh)
                .into_iter()
                .map(rows::setting)
                .collect(),
        }
    }

    fn checks(&self) -> Vec<Check> {
        rows::checks(self)
    }

    fn workloads(&self) -> Vec<WorkloadView> {
        let world = self.shared.store.load();
        world.workloads().map(|workload| rows::workload(self, &world, workload)).collect()
    }

    fn services(&self) -> Vec<ServiceView> {
        let world = self.shared.store.load();
        let mut seen: BTreeMap<_, Vec<Seen>> = BTreeMap::new();
        for one in self.shared.destinations.seen() {
            seen.entry((one.service.clone(), one.port, one.endpoint)).or_default().push(one);
        }
        let clock = rows::Clock { now: SystemTime::now(), now_ms: self.shared.now_ms() };
        let view = |service: &Service| {
            let mut view = rows::service(&world, &self.shared.node, service);
            for port in &mut view.ports {
                for endpoint in &mut port.endpoints {
                    let seen = seen.get(&(service.id.clone(), port.port, endpoint.address));
                    rows::stand(&world, endpoint, seen.map_or(&[], Vec::as_slice), &clock);
                }
            }
            view
        };
        world.services().map(|service| view(service)).collect()
    }

    fn policies(&self) -> Vec<PolicyView> {
        rows::policies(&self.shared.store.load(), &self.shared.node)
    }

    fn certificates(&self) -> Vec<CertView> {
        self.shared.certs.list().into_iter().map(rows::certificate).collect()
    }

    fn connections(&self) -> Vec<ConnView> {
        let relayed = self.shared.connections.list().into_iter().map(|conn| rows::connection(&conn));
        let flows = self.shared.capture.flows().unwrap_or_default();
        let bypassed = flows.into_iter().map(|flow| {
            let meta = self.bypass_meta(flow.opener, flow.local, flow.remote);
            rows::bypassed(&meta, &flow)
        });
        relayed.chain(bypassed).collect()
    }

    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, ExplainError> {
        explain::explain(&self.shared.store.load(), &self.shared.node, query)
    }

    fn routes(&self, query: &ExplainQuery) -> Result<RoutesView, ExplainError> {
        routes::routes(&self.shared.store.load(), query)
    }

    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        match self.state() {
            State::Starting => {
                missing.extend(self.source.waiting());
                if missing.is_empty() {
                    missing.push("the agent is starting".to_owned());
                }
            }
            State::Draining => missing.push("the agent is draining".to_owned()),
            State::Ready => {}
        }
        missing.extend(self.kernel_problem());
        missing
    }
}
