//! What the admin API says of rules: `routes`, and the request or the connection of an `explain`.

use serde::{Deserialize, Serialize};

/// One rule, as people read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleView {
    /// `VirtualService shop/reviews`.
    pub object: String,
    /// The rule's name or place in it.
    pub rule: String,
    /// Any of these; empty = every request, or connection.
    pub matches: Vec<String>,
    /// Where it sends them, or what it answers.
    pub action: Vec<String>,
    /// Timeout, retries, faults and the like.
    pub options: Vec<String>,
}

/// `mesh-agent routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesView {
    /// `NAMESPACE/NAME` of the client.
    pub source: String,
    /// Host name of the Service.
    pub service: String,
    pub port: u16,
    /// In the order in which they are tried; empty = the Service's own endpoints.
    pub rules: Vec<RuleView>,
    /// The same for connections that are not read as HTTP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<RuleView>,
    /// How the client balances and bounds what no rule sends elsewhere.
    pub policy: PolicySummary,
    /// Things worth knowing.
    pub notes: Vec<String>,
}

/// A traffic policy in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySummary {
    /// The DestinationRule; none where nobody wrote one.
    pub object: Option<String>,
    pub balance: String,
    /// Limits, outlier detection and the like that are not the defaults.
    pub settings: Vec<String>,
}

/// Where rules for connections send one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStory {
    /// The name of the ClientHello that is meant, where rules go by it.
    pub sni: Option<String>,
    /// The rule that takes it; none where no rule does.
    pub rule: Option<RuleView>,
    /// In words: what happens.
    pub outcome: String,
}

/// What becomes of one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestStory {
    pub method: String,
    pub path: String,
    /// The rule that takes it; none where no rule does.
    pub rule: Option<RuleView>,
    /// In words: what happens.
    pub outcome: String,
}
