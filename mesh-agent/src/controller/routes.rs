//! What becomes of a Gateway API route that is attached to a Service, written into its status: whether it is accepted
//! (`compile` understands all of it and the parent is there) and whether its backends can be reached by it. Owns: the
//! entries of `status.parents` that carry our controller's name. Pure: the cluster's Services come in.
//! Called by `status`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::status::{findings, text};
use crate::ca::store::FIELD_MANAGER;
use crate::compile::{MeshSettings, Severity};

/// Entries that `status.parents` may have (Gateway API, RouteStatus).
const PARENTS_MAX: usize = 32;
/// Longest condition message, bytes (as metav1.Condition).
const MESSAGE_MAX_BYTES: usize = 32 * 1024;

/// Namespace and name of every Service, with the numbers and names of its ports.
pub(super) type Services = BTreeMap<(String, String), Vec<(i64, String)>>;

/// What of a Service a parent reference means: a port's number, and its name.
type Part = (Option<i64>, Option<String>);

/// Kind, namespace and name of a route.
pub(super) type RouteKey = (String, String, String);

/// Namespace and name of a Service.
type ServiceName = (String, String);

/// The routes that are understood, with the Services they are attached to.
#[derive(Debug, Default)]
pub(super) struct Attached {
    parents: BTreeMap<RouteKey, BTreeMap<ServiceName, Vec<Part>>>,
    by_service: BTreeMap<ServiceName, BTreeSet<RouteKey>>,
}

impl Attached {
    /// Takes a route in as it is now; says whether anybody's place has changed by it.
    pub(super) fn put(&mut self, mesh: &MeshSettings, object: &Value) -> bool {
        let text =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = (text("/kind"), own_namespace(object).to_owned(), text("/metadata/name"));
        let mut now: BTreeMap<ServiceName, Vec<Part>> = BTreeMap::new();
        // One that cannot be understood holds nothing.
        if understood(mesh, object).is_none() {
            for parent in list(object, "/spec/parentRefs").iter().filter(|parent| is_service(parent)) {
                now.entry(service_of(own_namespace(object), parent)).or_default().push(part(parent));
            }
        }
        if self.parents.get(&key).unwrap_or(&BTreeMap::new()) == &now {
            return false;
        }
        self.remove(&key);
        if !now.is_empty() {
            for service in now.keys() {
                self.by_service.entry(service.clone()).or_default().insert(key.clone());
            }
            self.parents.insert(key, now);
        }
        true
    }

    pub(super) fn remove(&mut self, key: &RouteKey) -> bool {
        let Some(parents) = self.parents.remove(key) else { return false };
        for service in parents.keys() {
            let Some(routes) = self.by_service.get_mut(service) else { continue };
            routes.remove(key);
            if routes.is_empty() {
                self.by_service.remove(service);
            }
        }
        true
    }

    /// Forgets the routes of a kind that are not among these.
    pub(super) fn keep(&mut self, kind: &str, there: &BTreeSet<RouteKey>) -> bool {
        let gone: Vec<RouteKey> =
            self.parents.keys().filter(|key| key.0 == kind && !there.contains(*key)).cloned().collect();
        gone.iter().filter(|key| self.remove(key)).count() > 0
    }

    /// The route of a more specific kind (GEP-1294, "Route types") that has every port which this one means.
    fn over(&self, services: &Services, object: &Value, parent: &Value) -> Option<&RouteKey> {
        let own = own_namespace(object);
        let service = service_of(own, parent);
        let rank = specificity(object["kind"].as_str().unwrap_or_default());
        // Producer's and consumers' routes do not meet.
        let beside = |(kind, namespace, _): &&RouteKey| namespace == own && specificity(kind) > rank;
        let others = || self.by_service.get(&service).into_iter().flatten().filter(beside);
        let has = |key: &RouteKey, port: &(i64, String)| {
            let parts = self.parents.get(key).and_then(|parents| parents.get(&service));
            parts.is_some_and(|parts| parts.iter().any(|part| means(part, port)))
        };
        let mut first = None;
        for port in services.get(&service)?.iter().filter(|port| means(&part(parent), port)) {
            let key = others().find(|key| has(key, port))?;
            first = first.or(Some(key));
        }
        first
    }
}

/// Of two kinds at one port, the more specific one holds.
pub(super) fn specificity(kind: &str) -> u8 {
    match kind {
        "GRPCRoute" => 3,
        "HTTPRoute" => 2,
        "TLSRoute" => 1,
        _ => 0,
    }
}

fn part(parent: &Value) -> Part {
    let section = parent["sectionName"].as_str().filter(|name| !name.is_empty());
    (parent["port"].as_i64(), section.map(str::to_owned))
}

fn means((wanted, section): &Part, (number, name): &(i64, String)) -> bool {
    wanted.is_none_or(|wanted| wanted == *number) && section.as_ref().is_none_or(|section| section == name)
}

fn service_of(own: &str, reference: &Value) -> ServiceName {
    let namespace = reference["namespace"].as_str().filter(|name| !name.is_empty()).unwrap_or(own);
    (namespace.to_owned(), reference["name"].as_str().unwrap_or_default().to_owned())
}

/// A condition: status, reason, message.
type Condition = (&'static str, &'static str, String);

/// The merge patch that makes the status say what holds; none where it does already.
pub(super) fn patch(
    mesh: &MeshSettings,
    services: &Services,
    attached: &Attached,
    object: &Value,
    now: &str,
) -> Option<Value> {
    let generation = object.pointer("/metadata/generation").cloned().unwrap_or_default();
    let before = list(object, "/status/parents");
    let ours = |entry: &Value| entry["controllerName"] == FIELD_MANAGER;
    let mut after: Vec<Value> = before.iter().filter(|entry| !ours(entry)).cloned().collect();
    let understood = understood(mesh, object);
    let resolved = resolved(services, object);
    for parent in list(object, "/spec/parentRefs").iter().filter(|parent| is_service(parent)) {
        let old = before.iter().find(|entry| ours(entry) && entry["parentRef"] == *parent);
        let accepted = understood.clone().or_else(|| parent_fault(services, object, parent));
        let accepted = accepted.or_else(|| conflict(attached.over(services, object, parent)?));
        let accepted = accepted.unwrap_or(("True", "Accepted", "in force".to_owned()));
        let conditions: Vec<Value> = [("Accepted", &accepted), ("ResolvedRefs", &resolved)]
            .into_iter()
            .map(|(kind, (status, reason, message))| {
                let was = old.into_iter().flat_map(|old| list(old, "/conditions"));
                let was = was.into_iter().find(|one| one["type"] == kind && one["status"] == *status);
                let since = was.map(|one| one["lastTransitionTime"].clone()).filter(Value::is_string);
                json!({
                    "type": kind, "status": status, "reason": reason, "message": message,
                    "observedGeneration": generation, "lastTransitionTime": since.unwrap_or_else(|| json!(now)),
                })
            })
            .collect();
        if after.len() < PARENTS_MAX {
            after.push(json!({
                "parentRef": parent, "controllerName": FIELD_MANAGER, "conditions": conditions,
            }));
        }
    }
    (after != before).then(|| {
        json!({
            "apiVersion": object["apiVersion"],
            "kind": object["kind"],
            "metadata": {"resourceVersion": object.pointer("/metadata/resourceVersion")},
            "status": {"parents": after},
        })
    })
}

/// Why the route cannot be in force as it is written; none = it can.
fn understood(mesh: &MeshSettings, object: &Value) -> Option<Condition> {
    let findings = findings(mesh, object);
    let errors: Vec<String> =
        findings.iter().filter(|finding| finding.severity == Severity::Error).map(text).collect();
    let message = super::status::cut(&errors.join("\n"), MESSAGE_MAX_BYTES);
    (!errors.is_empty()).then_some(("False", "UnsupportedValue", message))
}

fn own_namespace(object: &Value) -> &str {
    object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default()
}

fn named<'a>(services: &'a Services, own: &str, reference: &Value) -> Option<&'a Vec<(i64, String)>> {
    services.get(&service_of(own, reference))
}

fn parent_fault(services: &Services, object: &Value, parent: &Value) -> Option<Condition> {
    let fault = |message: String| Some(("False", "NoMatchingParent", message));
    let name = parent["name"].as_str().unwrap_or_default();
    let Some(ports) = named(services, own_namespace(object), parent) else {
        return fault(format!("Service {name} does not exist"));
    };
    if ports.iter().any(|port| means(&part(parent), port)) {
        return None;
    }
    fault(format!("Service {name} has no such port"))
}

fn conflict((kind, namespace, name): &RouteKey) -> Option<Condition> {
    Some((
        "False",
        "Conflicted",
        format!("{kind} {namespace}/{name} has its ports; the more specific kind holds"),
    ))
}

/// The first backend that is not there decides what is said.
fn resolved(services: &Services, object: &Value) -> Condition {
    for rule in list(object, "/spec/rules") {
        let mirrors = list(&rule, "/filters").into_iter();
        let mirrors = mirrors.filter_map(|filter| filter.pointer("/requestMirror/backendRef").cloned());
        for backend in list(&rule, "/backendRefs").into_iter().chain(mirrors) {
            let name = backend["name"].as_str().unwrap_or_default();
            let kind = backend["kind"].as_str().unwrap_or("Service");
            if kind != "Service" || !matches!(backend["group"].as_str(), None | Some("" | "core")) {
                return ("False", "InvalidKind", format!("{kind} {name} is not a Service"));
            }
            let Some(ports) = named(services, own_namespace(object), &backend) else {
                return ("False", "BackendNotFound", format!("Service {name} does not exist"));
            };
            if !ports.iter().any(|(number, _)| backend["port"].as_i64() == Some(*number)) {
                let port = &backend["port"];
                return ("False", "BackendNotFound", format!("Service {name} has no port {port}"));
            }
        }
    }
    ("True", "ResolvedRefs", "every backend exists".to_owned())
}

/// A route of a mesh, not of a gateway (GEP-1294).
fn is_service(parent: &Value) -> bool {
    parent["kind"] == "Service" && matches!(parent["group"].as_str(), None | Some("" | "core"))
}

fn list(object: &Value, pointer: &str) -> Vec<Value> {
    object.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route() -> Value {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "r", "namespace": "shop", "generation": 4, "resourceVersion": "9"},
            "spec": {
                "parentRefs": [
                    {"group": "", "kind": "Service", "name": "web", "port": 80},
                    {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"},
                ],
                "rules": [{"backendRefs": [{"name": "web-v2", "port": 80}]}],
            },
            "status": {"parents": [{"controllerName": "example.com/edge", "parentRef": {"name": "edge"}}]},
        })
    }

    fn services(names: &[&str]) -> Services {
        let one = |name: &&str| (("shop".to_owned(), (*name).to_owned()), vec![(80, "http".to_owned())]);
        names.iter().map(one).collect()
    }

    fn at(object: &Value, names: &[&str], now: &str) -> Option<Value> {
        patch(&MeshSettings::default(), &services(names), &Attached::default(), object, now)
    }

    /// `STATUS REASON` of both conditions of our entry, which is the last.
    fn judged(object: &Value, names: &[&str]) -> [String; 2] {
        let patch = at(object, names, "2026-01-01T00:00:00Z").unwrap();
        let entry = patch["status"]["parents"].as_array().unwrap().last().unwrap().clone();
        let text = |index: usize| {
            let one = &entry["conditions"][index];
            format!("{} {}", one["status"].as_str().unwrap(), one["reason"].as_str().unwrap())
        };
        [text(0), text(1)]
    }

    #[test]
    fn a_service_s_route_is_accepted_and_a_gateway_s_is_left_to_its_own_controller() {
        let mut route = route();
        let first = at(&route, &["web", "web-v2"], "2026-01-01T00:00:00Z").unwrap();
        let parents = first["status"]["parents"].as_array().unwrap();
        assert_eq!(parents.len(), 2);
        assert_eq!(parents[0]["controllerName"], "example.com/edge");
        assert_eq!(parents[1]["parentRef"]["name"], "web");
        assert_eq!(parents[1]["conditions"][0]["reason"], "Accepted");
        assert_eq!(parents[1]["conditions"][1]["reason"], "ResolvedRefs");
        assert_eq!(parents[1]["conditions"][0]["observedGeneration"], 4);

        route["status"] = first["status"].clone();
        assert_eq!(at(&route, &["web", "web-v2"], "2026-02-02T00:00:00Z"), None, "written once");
        let lost = at(&route, &["web"], "2026-02-02T00:00:00Z").unwrap();
        let conditions = &lost["status"]["parents"][1]["conditions"];
        assert_eq!(conditions[0]["lastTransitionTime"], "2026-01-01T00:00:00Z", "it did not change");
        assert_eq!(conditions[1]["lastTransitionTime"], "2026-02-02T00:00:00Z");
        route["spec"]["parentRefs"].as_array_mut().unwrap().remove(0);
        let gone = at(&route, &["web", "web-v2"], "2026-02-02T00:00:00Z").unwrap();
        assert_eq!(
            gone["status"]["parents"].as_array().unwrap().len(),
            1,
            "our entry goes with the reference"
        );
    }

    #[test]
    fn the_reasons_are_those_of_the_specification() {
        let all = ["web", "web-v2"];
        assert_eq!(judged(&route(), &all), ["True Accepted", "True ResolvedRefs"]);
        assert_eq!(judged(&route(), &["web"]), ["True Accepted", "False BackendNotFound"]);
        assert_eq!(judged(&route(), &["web-v2"]), ["False NoMatchingParent", "True ResolvedRefs"]);
        let with = |pointer: &str, value: Value| {
            let mut route = route();
            *route.pointer_mut(pointer).unwrap() = value;
            judged(&route, &all)
        };
        assert_eq!(
            with("/spec/parentRefs/0/port", json!(81)),
            ["False NoMatchingParent", "True ResolvedRefs"]
        );
        assert_eq!(
            with("/spec/rules/0/backendRefs/0", json!({"kind": "Bucket", "name": "b"})),
            ["True Accepted", "False InvalidKind"]
        );
        assert_eq!(
            with("/spec/rules/0/backendRefs/0/port", json!(81)),
            ["True Accepted", "False BackendNotFound"]
        );
        assert_eq!(
            with(
                "/spec/rules/0",
                json!({"filters": [{"type": "ExtensionRef", "extensionRef": {"group": "a", "kind": "b", "name": "c"}}]})
            ),
            ["False UnsupportedValue", "True ResolvedRefs"]
        );
        for (kind, spec, expected) in [
            ("TCPRoute", json!({}), "True Accepted"),
            ("TLSRoute", json!({"hostnames": ["a.example"]}), "True Accepted"),
            ("TLSRoute", json!({"hostnames": ["a b"]}), "False UnsupportedValue"),
            ("TCPRoute", json!({"hostnames": ["a"]}), "False UnsupportedValue"),
        ] {
            let mut other = route();
            other["kind"] = json!(kind);
            for (name, value) in spec.as_object().unwrap() {
                other["spec"][name] = value.clone();
            }
            assert_eq!(judged(&other, &all)[0], expected, "{kind} {spec}");
        }
    }

    #[test]
    fn a_route_whose_ports_a_more_specific_kind_has_is_in_conflict() {
        let mesh = MeshSettings::default();
        let known = Services::from([(
            ("shop".to_owned(), "web".to_owned()),
            vec![(80, "http".to_owned()), (81, "tcp".to_owned())],
        )]);
        let of = |kind: &str, namespace: &str, port: Option<i64>| {
            let mut one = route();
            one["kind"] = json!(kind);
            one["metadata"]["namespace"] = json!(namespace);
            one["metadata"]["name"] = json!(kind.to_lowercase());
            one["spec"]["parentRefs"] =
                json!([{"kind": "Service", "group": "", "name": "web", "namespace": "shop"}]);
            if let Some(port) = port {
                one["spec"]["parentRefs"][0]["port"] = json!(port);
            }
            one
        };
        let mut attached = Attached::default();
        let reason = |attached: &Attached, object: &Value| {
            let patch = patch(&mesh, &known, attached, object, "2026-01-01T00:00:00Z").unwrap();
            patch["status"]["parents"].as_array().unwrap().last().unwrap()["conditions"][0]["reason"].clone()
        };
        let http = of("HTTPRoute", "shop", Some(80));
        assert!(attached.put(&mesh, &http) && !attached.put(&mesh, &http));
        for (object, expected) in [
            (of("TCPRoute", "shop", Some(80)), "Conflicted"),
            (of("TCPRoute", "shop", Some(81)), "Accepted"),
            // A port is left for it.
            (of("TCPRoute", "shop", None), "Accepted"),
            // A consumer's is another's.
            (of("TCPRoute", "other", Some(80)), "Accepted"),
            (of("GRPCRoute", "shop", Some(80)), "Accepted"),
            (http.clone(), "Accepted"),
        ] {
            assert_eq!(reason(&attached, &object), expected, "{object}");
        }
        assert!(attached.put(&mesh, &of("GRPCRoute", "shop", None)));
        assert_eq!(reason(&attached, &of("TCPRoute", "shop", None)), "Conflicted");
        assert_eq!(reason(&attached, &http), "Conflicted");
        // One that is not understood holds nothing.
        let mut broken = of("GRPCRoute", "shop", None);
        broken["spec"]["x"] = json!(1);
        assert!(attached.put(&mesh, &broken));
        assert_eq!(reason(&attached, &http), "Accepted");
        assert!(
            attached.keep("HTTPRoute", &BTreeSet::new()) && !attached.keep("HTTPRoute", &BTreeSet::new())
        );
        assert_eq!(reason(&attached, &of("TCPRoute", "shop", Some(80))), "Accepted");
    }

    #[test]
    fn a_gateway_s_route_gets_nothing_from_us() {
        let mut route = route();
        route["spec"]["parentRefs"].as_array_mut().unwrap().remove(0);
        assert_eq!(at(&route, &["web"], "2026-01-01T00:00:00Z"), None);
    }
}
