//! What `compile` says of an Istio resource, written where its author looks: the condition `Accepted` in its status,
//! and an Event for each finding. Only the leader does it. Owns: one condition and nothing else of the status, which
//! it shares with other controllers (istiod has types of its own). Never: changes what agents do; they compile for
//! themselves. Called by `controller`.
//!
//! A status that already says the same is left alone, so a new leader writes nothing and repeats no Event.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::runtime::events::{Event as Note, EventType, Recorder, Reporter};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_objects};
use kube::{Api, Client, Resource as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::routes::{self, Attached, Services};
use crate::api::istio::{networking, security};
use crate::ca::store::FIELD_MANAGER;
use crate::compile::{self, Context, Diagnostic, MeshSettings, Origin, Severity};

/// The condition's type.
pub const ACCEPTED: &str = "Accepted";
/// How often an API group that is not installed is looked for.
const ABSENT_RETRY: Duration = Duration::from_secs(15);
/// Longest condition message, bytes (as metav1.Condition).
const MESSAGE_MAX_BYTES: usize = 32 * 1024;
/// Longest Event note, bytes (events.k8s.io/v1).
const NOTE_MAX_BYTES: usize = 1024;
/// Events about one object at one time; the condition has them all.
const EVENTS_MAX: usize = 8;

/// A kind whose objects get a status.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub group: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    /// Newest first.
    pub versions: &'static [&'static str],
    pub form: Form,
}

/// What the status of a kind is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Istio's: a list of conditions.
    Policy,
    /// Gateway API's: conditions for each parent (`routes`).
    Route,
}

/// The kinds that get a status.
pub const KINDS: [Kind; 10] = [
    policy("PeerAuthentication", "peerauthentications"),
    policy("AuthorizationPolicy", "authorizationpolicies"),
    traffic("VirtualService", "virtualservices"),
    traffic("DestinationRule", "destinationrules"),
    traffic("ServiceEntry", "serviceentries"),
    traffic("WorkloadEntry", "workloadentries"),
    route("HTTPRoute", "httproutes"),
    route("GRPCRoute", "grpcroutes"),
    route("TCPRoute", "tcproutes"),
    route("TLSRoute", "tlsroutes"),
];

const fn policy(kind: &'static str, plural: &'static str) -> Kind {
    Kind { group: security::GROUP, kind, plural, versions: &security::VERSIONS, form: Form::Policy }
}

const fn traffic(kind: &'static str, plural: &'static str) -> Kind {
    Kind { group: networking::GROUP, kind, plural, versions: &networking::VERSIONS, form: Form::Policy }
}

const fn route(kind: &'static str, plural: &'static str) -> Kind {
    let versions = &["v1", "v1beta1", "v1alpha3", "v1alpha2"];
    Kind { group: "gateway.networking.k8s.io", kind, plural, versions, form: Form::Route }
}

/// Writes statuses.
pub struct StatusWriter {
    client: Client,
    recorder: Recorder,
    mesh: MeshSettings,
    /// None until they have all been read.
    services: watch::Sender<Option<Services>>,
    attached: Mutex<Attached>,
    /// Told where a route of a more specific kind has come, changed or gone; by [`routes::specificity`].
    conflicts: [watch::Sender<()>; 4],
}

/// A condition that is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
    pub generation: Option<i64>,
}

impl StatusWriter {
    pub fn new(client: Client, instance: String, mesh: MeshSettings) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(instance) };
        let services = watch::Sender::new(None);
        let recorder = Recorder::new(client.clone(), reporter);
        Self { recorder, client, mesh, services, attached: Mutex::default(), conflicts: Default::default() }
    }

    /// Follows every kind until dropped.
    pub async fn run(&self) {
        let kinds = futures_util::future::join_all(KINDS.iter().map(|kind| self.follow(*kind)));
        tokio::join!(kinds, self.follow_services());
    }

    /// What routes may refer to.
    async fn follow_services(&self) {
        let api: Api<Service> = Api::all(self.client.clone());
        let mut stream = std::pin::pin!(watch_objects(api, watcher::Config::default()).default_backoff());
        let mut listed = Services::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(service)) => drop(listed.insert(named(&service), ports(&service))),
                Ok(Event::InitDone) => {
                    self.services.send_replace(Some(std::mem::take(&mut listed)));
                }
                Ok(Event::Apply(service)) => self.change_services(|known| {
                    known.insert(named(&service), ports(&service)) != Some(ports(&service))
                }),
                Ok(Event::Delete(service)) => {
                    self.change_services(|known| known.remove(&named(&service)).is_some());
                }
                Err(error) => tracing::warn!(%error, "Services cannot be watched; routes' statuses wait"),
            }
        }
    }

    fn change_services(&self, change: impl FnOnce(&mut Services) -> bool) {
        self.services.send_if_modified(|known| known.as_mut().is_some_and(change));
    }

    /// Follows one kind. CRDs may come and go.
    async fn follow(&self, kind: Kind) {
        loop {
            if let Some(resource) = self.served(kind).await {
                self.watch(&resource, kind.form).await;
                self.keep(&resource, &BTreeSet::new());
            }
            tokio::time::sleep(ABSENT_RETRY).await;
        }
    }

    /// The newest version that the API server serves.
    async fn served(&self, kind: Kind) -> Option<ApiResource> {
        for version in kind.versions {
            let gvk = GroupVersionKind::gvk(kind.group, version, kind.kind);
            let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural);
            let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
            match api.list_metadata(&ListParams::default().limit(1)).await {
                Ok(_) => return Some(resource),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::warn!(kind = kind.kind, %error, "cannot be listed; no status is written");
                    return None;
                }
            }
        }
        None
    }

    /// Ends when the kind is not served any more.
    async fn watch(&self, resource: &ApiResource, form: Form) {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), resource);
        let stream = watch_objects(api, watcher::Config::default()).default_backoff();
        let mut stream = std::pin::pin!(stream);
        let mut services = self.services.subscribe();
        let rank = routes::specificity(&resource.kind);
        let mut conflicts = self.conflicts[usize::from(rank)].subscribe();
        // Routes are looked at again when a Service comes or goes, or a route of a more specific kind.
        let mut known: BTreeMap<(Option<String>, Option<String>), DynamicObject> = BTreeMap::new();
        // What a list has brought so far.
        let mut listed = BTreeSet::new();
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                changed = async {
                    tokio::select! { changed = services.changed() => changed, changed = conflicts.changed() => changed }
                }, if form == Form::Route => {
                    if changed.is_err() {
                        return;
                    }
                    for object in known.values() {
                        self.object(resource, form, object).await;
                    }
                    continue;
                }
            };
            let Some(event) = event else { return };
            if let Ok(Event::InitApply(object)) = &event
                && form == Form::Route
            {
                listed.insert(route_key(resource, object));
            }
            match event {
                Ok(Event::Apply(object) | Event::InitApply(object)) => {
                    if form == Form::Route {
                        self.attach(resource, rank, &object);
                    }
                    self.object(resource, form, &object).await;
                    if form == Form::Route {
                        let key = (object.metadata.namespace.clone(), object.metadata.name.clone());
                        known.insert(key, object);
                    }
                }
                Ok(Event::Delete(object)) => {
                    if form == Form::Route {
                        let key = route_key(resource, &object);
                        let gone = self.attached.lock().remove(&key);
                        self.tell_conflicts(rank, gone);
                    }
                    drop(known.remove(&(object.metadata.namespace, object.metadata.name)));
                }
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitDone) if form == Form::Route => {
                    known.retain(|_, object| listed.contains(&route_key(resource, object)));
                    self.keep(resource, &std::mem::take(&mut listed));
                }
                Ok(Event::InitDone) => {}
                Err(error) => {
                    tracing::warn!(kind = resource.kind, %error, "cannot be watched; statuses wait");
                    if let watcher::Error::InitialListFailed(kube::Error::Api(status))
                    | watcher::Error::WatchStartFailed(kube::Error::Api(status)) = &error
                        && status.code == 404
                    {
                        return;
                    }
                }
            }
        }
    }

    /// Remembers what a route is attached to.
    fn attach(&self, resource: &ApiResource, rank: u8, object: &DynamicObject) {
        let Ok(mut value) = serde_json::to_value(object) else { return };
        value["apiVersion"] = json!(resource.api_version);
        value["kind"] = json!(resource.kind);
        let changed = self.attached.lock().put(&self.mesh, &value);
        self.tell_conflicts(rank, changed);
    }

    /// Forgets routes of a kind that are not there any more.
    fn keep(&self, resource: &ApiResource, there: &BTreeSet<routes::RouteKey>) {
        let gone = self.attached.lock().keep(&resource.kind, there);
        self.tell_conflicts(routes::specificity(&resource.kind), gone);
    }

    fn tell_conflicts(&self, rank: u8, changed: bool) {
        for less_specific in self.conflicts.iter().take(if changed { usize::from(rank) } else { 0 }) {
            less_specific.send_replace(());
        }
    }

    async fn object(&self, resource: &ApiResource, form: Form, object: &DynamicObject) {
        let Ok(mut value) = serde_json::to_value(object) else { return };
        // A list's items come without them.
        value["apiVersion"] = json!(resource.api_version);
        value["kind"] = json!(resource.kind);
        let now = Timestamp::now().to_string();
        let (patch, findings) = match form {
            Form::Route => {
                let services = self.services.borrow();
                let Some(services) = services.as_ref() else { return };
                let attached = self.attached.lock();
                (routes::patch(&self.mesh, services, &attached, &value, &now), Vec::new())
            }
            Form::Policy => {
                let findings = findings(&self.mesh, &value);
                let wanted = wanted(&findings, object.metadata.generation);
                let same = current(&value).as_ref() == Some(&wanted.shown());
                ((!same).then(|| patch(&value, &wanted, &now)), findings)
            }
        };
        let Some(patch) = patch else { return };
        let name = object.metadata.name.clone().unwrap_or_default();
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &namespace, resource);
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match api.patch_status(&name, &params, &Patch::Merge(&patch)).await {
            Ok(_) => {}
            // Changed or deleted meanwhile: the watch brings the newer one.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
            Err(error) => {
                tracing::warn!(kind = resource.kind, namespace, name, %error, "the status cannot be written");
                return;
            }
        }
        let reference = object.object_ref(resource);
        self.events(&findings, &reference).await;
    }

    async fn events(&self, findings: &[Diagnostic], about: &ObjectReference) {
        let serious = findings.iter().filter(|finding| finding.severity != Severity::Info);
        for finding in serious.take(EVENTS_MAX) {
            let note = Note {
                type_: EventType::Warning,
                reason: if finding.severity == Severity::Error { "Invalid" } else { "NoEffect" }.to_owned(),
                note: Some(cut(&text(finding), NOTE_MAX_BYTES)),
                action: "Compile".to_owned(),
                secondary: None,
            };
            if let Err(error) = self.recorder.publish(&note, about).await {
                tracing::warn!(%error, "an Event cannot be written");
            }
        }
    }
}

fn route_key(resource: &ApiResource, object: &DynamicObject) -> routes::RouteKey {
    let metadata = &object.metadata;
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    (resource.kind.clone(), text(&metadata.namespace), text(&metadata.name))
}

fn named(service: &Service) -> (String, String) {
    let metadata = &service.metadata;
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn ports(service: &Service) -> Vec<(i64, String)> {
    let listed = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    listed.map(|port| (i64::from(port.port), port.name.clone().unwrap_or_default())).collect()
}

/// What `compile` has to say.
pub fn findings(mesh: &MeshSettings, object: &Value) -> Vec<Diagnostic> {
    compile::document(&Context { mesh, source: "cluster", origin: Origin::Cluster }, object).diagnostics
}

/// The condition that follows from the findings.
pub fn wanted(findings: &[Diagnostic], generation: Option<i64>) -> Wanted {
    let bad = findings.iter().any(|finding| finding.severity == Severity::Error);
    let mut serious: Vec<&Diagnostic> =
        findings.iter().filter(|finding| finding.severity != Severity::Info).collect();
    serious.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let (status, reason) = match (bad, serious.is_empty()) {
        (true, _) => ("False", "Invalid"),
        (false, false) => ("True", "AcceptedWithWarnings"),
        (false, true) => ("True", "Accepted"),
    };
    let message = match serious.is_empty() {
        true => "in force".to_owned(),
        false => serious.iter().map(|finding| text(finding)).collect::<Vec<_>>().join("\n"),
    };
    Wanted { status, reason, message: cut(&message, MESSAGE_MAX_BYTES), generation }
}

/// A finding without the object's name, which stands above it.
pub(super) fn text(finding: &Diagnostic) -> String {
    let parts = [&finding.field, &finding.message, &finding.effect, &finding.remedy];
    let (field, rest) = parts.split_first().map_or((String::new(), &parts[..]), |(field, rest)| {
        (if field.is_empty() { String::new() } else { format!("{field}: ") }, rest)
    });
    let rest: Vec<&str> = rest.iter().map(|part| part.as_str()).filter(|part| !part.is_empty()).collect();
    format!("{field}{}", rest.join("; "))
}

impl Wanted {
    fn shown(&self) -> Value {
        json!({
            "type": ACCEPTED, "status": self.status, "reason": self.reason, "message": self.message,
            "observedGeneration": self.generation,
        })
    }
}

/// Our condition as it is, without its times.
fn current(object: &Value) -> Option<Value> {
    let ours = conditions(object).iter().find(|condition| condition["type"] == ACCEPTED)?;
    Some(json!({
        "type": ours["type"], "status": ours["status"], "reason": ours["reason"], "message": ours["message"],
        "observedGeneration": ours["observedGeneration"],
    }))
}

fn conditions(object: &Value) -> &[Value] {
    object.pointer("/status/conditions").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The merge patch: a list is replaced as a whole, so the others' conditions go with it, under the version they were
/// read at.
fn patch(object: &Value, wanted: &Wanted, now: &str) -> Value {
    let mut all: Vec<Value> = conditions(object).to_vec();
    let at = all.iter().position(|condition| condition["type"] == ACCEPTED);
    let mut ours = wanted.shown();
    let old = at.map(|at| all.remove(at));
    let same = old.as_ref().is_some_and(|old| old["status"] == wanted.status);
    ours["lastTransitionTime"] = match old {
        Some(old) if same && old["lastTransitionTime"].is_string() => old["lastTransitionTime"].clone(),
        _ => json!(now),
    };
    all.push(ours);
    json!({
        "apiVersion": object["apiVersion"],
        "kind": object["kind"],
        "metadata": {"resourceVersion": object.pointer("/metadata/resourceVersion")},
        "status": {"conditions": all, "observedGeneration": wanted.generation},
    })
}

pub(super) fn cut(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests;
