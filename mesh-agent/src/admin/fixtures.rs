//! A scripted [`AdminSource`] over `tests/data/views.json`, which the tests of the built binary use too.

use parking_lot::Mutex;
use serde::Deserialize;

use super::*;

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Views {
    pub(crate) status: Status,
    pub(crate) checks: Vec<Check>,
    pub(crate) workloads: Vec<WorkloadView>,
    pub(crate) services: Vec<ServiceView>,
    pub(crate) policies: Vec<PolicyView>,
    pub(crate) certificates: Vec<CertView>,
    pub(crate) connections: Vec<ConnView>,
    pub(crate) denied: Explanation,
    pub(crate) allowed: Explanation,
    pub(crate) routes: RoutesView,
}

pub(crate) fn views() -> Views {
    serde_json::from_str(include_str!("../../tests/data/views.json")).unwrap()
}

pub(crate) struct Scripted {
    pub(crate) views: Views,
    pub(crate) missing: Mutex<Vec<String>>,
}

impl Scripted {
    pub(crate) fn new() -> Self {
        Self { views: views(), missing: Mutex::new(Vec::new()) }
    }
}

impl AdminSource for Scripted {
    fn status(&self) -> Status {
        self.views.status.clone()
    }

    fn checks(&self) -> Vec<Check> {
        self.views.checks.clone()
    }

    fn workloads(&self) -> Vec<WorkloadView> {
        self.views.workloads.clone()
    }

    fn services(&self) -> Vec<ServiceView> {
        self.views.services.clone()
    }

    fn policies(&self) -> Vec<PolicyView> {
        self.views.policies.clone()
    }

    fn certificates(&self) -> Vec<CertView> {
        self.views.certificates.clone()
    }

    fn connections(&self) -> Vec<ConnView> {
        self.views.connections.clone()
    }

    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, ExplainError> {
        match query.source.as_str() {
            "shop/frontend-0" => Ok(self.views.denied.clone()),
            "192.0.2.7" => Ok(self.views.allowed.clone()),
            other => Err(ExplainError::UnknownSource(other.to_owned())),
        }
    }

    fn routes(&self, query: &ExplainQuery) -> Result<RoutesView, ExplainError> {
        match query.source.as_str() {
            "shop/frontend-0" => Ok(self.views.routes.clone()),
            other => Err(ExplainError::UnknownSource(other.to_owned())),
        }
    }

    fn missing(&self) -> Vec<String> {
        self.missing.lock().clone()
    }
}
