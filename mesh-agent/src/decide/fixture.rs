//! A snapshot of plain vectors, so that the tests of decisions need no world.

use std::collections::BTreeMap;

use super::*;
use crate::model::AuthzAction;
use crate::model::policy::{AuthzRule, AuthzScope, Source, StringMatch, Values};

#[derive(Default)]
pub(crate) struct Mesh {
    pub(crate) workloads: Vec<Arc<Workload>>,
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) peer_auths: Vec<Arc<PeerAuth>>,
    pub(crate) authz: Vec<Arc<AuthzPolicy>>,
    /// (namespace, Service, workload).
    pub(crate) members: Vec<(String, String, WorkloadId)>,
    pub(crate) denied: Vec<Identity>,
    /// For every client and port of a Service.
    pub(crate) rules: BTreeMap<crate::model::ServiceId, Vec<Arc<HttpRule>>>,
    /// The same for connections.
    pub(crate) connections: BTreeMap<crate::model::ServiceId, Arc<ConnRules>>,
    pub(crate) traffic: TrafficPolicy,
    /// Node to locality.
    pub(crate) localities: BTreeMap<String, String>,
}

impl Snapshot for Mesh {
    fn denied(&self, identity: &Identity) -> bool {
        self.denied.contains(identity)
    }

    fn root_namespace(&self) -> &str {
        "istio-system"
    }

    fn workload(&self, id: &WorkloadId) -> Option<&Arc<Workload>> {
        self.workloads.iter().find(|workload| workload.id == *id)
    }

    fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.iter().find(|workload| workload.addresses.contains(&address))
    }

    fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.services.iter().find(|service| service.vips.contains(&address))
    }

    fn path_normalization(&self) -> path::PathNormalization {
        path::PathNormalization::default()
    }

    fn locality(&self, node: &str) -> &str {
        self.localities.get(node).map_or("", String::as_str)
    }

    fn peer_auths(&self, namespace: &str) -> impl Iterator<Item = &Arc<PeerAuth>> {
        let namespace = namespace.to_owned();
        self.peer_auths.iter().filter(move |policy| *policy.policy.namespace == *namespace)
    }

    fn authz_policies(&self, namespace: &str) -> impl Iterator<Item = &Arc<AuthzPolicy>> {
        let namespace = namespace.to_owned();
        self.authz.iter().filter(move |policy| *policy.policy.namespace == *namespace)
    }

    fn serves(&self, namespace: &str, service: &str, workload: &Workload) -> bool {
        self.members.iter().any(|(n, s, id)| n == namespace && s == service && *id == workload.id)
    }

    fn http_rules(&self, _source: &Workload, service: &Service, _port: u16) -> Arc<[Arc<HttpRule>]> {
        self.rules.get(&service.id).cloned().unwrap_or_default().into()
    }

    fn conn_rules(&self, _source: &Workload, service: &Service, _port: u16) -> Option<Arc<ConnRules>> {
        self.connections.get(&service.id).cloned()
    }

    fn has_http_rules(&self, service: &Service) -> bool {
        self.rules.get(&service.id).is_some_and(|rules| !rules.is_empty())
    }

    fn service_by_host(&self, host: &str, _from_namespace: &str) -> Option<&Arc<Service>> {
        self.services.iter().find(|service| *service.hostname == *host)
    }

    fn traffic(&self, _source: &Workload, to: &Destination<'_>) -> Result<Arc<TrafficPolicy>, NoSubset> {
        match to.subset {
            None => Ok(Arc::new(self.traffic.clone())),
            Some(subset) => Err(NoSubset { subset: subset.into() }),
        }
    }

    fn endpoints(
        &self,
        source: &Workload,
        to: &Destination<'_>,
        vip: IpAddr,
    ) -> Result<Arc<[Endpoint]>, NoSubset> {
        self.traffic(source, to)?;
        Ok(to.service.port(to.port).map(|port| Arc::clone(port.endpoints_for(vip))).unwrap_or_default())
    }
}

pub(crate) fn workload(namespace: &str, name: &str, node: &str, address: &str) -> Arc<Workload> {
    Arc::new(Workload {
        id: WorkloadId(format!("{namespace}/{name}").into()),
        name: name.into(),
        namespace: namespace.into(),
        identity: Identity::new("cluster.local", namespace, name).unwrap(),
        addresses: vec![address.parse().unwrap()],
        node: node.into(),
        labels: Arc::new(BTreeMap::from([("app".to_owned(), name.to_owned())])),
        locality: "".into(),
        enrolled: true,
        netns: None,
        containers: Box::default(),
        workload_name: name.into(),
        canonical_service: name.into(),
        canonical_revision: "latest".into(),
        ended: false,
        host_network: false,
    })
}

pub(crate) fn policy(name: &str, action: AuthzAction, rules: Vec<AuthzRule>) -> AuthzPolicy {
    AuthzPolicy {
        policy: PolicyRef { kind: "AuthorizationPolicy", namespace: "shop".into(), name: name.into() },
        action,
        scope: AuthzScope { namespace: Some("shop".into()), selector: None, services: Vec::new() },
        rules,
        invalid: None,
        dry_run: false,
    }
}

pub(crate) fn from_blocks(any: &[&str], none: &[&str]) -> AuthzRule {
    let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let ip_blocks = Values { any: parse(any), none: parse(none) };
    AuthzRule { from: vec![Source { ip_blocks, ..Source::default() }], ..AuthzRule::default() }
}

pub(crate) fn from_principal(pattern: StringMatch) -> AuthzRule {
    let principals = Values { any: vec![pattern], none: Vec::new() };
    AuthzRule { from: vec![Source { principals, ..Source::default() }], ..AuthzRule::default() }
}
