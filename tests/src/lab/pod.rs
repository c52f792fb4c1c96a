//! A pod: a namespace with a cable to its node, addresses in both families, and who it is.
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use anyhow::{Result, bail};

use super::{Node, address};
use crate::client::{self, Dial, HttpReply};
use crate::ip;
use crate::netns::NetNs;

static NEXT_UID: AtomicU64 = AtomicU64::new(1);

/// What a pod shall be. Its account is its name until said otherwise.
#[derive(Clone, Debug)]
pub struct PodSpec {
    namespace: String,
    name: String,
    node: String,
    account: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    host: Option<u16>,
}

impl PodSpec {
    pub fn new(namespace: &str, name: &str, node: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            annotations: BTreeMap::new(),
            host: None,
        }
    }

    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The addresses of a pod that was there before.
    #[must_use]
    pub fn addresses_of(mut self, other: &Pod) -> Self {
        self.host = Some(other.inner.host);
        self
    }

    pub(super) fn node_name(&self) -> &str {
        &self.node
    }
}

/// A pod of the lab; clones are the same pod.
#[derive(Clone, Debug)]
pub struct Pod {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    lab: String,
    spec: PodSpec,
    host: u16,
    uid: String,
    created: SystemTime,
    ips: [IpAddr; 2],
    netns: NetNs,
    node: NetNs,
}

impl Pod {
    pub(super) fn create(lab: &str, node: &Node, spec: PodSpec) -> Result<Self> {
        let host = spec.host.unwrap_or_else(|| node.next_pod.fetch_add(1, Ordering::Relaxed));
        if host > address::LAST_POD {
            bail!("node {} has no address left for pod {}", node.name, spec.name);
        }
        let number = NEXT_UID.fetch_add(1, Ordering::Relaxed);
        let name = format!("{lab}-{}-{}-{number}", spec.namespace, spec.name);
        let no_dad = [("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")];
        let netns = NetNs::create(&name, || ip::sysctl(&no_dad))?;
        let ips = address::pod(node.index, host);
        let [ip4, ip6] = ips;
        let [via4, via6] = address::gateway(node.index);
        let cable = format!("p{host}");
        node.netns.run(|| {
            ip::batch(&format!(
                "link add {cable} type veth peer name eth0 netns {name}\nlink set {cable} master cni0 up\n"
            ))
        })?;
        netns.run(|| {
            ip::batch(&format!(
                "link set lo up\naddress add {ip4}/24 dev eth0\naddress add {ip6}/64 dev eth0 nodad\n\
                 link set eth0 up\nroute add default via {via4}\nroute add default via {via6}\n"
            ))
        })?;
        let uid = format!("00000000-0000-4000-8000-{number:012x}");
        let node = node.netns.try_clone()?;
        let created = SystemTime::now();
        Ok(Self {
            inner: Arc::new(Inner { lab: lab.to_owned(), spec, host, uid, created, ips, netns, node }),
        })
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Pulls the cable: the address is free for another pod at once, whoever still holds the namespace.
    pub(super) fn unplug(&self) -> Result<()> {
        self.inner.node.run(|| ip::batch(&format!("link del p{}\n", self.inner.host)))
    }

    pub fn lab(&self) -> &str {
        &self.inner.lab
    }

    pub fn name(&self) -> &str {
        &self.inner.spec.name
    }

    pub fn namespace(&self) -> &str {
        &self.inner.spec.namespace
    }

    /// `namespace/name`, as the CLI takes it.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace(), self.name())
    }

    pub fn node(&self) -> &str {
        &self.inner.spec.node
    }

    pub fn account(&self) -> &str {
        &self.inner.spec.account
    }

    /// The identity it has in the mesh.
    pub fn spiffe(&self, trust_domain: &str) -> String {
        format!("spiffe://{trust_domain}/ns/{}/sa/{}", self.namespace(), self.account())
    }

    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.inner.spec.labels
    }

    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.inner.spec.annotations
    }

    pub fn uid(&self) -> &str {
        &self.inner.uid
    }

    pub fn created(&self) -> SystemTime {
        self.inner.created
    }

    pub fn netns(&self) -> &NetNs {
        &self.inner.netns
    }

    /// IPv4 first.
    pub fn ips(&self) -> [IpAddr; 2] {
        self.inner.ips
    }

    pub fn v4(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.inner.ips[0], port)
    }

    pub fn v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.inner.ips[1], port)
    }

    /// Both of the above, for tests that do a thing in each family.
    pub fn both(&self, port: u16) -> [SocketAddr; 2] {
        [self.v4(port), self.v6(port)]
    }

    pub(crate) fn manifest_name(&self) -> String {
        format!("pod-{}-{}", self.namespace(), self.name())
    }

    /// Does `work` in the pod's namespace; sockets made there are the pod's.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.inner.netns.run(work)
    }

    /// A connection made by the pod, with the client's usual time limits.
    pub fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        self.dial(to, &Dial::default())
    }

    /// A connection made by the pod with socket options.
    pub fn dial(&self, to: SocketAddr, how: &Dial) -> Result<TcpStream> {
        self.run(|| client::dial(to, how))
    }

    /// One HTTP/1.1 request on a connection of its own.
    pub fn get(&self, to: SocketAddr, path: &str) -> Result<HttpReply> {
        client::get(self.connect(to)?, &to.to_string(), path)
    }
}
