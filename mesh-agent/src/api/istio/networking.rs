//! `networking.istio.io`: VirtualService, DestinationRule, ServiceEntry, WorkloadEntry. The three versions have one
//! schema. Durations are texts here; `compile` reads them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod destination_rule;
mod service_entry;
mod virtual_service;

pub use destination_rule::*;
pub use service_entry::*;
pub use virtual_service::*;

pub const GROUP: &str = "networking.istio.io";
/// Served versions, newest first.
pub const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];

/// A text as the API writes a time: `1h`, `10s`, `0.5s`, `25ms`.
pub type DurationText = String;

/// A share of a hundred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Percent {
    pub value: Option<f64>,
}

/// `port: {number: 80}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortSelector {
    pub number: Option<u32>,
}

/// One of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StringMatch {
    pub exact: Option<String>,
    pub prefix: Option<String>,
    pub regex: Option<String>,
}

#[cfg(test)]
mod tests;
