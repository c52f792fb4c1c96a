//! Gateway API routes attached to a Service: this version does not read them yet, and their status says so instead of
//! leaving an author to wonder. Owns: the entries of `status.parents` that carry our controller's name. Pure.
//! Called by `status`.

use serde_json::{Value, json};

use crate::ca::store::FIELD_MANAGER;

/// Entries that `status.parents` may have (Gateway API, RouteStatus).
const PARENTS_MAX: usize = 32;
const MESSAGE: &str =
    "this version of Nodemesh does not read routes; connections to the Service go to its own endpoints";

/// The merge patch that makes the status say what holds; none where it does already.
pub(super) fn patch(object: &Value, now: &str) -> Option<Value> {
    let generation = object.pointer("/metadata/generation").cloned().unwrap_or_default();
    let before = list(object, "/status/parents");
    let ours = |entry: &Value| entry["controllerName"] == FIELD_MANAGER;
    let mut after: Vec<Value> = before.iter().filter(|entry| !ours(entry)).cloned().collect();
    for parent in list(object, "/spec/parentRefs").iter().filter(|parent| is_service(parent)) {
        let old = before.iter().find(|entry| ours(entry) && entry["parentRef"] == *parent);
        let since = old
            .and_then(|old| old.pointer("/conditions/0/lastTransitionTime"))
            .filter(|time| time.is_string())
            .cloned();
        if after.len() < PARENTS_MAX {
            after.push(json!({
                "parentRef": parent,
                "controllerName": FIELD_MANAGER,
                "conditions": [{
                    "type": "Accepted", "status": "False", "reason": "UnsupportedValue", "message": MESSAGE,
                    "observedGeneration": generation, "lastTransitionTime": since.unwrap_or_else(|| json!(now)),
                }],
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
            "metadata": {"generation": 4, "resourceVersion": "9"},
            "spec": {"parentRefs": [
                {"group": "", "kind": "Service", "name": "web", "port": 80},
                {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"},
            ]},
            "status": {"parents": [{"controllerName": "example.com/edge", "parentRef": {"name": "edge"}}]},
        })
    }

    #[test]
    fn a_service_s_route_is_not_accepted_and_a_gateway_s_is_left_to_its_own_controller() {
        let mut route = route();
        let first = patch(&route, "2026-01-01T00:00:00Z").unwrap();
        let parents = first["status"]["parents"].as_array().unwrap();
        assert_eq!(parents.len(), 2);
        assert_eq!(parents[0]["controllerName"], "example.com/edge");
        assert_eq!(parents[1]["parentRef"]["name"], "web");
        assert_eq!(parents[1]["conditions"][0]["reason"], "UnsupportedValue");
        assert_eq!(parents[1]["conditions"][0]["observedGeneration"], 4);

        route["status"] = first["status"].clone();
        assert_eq!(patch(&route, "2026-02-02T00:00:00Z"), None, "written once");
        route["spec"]["parentRefs"].as_array_mut().unwrap().remove(0);
        let gone = patch(&route, "2026-02-02T00:00:00Z").unwrap();
        assert_eq!(
            gone["status"]["parents"].as_array().unwrap().len(),
            1,
            "our entry goes with the reference"
        );
    }

    #[test]
    fn a_gateway_s_route_gets_nothing_from_us() {
        let mut route = route();
        route["spec"]["parentRefs"].as_array_mut().unwrap().remove(0);
        assert_eq!(patch(&route, "2026-01-01T00:00:00Z"), None);
    }
}
