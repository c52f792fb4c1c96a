//! A pod (or a VM later) as the mesh sees it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::Identity;

/// Kubernetes labels, sorted by key.
pub type Labels = BTreeMap<String, String>;

/// A workload's key: `NAMESPACE/NAME/UID`, or `NAMESPACE/NAME` where the manifest has no UID. A pod that is
/// deleted and made again under the same name is another workload wherever UIDs exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct WorkloadId(pub Arc<str>);

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One pod. Addresses are the pod's own, at most one per family (Pod `status.podIPs`).
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Workload {
    pub id: WorkloadId,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub identity: Identity,
    pub addresses: Vec<IpAddr>,
    /// `spec.nodeName`; empty while unscheduled.
    pub node: Arc<str>,
    pub labels: Arc<Labels>,
    /// `region/zone/subzone` of its own (label `istio-locality`, WorkloadEntry `locality`); empty = its node's.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub locality: Arc<str>,
    /// In the mesh: its namespace's label and its own, host network and life considered.
    pub enrolled: bool,
    /// `nodemesh.io/netns`: where the pod's network namespace is found; none outside the directory source.
    pub netns: Option<PathBuf>,
    /// Ids of its containers, by which its processes are known where their cgroup does not name the pod; kept for
    /// the pods of this node only.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub containers: Box<[Arc<str>]>,
    /// Owner as metrics name it: `source_workload`. The pod's name without generated suffixes.
    pub workload_name: Arc<str>,
    /// `istio_canonical_service`: label `service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`, or workload name.
    pub canonical_service: Arc<str>,
    /// `istio_canonical_revision`: label `service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`, or `latest`.
    pub canonical_revision: Arc<str>,
    /// Pod `status.phase` is Succeeded or Failed: it has no network any more.
    pub ended: bool,
    /// Pod `spec.hostNetwork`: never enrolled, never looked up by address.
    pub host_network: bool,
}

impl Workload {
    /// Pod `metadata.uid`, where it has one.
    pub fn uid(&self) -> Option<&str> {
        self.id.0.splitn(3, '/').nth(2)
    }

    /// `NAME.NAMESPACE`, as people and logs call a workload.
    pub fn display_name(&self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }

    /// The pod's own address of the other address's family.
    pub fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|own| own.is_ipv4() == other.is_ipv4())
    }
}
