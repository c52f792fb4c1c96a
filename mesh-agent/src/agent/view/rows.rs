//! One row of each listing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::NodeView;
use crate::admin::{
    CertState, CertView, Check, ConnView, DiagnosticView, EjectionView, EndpointView, Enrolment, KindView,
    PartyView, PolicyView, PortView, ServiceView, SettingView, Severity, WorkloadView,
};
use crate::capture::LiveFlow;
use crate::compile;
use crate::decide::Snapshot as _;
use crate::decide::outbound::{Transport, transport};
use crate::identity::{self, CertStatus};
use crate::model::policy::AuthzScope;
use crate::model::{Endpoint, Labels, MtlsMode, Service, Workload};
use crate::observe::{ConnMeta, ConnSnapshot, Party, Path};
use crate::proxy::http::destination::Seen;
use crate::source::kube::{KindState, KindStatus};
use crate::world::World;

pub(super) fn diagnostic(found: &compile::Diagnostic) -> DiagnosticView {
    DiagnosticView {
        severity: match found.severity {
            compile::Severity::Error => Severity::Error,
            compile::Severity::Warning | compile::Severity::Info => Severity::Warning,
        },
        object: format!("{} ({})", found.object, found.source),
        field: found.field.clone(),
        message: found.message.clone(),
        remedy: found.remedy.clone(),
    }
}

/// How the source is doing with one kind.
pub(super) fn kind(status: KindStatus) -> KindView {
    let state = match status.state {
        KindState::Starting => "starting",
        KindState::Following => "current",
        KindState::NotInstalled => "not installed",
        KindState::Failing => "failing",
    };
    let (problem, remedy) = status.text.unzip();
    KindView {
        resource: status.resource,
        version: status.version.map(str::to_owned),
        state: state.to_owned(),
        objects: status.objects,
        problem,
        remedy,
    }
}

pub(super) fn setting(setting: compile::mesh_config::Setting) -> SettingView {
    SettingView {
        field: setting.field.to_owned(),
        value: setting.value,
        in_force: setting.in_force,
        note: Some(setting.note).filter(|note| !note.is_empty()),
    }
}

fn mode_text(mode: MtlsMode) -> &'static str {
    match mode {
        MtlsMode::Strict => "STRICT",
        MtlsMode::Permissive => "PERMISSIVE",
        MtlsMode::Disable => "DISABLE",
    }
}

fn pod_name(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

/// Why a pod's network namespace is not known.
fn not_found(view: &NodeView) -> String {
    if view.settings.manifests.is_some() {
        return format!("no annotation {}", crate::api::names::NETNS_ANNOTATION);
    }
    format!("no process of it is found in {} yet", view.settings.proc_dir.display())
}

pub(super) fn workload(view: &NodeView, world: &World, workload: &Workload) -> WorkloadView {
    let local = *workload.node == *view.shared.node;
    let state = view.pods.read().get(&workload.id).cloned();
    let enrolment = match (&state, workload.enrolled) {
        (Some(state), true) if state.cookie.is_some() => Enrolment::Captured,
        (_, true) if local => Enrolment::Pending,
        (_, true) => Enrolment::Remote,
        (_, false) => Enrolment::Off,
    };
    let state = state.unwrap_or_default();
    let problem = state.problem.or_else(|| {
        let lost = enrolment == Enrolment::Pending && workload.netns.is_none();
        lost.then(|| not_found(view))
    });
    WorkloadView {
        namespace: workload.namespace.to_string(),
        name: workload.name.to_string(),
        addresses: workload.addresses.clone(),
        node: workload.node.to_string(),
        local,
        enrolment,
        identity: workload.identity.clone(),
        mtls: mode_text(world.mtls_mode(workload, 0).0).to_owned(),
        netns: workload.netns.as_ref().map(|path| path.display().to_string()),
        listening: state
            .cookie
            .map(|cookie| view.shared.capture.listening(cookie).unwrap_or_default())
            .unwrap_or_default(),
        problem,
    }
}

pub(super) fn path_to(world: &World, node: &str, endpoint: &Endpoint) -> Path {
    match transport(world, node, endpoint) {
        Transport::Local(_) => Path::Local,
        Transport::Hbone(_) => Path::Hbone,
        Transport::Plain => Path::Plain,
    }
}

pub(super) fn endpoint(world: &World, node: &str, endpoint: &Endpoint) -> EndpointView {
    let workload = endpoint.workload.as_ref().and_then(|id| world.workload(id));
    EndpointView {
        address: endpoint.address,
        workload: workload.map(|workload| pod_name(workload)),
        node: endpoint.node.to_string(),
        ready: endpoint.ready,
        path: Some(path_to(world, node, endpoint)),
        active: None,
        ejected: None,
    }
}

/// A moment, by the wall clock and by the data path's.
pub(super) struct Clock {
    pub(super) now: SystemTime,
    pub(super) now_ms: u64,
}

/// Adds how an endpoint stands with those who call it.
pub(super) fn stand(world: &World, endpoint: &mut EndpointView, seen: &[Seen], clock: &Clock) {
    endpoint.active = Some(seen.iter().map(|one| one.active).sum());
    let ejected = seen.iter().filter_map(|one| {
        let left = Duration::from_millis(one.ejected_until_ms?.saturating_sub(clock.now_ms));
        let by = world.workload(&one.source).map_or_else(|| one.source.to_string(), |pod| pod_name(pod));
        let subset = one.subset.as_ref().map(ToString::to_string);
        Some(EjectionView { by, subset, until: (clock.now + left).into() })
    });
    let mut ejected: Vec<EjectionView> = ejected.collect();
    ejected.sort();
    endpoint.ejected = Some(ejected);
}

/// The text form that serde gives an enum without fields.
fn tag(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|json| json.as_str().map(str::to_owned)).unwrap_or_default()
}

pub(super) fn service(world: &World, node: &str, service: &Service) -> ServiceView {
    let ports = service.ports.iter().map(|port| PortView {
        name: port.name.to_string(),
        port: port.port,
        protocol: tag(&port.protocol),
        endpoints: port.endpoints.iter().map(|one| endpoint(world, node, one)).collect(),
    });
    ServiceView {
        namespace: service.namespace.to_string(),
        name: service.name.to_string(),
        hostname: service.hostname.to_string(),
        vips: service.vips.clone(),
        balance: tag(&service.balance),
        ports: ports.collect(),
    }
}

fn labels_text(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

fn scope_text(namespace: Option<&str>, selector: Option<&Labels>, services: &[Arc<str>]) -> String {
    let place = namespace.map_or_else(|| "mesh".to_owned(), |namespace| format!("namespace {namespace}"));
    if !services.is_empty() {
        return format!("Service {} in {place}", services.join(", "));
    }
    match selector {
        Some(labels) if !labels.is_empty() => format!("{} in {place}", labels_text(labels)),
        _ => place,
    }
}

pub(super) fn policies(world: &World, node: &str) -> Vec<PolicyView> {
    let local: Vec<&Arc<Workload>> =
        world.workloads().filter(|workload| workload.enrolled && *workload.node == *node).collect();
    let names = |holds: &dyn Fn(&Workload) -> bool| -> Vec<String> {
        local.iter().filter(|workload| holds(workload)).map(|workload| pod_name(workload)).collect()
    };
    let peer_auths = world.all_peer_auths().map(|auth| {
        let root = *auth.policy.namespace == *world.root_namespace();
        let namespace = (!root).then_some(&*auth.policy.namespace);
        PolicyView {
            kind: auth.policy.kind.to_owned(),
            namespace: auth.policy.namespace.to_string(),
            name: auth.policy.name.to_string(),
            action: auth.mode.map_or("UNSET", mode_text).to_owned(),
            scope: scope_text(namespace, auth.selector.as_ref(), &[]),
            rules: auth.ports.len(),
            dry_run: false,
            workloads: names(&|workload| {
                (root || *workload.namespace == *auth.policy.namespace)
                    && auth
                        .selector
                        .as_ref()
                        .is_none_or(|selector| crate::decide::peer_auth::selects(selector, &workload.labels))
            }),
            invalid: None,
        }
    });
    let authz = world.all_authz().map(|policy| {
        let AuthzScope { namespace, selector, services } = &policy.scope;
        PolicyView {
            kind: policy.policy.kind.to_owned(),
            namespace: policy.policy.namespace.to_string(),
            name: policy.policy.name.to_string(),
            action: tag(&policy.action),
            scope: scope_text(namespace.as_deref(), selector.as_ref(), services),
            rules: policy.rules.len(),
            dry_run: policy.dry_run,
            workloads: names(&|workload| {
                world.authz_for(workload).any(|found| found.policy == policy.policy)
            }),
            invalid: policy.invalid.clone(),
        }
    });
    peer_auths.chain(authz).collect()
}

pub(super) fn certificate(cert: CertStatus) -> CertView {
    let failing = cert.failures > 0;
    CertView {
        identity: cert.identity,
        state: match cert.state {
            identity::CertState::Valid if failing => CertState::Failing,
            identity::CertState::Valid => CertState::Valid,
            identity::CertState::Pending | identity::CertState::Failed => CertState::Pending,
            identity::CertState::Expired => CertState::Expired,
        },
        serial: cert.serial,
        not_before: cert.not_before.map(Into::into),
        not_after: cert.not_after.map(Into::into),
        renews: cert.next_request.map(Into::into),
        problem: cert.last_error,
    }
}

fn party(party: &Party) -> PartyView {
    PartyView {
        address: Some(party.address),
        workload: party.workload.as_ref().map(|workload| pod_name(workload)),
        node: party.workload.as_ref().map(|workload| workload.node.to_string()),
        identity: party.identity.clone(),
    }
}

fn described(meta: &ConnMeta) -> ConnView {
    ConnView {
        id: 0,
        direction: meta.direction,
        path: meta.path,
        source: party(&meta.source),
        destination: party(&meta.destination),
        hbone_address: meta.hbone_address,
        service: meta.service.as_ref().map(|service| service.hostname.to_string()),
        established: true,
        age_seconds: 0.0,
        bytes_sent: 0,
        bytes_received: 0,
        rtt_us: None,
        retransmits: None,
        decision_id: None,
    }
}

pub(super) fn connection(conn: &ConnSnapshot) -> ConnView {
    ConnView {
        id: conn.id,
        established: conn.established,
        age_seconds: conn.age.as_secs_f64(),
        bytes_sent: conn.sent,
        bytes_received: conn.received,
        decision_id: Some(conn.meta.decision_id.to_string()),
        ..described(&conn.meta)
    }
}

/// A bypassed flow: its bytes are the kernel's and are told at its end.
pub(super) fn bypassed(meta: &ConnMeta, flow: &LiveFlow) -> ConnView {
    ConnView { age_seconds: flow.age().as_secs_f64(), ..described(meta) }
}

/// The agent's own checks.
pub(super) fn checks(view: &NodeView) -> Vec<Check> {
    let mut checks = Vec::new();
    checks.push(match view.kernel_problem() {
        None => Check::pass("capture", "kernel programs", "attached"),
        Some(problem) => {
            Check::fail("capture", "kernel programs", problem, "restart the agent; see its log for the cause")
        }
    });
    let pods = view.pods.read();
    let pending = pods.iter().filter_map(|(id, pod)| Some((id, pod.problem.as_ref()?)));
    let waiting: Vec<String> = pending.map(|(id, problem)| format!("{id}: {problem}")).collect();
    checks.push(if waiting.is_empty() {
        Check::pass("capture", "pods of this node", format!("{} captured", pods.len()))
    } else {
        let remedy = "mend the pod's annotation or wait until its namespace exists";
        Check::fail("capture", "pods of this node", waiting.join("; "), remedy)
    });
    let source = view.source_view();
    let errors: Vec<String> = source
        .diagnostics
        .iter()
        .filter(|found| found.severity == Severity::Error)
        .map(|found| format!("{} {}: {}; {}", found.object, found.field, found.message, found.remedy))
        .collect();
    for kind in source.kinds.iter().filter(|kind| kind.problem.is_some() || kind.state == "not installed") {
        checks.push(match (&kind.problem, &kind.remedy) {
            (Some(problem), remedy) => {
                Check::fail("source", &kind.resource, problem.clone(), remedy.as_deref().unwrap_or_default())
            }
            (None, _) => Check::pass("source", &kind.resource, "not installed; used as soon as it is"),
        });
    }
    let title = if view.settings.manifests.is_some() { "manifests" } else { "objects" };
    checks.push(if errors.is_empty() {
        Check::pass("source", title, format!("{}, version {}", source.from, source.world_version))
    } else {
        let remedy = "mend the objects; each finding says what is in force until then";
        Check::fail("source", title, errors.join("; "), remedy)
    });
    for cert in view.shared.certs.list() {
        let name = cert.identity.to_string();
        checks.push(match (cert.state, cert.last_error) {
            (identity::CertState::Valid, None) => Check::pass("certificates", &name, "valid"),
            (identity::CertState::Valid, Some(error)) => {
                Check::warn("certificates", &name, error, "renewal is tried again; check the CA")
            }
            (state, error) => {
                let detail = error.unwrap_or_else(|| format!("{state:?}").to_lowercase());
                Check::fail("certificates", &name, detail, "check the CA folder and its permissions")
            }
        });
    }
    checks
}
