//! The CRDs of the Istio types that the mesh reads, for clusters without Istio's own. Called by `install`.

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use super::{PART_OF, PART_OF_LABEL};
use crate::api::istio::{networking, security};

/// One CustomResourceDefinition.
#[derive(Clone, Debug)]
pub struct Crd(Value);

/// In the order of their names.
pub fn crds() -> Vec<Crd> {
    [
        definition::<security::AuthorizationPolicy>(&security::VERSIONS),
        definition::<networking::DestinationRule>(&networking::VERSIONS),
        definition::<security::PeerAuthentication>(&security::VERSIONS),
        definition::<networking::ServiceEntry>(&networking::VERSIONS),
        definition::<networking::VirtualService>(&networking::VERSIONS),
        definition::<networking::WorkloadEntry>(&networking::VERSIONS),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl Crd {
    pub fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap_or_default()
    }

    pub fn value(&self) -> &Value {
        &self.0
    }

    pub(super) fn yaml(&self) -> Result<String, serde_json::Error> {
        super::mesh_config::yaml(&self.0)
    }
}

/// The type's definition with every version that is served; the first is the one that is stored.
fn definition<T: CustomResourceExt>(versions: &[&str]) -> Option<Crd> {
    let mut crd = serde_json::to_value(T::crd()).ok()?;
    crd["metadata"]["labels"] = json!({ PART_OF_LABEL: PART_OF });
    let mut version = crd["spec"]["versions"][0].take();
    version["subresources"] = json!({ "status": {} });
    let schema = &mut version["schema"]["openAPIV3Schema"];
    keep_unknown(&mut schema["properties"]["spec"]);
    // What is read of a status is the controller's business; any writer's must survive.
    schema["properties"]["status"] =
        json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    // A policy without a spec is one: a PeerAuthentication that says nothing, an AuthorizationPolicy that allows nothing.
    if let Some(object) = schema.as_object_mut() {
        object.remove("required");
    }
    let served = versions.iter().enumerate().map(|(at, name)| {
        let mut version = version.clone();
        version["name"] = json!(name);
        version["served"] = json!(true);
        version["storage"] = json!(at == 0);
        version
    });
    crd["spec"]["versions"] = Value::Array(served.collect());
    Some(Crd(crd))
}

/// An unknown field must reach the mesh: a condition that the API server drops in silence would make a policy mean
/// more than was written, and the mesh denies where it does not understand.
fn keep_unknown(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    if object.contains_key("properties") {
        object.insert("x-kubernetes-preserve-unknown-fields".to_owned(), Value::Bool(true));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            keep_unknown(inner);
        }
    }
    let properties = object.get_mut("properties").and_then(Value::as_object_mut);
    for inner in properties.into_iter().flat_map(Map::values_mut) {
        keep_unknown(inner);
    }
}
