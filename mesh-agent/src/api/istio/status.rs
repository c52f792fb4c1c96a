//! `status` of Istio's resources. Several controllers write into it, each with types of its own, so it is kept as
//! it comes: a status that reads oddly must never change what a policy means.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Conditions and whatever else is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IstioStatus {
    #[serde(flatten)]
    pub fields: BTreeMap<String, serde_json::Value>,
}

impl JsonSchema for IstioStatus {
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("IstioStatus")
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
    }
}
