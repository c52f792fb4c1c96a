//! Which live pod with which account runs on which node: four texts per pod of the cluster, nothing more is kept.
//! Owns: the table and the watch that feeds it. Called by `issue` (reads), `controller` (runs the watch).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_pods};
use kube::{Api, Client};
use parking_lot::RwLock;
use tokio::sync::watch;

/// Longest wait for the API server's answer to one question.
const ASK_MAX: Duration = Duration::from_secs(5);
/// A node has no more pods of one namespace than this.
const ASKED_MAX: u32 = 2000;

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFact {
    pub uid: String,
    /// ServiceAccount.
    pub account: String,
    /// Empty while no node was chosen.
    pub node: String,
    /// Neither Failed nor Succeeded. A pod that is being deleted lives until it is gone: it still serves, and an
    /// agent that starts meanwhile needs its certificate.
    pub live: bool,
}

/// Node, namespace, account.
type Place = (String, String, String);

/// The table.
#[derive(Clone, Debug, Default)]
pub struct PodTable {
    /// By namespace and name.
    pods: HashMap<(String, String), PodFact>,
    /// How many live pods.
    live: HashMap<Place, usize>,
}

impl PodTable {
    pub fn get(&self, namespace: &str, name: &str) -> Option<&PodFact> {
        self.pods.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Whether a live pod with the account runs on the node.
    pub fn runs(&self, node: &str, namespace: &str, account: &str) -> bool {
        !node.is_empty()
            && self.live.contains_key(&(node.to_owned(), namespace.to_owned(), account.to_owned()))
    }

    pub fn put(&mut self, namespace: &str, name: &str, fact: PodFact) {
        self.remove(namespace, name);
        if fact.live {
            *self.live.entry(place(namespace, &fact)).or_default() += 1;
        }
        self.pods.insert((namespace.to_owned(), name.to_owned()), fact);
    }

    pub fn remove(&mut self, namespace: &str, name: &str) {
        let Some(old) = self.pods.remove(&(namespace.to_owned(), name.to_owned())) else { return };
        let place = place(namespace, &old);
        if old.live
            && let Some(count) = self.live.get_mut(&place)
        {
            *count -= 1;
            if *count == 0 {
                self.live.remove(&place);
            }
        }
    }

    fn keep_only(&mut self, seen: &BTreeSet<(String, String)>) {
        let gone: Vec<_> = self.pods.keys().filter(|key| !seen.contains(*key)).cloned().collect();
        for (namespace, name) in gone {
            self.remove(&namespace, &name);
        }
    }
}

fn place(namespace: &str, fact: &PodFact) -> Place {
    (fact.node.clone(), namespace.to_owned(), fact.account.clone())
}

/// The table with its feed.
pub struct Pods {
    table: RwLock<PodTable>,
    /// Counts changes; 0 until the first list is complete.
    changes: watch::Sender<u64>,
    /// Who is asked when the table does not know; none = nobody.
    client: Option<Client>,
}

impl Pods {
    pub fn new(client: Option<Client>) -> Arc<Self> {
        Arc::new(Self { table: RwLock::default(), changes: watch::channel(0).0, client })
    }

    /// Reads the table.
    pub fn read<T>(&self, look: impl FnOnce(&PodTable) -> T) -> T {
        look(&self.table.read())
    }

    /// Whether every pod of the cluster has been seen once.
    pub fn synced(&self) -> bool {
        *self.changes.borrow() > 0
    }

    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A table of what the API server says this moment of one pod, and of those of a namespace on its node. For what
    /// the watch does not tell in time: after an outage it is tried again seconds later than the agents' own.
    /// None = there is nobody to ask.
    pub async fn ask(
        &self,
        (namespace, name): (&str, &str),
        others: &str,
    ) -> Option<Result<PodTable, String>> {
        let client = self.client.clone()?;
        let asked = async {
            let mut table = PodTable::default();
            let list = |namespace: &str, fields: String| {
                let api = Api::<Pod>::namespaced(client.clone(), namespace);
                let params = ListParams::default().fields(&fields).limit(ASKED_MAX);
                async move { api.list(&params).await.map_err(|error| error.to_string()) }
            };
            for pod in list(namespace, format!("metadata.name={name}")).await? {
                apply(&mut table, &pod);
            }
            let node = table.get(namespace, name).map(|pod| pod.node.clone()).unwrap_or_default();
            if !node.is_empty() {
                for pod in list(others, format!("spec.nodeName={node}")).await? {
                    apply(&mut table, &pod);
                }
            }
            Ok(table)
        };
        let late = |_elapsed| Err("the API server does not answer".to_owned());
        Some(tokio::time::timeout(ASK_MAX, asked).await.unwrap_or_else(late))
    }

    /// Follows the cluster's pods until dropped. An API server that is gone leaves the table as it is.
    pub async fn run(self: Arc<Self>) {
        let Some(client) = self.client.clone() else { return };
        let config = watcher::Config::default().any_semantic();
        let stream = watch_pods(Api::<Pod>::all(client), config).default_backoff();
        let mut stream = std::pin::pin!(stream.map_err(|error| error.to_string()));
        let mut listing = BTreeSet::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => self.take(event, &mut listing),
                Err(error) => tracing::warn!(%error, "pods cannot be watched; the CA goes by what it knows"),
            }
        }
    }

    fn take(&self, event: Event<Pod>, listing: &mut BTreeSet<(String, String)>) {
        let mut table = self.table.write();
        match event {
            Event::Init => return listing.clear(),
            Event::InitApply(pod) => {
                if let Some(key) = apply(&mut table, &pod) {
                    listing.insert(key);
                }
                return;
            }
            Event::InitDone => table.keep_only(&std::mem::take(listing)),
            Event::Apply(pod) => drop(apply(&mut table, &pod)),
            Event::Delete(pod) => {
                if let (Some(namespace), Some(name)) = (&pod.metadata.namespace, &pod.metadata.name) {
                    table.remove(namespace, name);
                }
            }
        }
        drop(table);
        self.changes.send_modify(|count| *count += 1);
    }

    /// For labs and tests: a table that nobody feeds.
    pub fn edit(&self, change: impl FnOnce(&mut PodTable)) {
        change(&mut self.table.write());
        self.changes.send_modify(|count| *count += 1);
    }
}

fn apply(table: &mut PodTable, pod: &Pod) -> Option<(String, String)> {
    let (namespace, name) = (pod.metadata.namespace.clone()?, pod.metadata.name.clone()?);
    let spec = pod.spec.as_ref();
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let fact = PodFact {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        // The API server fills it in; `default` is what it fills in.
        account: spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".into()),
        node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        live: !matches!(phase, Some("Failed" | "Succeeded")),
    };
    table.put(&namespace, &name, fact);
    Some((namespace, name))
}
