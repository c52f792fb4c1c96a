//! `ApiServer`: etcd and a real kube-apiserver without nodes, for tests of whoever watches, writes or authenticates.
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::thread;

use anyhow::Result;
use serde_json::Value;

use super::control_plane::{Beside, ControlPlane, Site};
use crate::ip;
use crate::netns::NetNs;
use crate::remains::{self, Remains};

/// An API server of one's own, ready in seconds. Dropping it ends it and removes every trace.
pub struct ApiServer {
    plane: ControlPlane,
    // Last: it removes what the fields above name.
    remains: Remains,
}

impl ApiServer {
    /// etcd and kube-apiserver only: nothing fills in EndpointSlices or service accounts, nothing collects garbage.
    pub fn start() -> Result<Self> {
        Self::start_beside(Beside::default())
    }

    /// With kube-controller-manager: EndpointSlices, default service accounts, deletion of namespaces.
    pub fn start_with_controllers() -> Result<Self> {
        Self::start_beside(Beside { controllers: true, scheduler: false })
    }

    fn start_beside(beside: Beside) -> Result<Self> {
        remains::sweep()?;
        let remains = Remains::claim()?;
        let (dir, bulk) = (remains.dir(), remains.bulk_dir()?);
        // An address that is not loopback, on a bridge without legs: the API server publishes it as its own Service's endpoint.
        let address = Ipv4Addr::new(10, 200, 0, 1);
        let netns = NetNs::create(&format!("{}-cp", remains.name()), || {
            ip::batch(&format!(
                "link set lo up\nlink add eth0 type bridge\naddress add {address}/24 dev eth0\nlink set eth0 up\n"
            ))
        })?;
        let site = Site { lab: remains.name(), dir: &dir, bulk: &bulk, netns, address };
        let plane = ControlPlane::start(site, beside)?;
        plane.wait_ready()?;
        Ok(Self { plane, remains })
    }

    /// `https://127.0.0.1:PORT`, from anywhere on this machine.
    pub fn url(&self) -> String {
        self.plane.url()
    }

    /// For a member of `system:masters`.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.plane.admin_kubeconfig()
    }

    /// For any user, with at most one group; RBAC decides what it may do.
    pub fn kubeconfig_for(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        self.plane.kubeconfig_for(user, group)
    }

    /// What the API server's certificate is verified with.
    pub fn ca_pem(&self) -> &str {
        self.plane.pki().ca_pem()
    }

    /// kubectl as admin; its standard output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.plane.kubectl(arguments)
    }

    /// `kubectl apply --server-side` of these manifests.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.plane.apply(manifests)
    }

    /// The object at a path of the API, such as `/api/v1/namespaces/default`; `None` when there is none.
    pub fn object(&self, path: &str) -> Result<Option<Value>> {
        self.plane.https().object(path)
    }

    /// Ends the API server as a crash would; its port refuses, its objects stay.
    pub fn kill(&self) -> Result<()> {
        self.plane.kill_apiserver()
    }

    /// Starts it again with the same address, certificates and objects.
    pub fn boot(&self) -> Result<()> {
        self.plane.boot_apiserver()
    }

    /// What the API server logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.remains.dir().join("logs/kube-apiserver.log")).unwrap_or_default()
    }

    /// The namespace it lives in.
    pub fn netns(&self) -> &NetNs {
        self.plane.netns()
    }

    /// Unique on this machine as long as it lives.
    pub fn name(&self) -> &str {
        self.remains.name()
    }

    /// A folder for what belongs to it; goes with it.
    pub fn dir(&self) -> PathBuf {
        self.remains.dir()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.plane.last_words());
        }
        self.remains.clear();
    }
}
