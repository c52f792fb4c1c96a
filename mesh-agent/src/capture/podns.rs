//! Where a pod's network namespace is. Owns: the namespaces that were told of from outside the manifests, by the CNI
//! plugin. Never: enrols. Called by `agent`.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::WorkloadId;
use crate::net::netns::NetNs;

/// Which file names a pod's network namespace.
#[derive(Clone, Debug)]
pub enum Namespace {
    /// A file that stays, such as `/run/netns/NAME`.
    Path(PathBuf),
    /// Held open: it needs no name, and none that this process can see.
    Open(Arc<NetNs>),
}

impl Namespace {
    pub fn open(&self) -> io::Result<Arc<NetNs>> {
        match self {
            Self::Path(path) => NetNs::open(path).map(Arc::new),
            Self::Open(netns) => Ok(Arc::clone(netns)),
        }
    }

    /// For messages.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Open(netns) => format!("net:[cookie {}]", netns.cookie()).into(),
        }
    }
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Path(a), Self::Path(b)) => a == b,
            (Self::Open(a), Self::Open(b)) => a.cookie() == b.cookie(),
            (Self::Path(_), Self::Open(_)) | (Self::Open(_), Self::Path(_)) => false,
        }
    }
}

impl From<PathBuf> for Namespace {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

/// The known namespaces of this node's pods.
#[derive(Debug, Default)]
pub struct PodNamespaces {
    found: HashMap<WorkloadId, (Arc<NetNs>, Vec<IpAddr>)>,
}

impl PodNamespaces {
    /// The namespace of the pod with these addresses, and the addresses that it holds for it, if it is known.
    pub fn get(&self, id: &WorkloadId, addresses: &[IpAddr]) -> Option<(Namespace, Vec<IpAddr>)> {
        let (netns, told) = self.found.get(id)?;
        let fits = addresses.iter().all(|address| told.contains(address));
        fits.then(|| (Namespace::Open(Arc::clone(netns)), told.clone()))
    }

    /// Takes the word of whoever made the namespace, the CNI plugin; it may come before the addresses are known
    /// elsewhere.
    pub fn told(&mut self, id: &WorkloadId, addresses: Vec<IpAddr>, netns: Arc<NetNs>) -> io::Result<()> {
        self.found.insert(id.clone(), (netns, addresses));
        Ok(())
    }

    /// Lets go of a pod's namespace: held open, it would never end.
    pub fn forget(&mut self, id: &WorkloadId) {
        self.found.remove(id);
    }

    /// Lets go of the namespaces of pods that are no more.
    pub fn retain(&mut self, is_wanted: impl Fn(&WorkloadId) -> bool) {
        self.found.retain(|id, _| is_wanted(id));
    }
}

#[cfg(test)]
mod tests;
