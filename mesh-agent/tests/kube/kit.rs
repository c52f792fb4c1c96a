//! A source on an API server of its own, and the objects that the scenarios are about.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::kube::CustomResourceExt as _;
use mesh_agent::api::istio::security::PeerAuthentication;
use mesh_agent::compile::{Kind, MeshSettings};
use mesh_agent::model::Workload;
use mesh_agent::source::kube::{self, KindState, KubeHandle, KubeSettings, KubeStatus};
use mesh_agent::world::{World, WorldStore};
use mesh_tests::ApiServer;

/// For whatever the API server or the source has to do; both share a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

pub(crate) struct Watching {
    pub(crate) store: Arc<WorldStore>,
    pub(crate) handle: KubeHandle,
}

pub(crate) fn settings(kubeconfig: std::path::PathBuf) -> KubeSettings {
    KubeSettings {
        kubeconfig: Some(kubeconfig),
        context: None,
        node: "node-a".into(),
        mesh: MeshSettings::default(),
        own_trust_domain: false,
        own_root_namespace: false,
        discovery: Duration::from_millis(500),
        pages: None,
    }
}

impl Watching {
    /// Starts and does not wait.
    pub(crate) fn start(settings: KubeSettings) -> Self {
        let store = Arc::new(WorldStore::new(World::new(settings.mesh.clone())));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.block_on(kube::start(settings, Arc::clone(&store))).unwrap();
        Self { store, handle }
    }

    pub(crate) fn synced(settings: KubeSettings) -> Self {
        let watching = Self::start(settings);
        watching.until("everything is read", |this| this.handle.is_synced());
        watching
    }

    pub(crate) fn world(&self) -> Arc<World> {
        self.store.load()
    }

    pub(crate) fn status(&self) -> KubeStatus {
        self.handle.status()
    }

    pub(crate) fn state(&self, kind: Kind) -> KindState {
        self.status().kinds[&kind].state
    }

    pub(crate) fn pod(&self, name: &str) -> Option<Arc<Workload>> {
        self.world().pod("shop", name).cloned()
    }

    /// Waits for something; returns how long that took.
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < PATIENCE, "never happened: {what}; status {:#?}", self.status());
            std::thread::sleep(Duration::from_millis(2));
        }
        begun.elapsed()
    }
}

/// Namespace `shop` with an account, in the mesh or not.
pub(crate) fn namespace(enrolled: bool) -> String {
    let label = if enrolled { "enabled" } else { "disabled" };
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{nodemesh.io/mesh: {label}}}}}\n---\n\
         apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: web, namespace: shop}}\n---\n"
    )
}

pub(crate) fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web}}}}\n\
         spec: {{nodeName: node-a, serviceAccountName: web, automountServiceAccountToken: false, \
         containers: [{{name: app, image: none}}]}}\n---\n"
    )
}

/// What a kubelet would report.
pub(crate) fn set_address(api: &ApiServer, name: &str, address: &str) {
    let patch = format!(
        "{{\"status\":{{\"phase\":\"Running\",\"podIP\":\"{address}\",\"podIPs\":[{{\"ip\":\"{address}\"}}]}}}}"
    );
    let arguments =
        ["patch", "pod", name, "-n", "shop", "--subresource=status", "--type=merge", "-p", &patch];
    api.kubectl(&arguments).unwrap();
}

pub(crate) fn service() -> &'static str {
    "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
     spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\n"
}

pub(crate) fn slice(pod: &str, address: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, namespace: shop, \
         labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
         endpoints: [{{addresses: [{address}], conditions: {{ready: true}}, nodeName: node-a, \
         targetRef: {{kind: Pod, name: {pod}, namespace: shop}}}}]\n---\n"
    )
}

/// The definition of PeerAuthentication, served under this version.
pub(crate) fn definition(version: &str) -> String {
    let mut definition = serde_json::to_value(PeerAuthentication::crd()).unwrap();
    definition["spec"]["versions"][0]["name"] = version.into();
    definition.to_string()
}

pub(crate) fn peer_authentication(version: &str, mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/{version}\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: shop}}\n\
         spec: {{mtls: {{mode: {mode}}}}}\n"
    )
}
