//! What the variables in a rule's header operations stand for: the client, what it dialled, its request, the answer.
//! Owns: those values. Never: edits. Called by `proxy::http::pipeline`.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, Version};

use super::exchange::Exchange;
use crate::decide::headers::{Facts, value_of};
use crate::model::route::{HeaderOps, HttpRule, Variable};

/// See the module's header.
pub struct Said {
    remote: SocketAddr,
    local: SocketAddr,
    version: Version,
    method: Method,
    path: String,
    authority: String,
    route: Arc<str>,
    /// The request's fields, where an answer asks for them.
    fields: Option<HeaderMap>,
    /// Status, and the endpoint that it came from.
    pub answer: Option<(StatusCode, Option<SocketAddr>)>,
}

impl Said {
    /// None where no value has a variable, as in nearly all rules.
    pub fn of(exchange: &Exchange, rule: &HttpRule, ops: &[&HeaderOps]) -> Option<Self> {
        ops.iter().flat_map(|ops| ops.variables()).next()?;
        let asks = |variable: &Variable| matches!(variable, Variable::Request(_));
        let keep = ops.iter().flat_map(|ops| ops.variables()).any(asks);
        Some(Self {
            remote: exchange.down.client,
            local: exchange.down.dialled(),
            version: exchange.version,
            method: exchange.method.clone(),
            path: exchange.path.to_string(),
            authority: exchange.authority.as_ref().map(ToString::to_string).unwrap_or_default(),
            route: Arc::clone(&rule.origin.rule),
            fields: keep.then(|| exchange.headers.clone()),
            answer: None,
        })
    }

    /// For an answer of the rule's own.
    pub fn answered(exchange: &Exchange, rule: &HttpRule, status: StatusCode) -> Option<Self> {
        let said = Self::of(exchange, rule, &[&rule.response_headers])?;
        Some(Self { answer: Some((status, None)), ..said })
    }

    fn part(&self, name: &str) -> Option<String> {
        match name {
            ":authority" => Some(self.authority.clone()).filter(|text| !text.is_empty()),
            ":path" => Some(self.path.clone()),
            ":method" => Some(self.method.to_string()),
            ":scheme" => Some("http".to_owned()),
            _ => None,
        }
    }
}

impl Facts for Option<Said> {
    fn value(&self, variable: &Variable, edited: &HeaderMap) -> Option<String> {
        self.as_ref()?.value(variable, edited)
    }
}

impl Facts for Said {
    fn value(&self, variable: &Variable, edited: &HeaderMap) -> Option<String> {
        let upstream = self.answer.and_then(|(_, upstream)| upstream);
        Some(match variable {
            Variable::Remote => self.remote.to_string(),
            Variable::RemoteIp => self.remote.ip().to_string(),
            Variable::RemotePort => self.remote.port().to_string(),
            Variable::Local => self.local.to_string(),
            Variable::LocalIp => self.local.ip().to_string(),
            Variable::LocalPort => self.local.port().to_string(),
            Variable::Protocol => match self.version {
                Version::HTTP_2 => "HTTP/2".to_owned(),
                version => format!("{version:?}"),
            },
            Variable::Route => self.route.to_string(),
            // Of an answer's operations the request's own fields are meant, of a request's those that are edited.
            Variable::Request(field) => {
                let fields = if self.answer.is_some() { self.fields.as_ref()? } else { edited };
                return value_of(field, fields, |name| self.part(name));
            }
            Variable::Response(field) => return value_of(field, edited, |_| None),
            Variable::Status => self.answer?.0.as_u16().to_string(),
            Variable::Upstream => upstream?.to_string(),
            Variable::UpstreamIp => upstream?.ip().to_string(),
        })
    }
}
