//! Compiled rules for connections: what `decide::connection` picks from and `proxy::outbound` carries out. Shapes follow
//! `tcp` and `tls` of Istio's VirtualService (`networking.istio.io/v1`) and the Gateway API's TCPRoute and TLSRoute
//! (`gateway.networking.k8s.io`); text has been parsed and checked by `compile`.

use std::sync::Arc;

use ipnet::IpNet;

use super::Labels;
use super::route::{Backend, RuleRef};

/// One rule: where connections go that one of its matches takes.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ConnRule {
    pub origin: RuleRef,
    /// Any of them; an empty list takes every connection.
    pub matches: Vec<ConnMatch>,
    /// Never empty; shares are weight / sum of weights, and zero weights are not listed.
    pub backends: Vec<WeightedDestination>,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct WeightedDestination {
    pub weight: u32,
    pub backend: Backend,
}

/// Everything in one match must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ConnMatch {
    /// Any of these names in the ClientHello (`sniHosts`, `hostnames`). Empty = the ClientHello is not looked at.
    pub sni: Vec<SniPattern>,
    /// Any of these blocks has the address that was dialled (`destinationSubnets`). Empty = every address.
    pub subnets: Vec<IpNet>,
    /// The Service's port.
    pub port: Option<u16>,
    pub source_labels: Labels,
    pub source_namespace: Option<Arc<str>>,
}

/// A server name as a rule writes it, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum SniPattern {
    /// `*`: every name, and none at all.
    Any,
    Exact(Arc<str>),
    /// `*.example.com`, kept as `.example.com`: one label or more before it.
    Under(Arc<str>),
}

impl SniPattern {
    /// Whether a name (in lower case; none = the client sent none) is meant.
    pub fn matches(&self, name: Option<&str>) -> bool {
        match (self, name) {
            (Self::Any, _) => true,
            (Self::Exact(wanted), Some(name)) => **wanted == *name,
            (Self::Under(suffix), Some(name)) => name.len() > suffix.len() && name.ends_with(&**suffix),
            (Self::Exact(_) | Self::Under(_), None) => false,
        }
    }
}

impl std::fmt::Display for SniPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(name) => f.write_str(name),
            Self::Under(suffix) => write!(f, "*{suffix}"),
        }
    }
}

/// The rules that a client's connections to a Service's port meet.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ConnRules {
    /// Whether the ClientHello is waited for.
    pub by_sni: bool,
    /// The rules are all there is (a TCPRoute or TLSRoute has taken the port): what the port says of its protocol does
    /// not count, and a connection that no rule takes is refused. Otherwise it goes to the Service's own endpoints.
    pub exclusive: bool,
    /// Never empty; in the order in which they are tried.
    pub rules: Vec<Arc<ConnRule>>,
}
