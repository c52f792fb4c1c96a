//! An API server with the mesh's namespace, agents and pods in it, and controllers as processes.
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kube::CustomResourceExt as _;
use mesh_agent::api::istio::security::{AuthorizationPolicy, PeerAuthentication};
use mesh_agent::identity::{Ca, CaService, CertManager, CertSettings, ServiceSettings, SystemClock};
use mesh_tests::{ApiServer, eventually};
use serde_json::Value;

pub(crate) const SOON: Duration = Duration::from_secs(30);
const USER: &str = "nodemesh-controller";

/// The cluster and what belongs to it.
pub(crate) struct Stage {
    pub(crate) server: ApiServer,
    kubeconfig: PathBuf,
}

impl Stage {
    pub(crate) fn open() -> Result<Self> {
        let server = ApiServer::start()?;
        let kubeconfig = server.kubeconfig_for(USER, None)?;
        server.apply(RBAC)?;
        for crd in [PeerAuthentication::crd(), AuthorizationPolicy::crd()] {
            server.apply(&serde_json::to_string(&crd)?)?;
        }
        server.apply(ACCOUNTS)?;
        for (namespace, name, account, node) in [
            ("nodemesh-system", "agent-1", "nodemesh-agent", "n1"),
            ("nodemesh-system", "agent-2", "nodemesh-agent", "n2"),
            ("shop", "web-1", "web", "n1"),
            ("shop", "api-1", "api", "n2"),
        ] {
            server.apply(&pod(namespace, name, account, node))?;
        }
        Ok(Self { server, kubeconfig })
    }

    /// A controller that is ready.
    pub(crate) fn controller(&self, id: &str, more: &[&str]) -> Result<Controller> {
        let log = self.server.dir().join(format!("{id}.log"));
        let out = File::create(&log)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
        command.args([
            "controller",
            "--ca-listen=127.0.0.1:0",
            "--metrics=127.0.0.1:0",
            "--readiness=127.0.0.1:0",
        ]);
        command
            .args(["--server-names=localhost", "--id", id, "--kubeconfig"])
            .arg(&self.kubeconfig)
            .args(more);
        let child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()?;
        let mut controller = Controller { id: id.to_owned(), log, child };
        eventually("the controller to be ready", SOON, || {
            controller.check_alive()?;
            Ok(controller.get("readiness", "/healthz/ready")?.0)
        })?;
        Ok(controller)
    }

    /// A token of an agent, bound to its pod.
    pub(crate) fn token(&self, account: &str, pod: Option<&str>, audience: &str) -> Result<String> {
        let mut words = vec!["create", "token", account, "-n", "nodemesh-system", "--audience", audience];
        if let Some(pod) = pod {
            words.extend(["--bound-object-kind", "Pod", "--bound-object-name", pod]);
        }
        Ok(self.server.kubectl(&words)?.trim().to_owned())
    }

    /// The published bundle.
    pub(crate) fn bundle(&self) -> Result<String> {
        let path = "/api/v1/namespaces/nodemesh-system/configmaps/nodemesh-ca-root";
        let object = self.server.object(path)?.context("no bundle is published")?;
        let text = object.pointer("/data/root-cert.pem").and_then(Value::as_str);
        Ok(text.context("the bundle is empty")?.to_owned())
    }

    /// An agent's certificate client with this token.
    pub(crate) fn agent(&self, controller: &Controller, token: &str) -> Result<Agent> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("token"), token)?;
        fs::write(dir.path().join("root.pem"), self.bundle()?)?;
        let service = ServiceSettings {
            address: format!("https://localhost:{}", controller.port("ca")?).parse()?,
            root: dir.path().join("root.pem"),
            token: dir.path().join("token"),
            cluster_id: "Kubernetes".to_owned(),
        };
        Ok(Agent { dir, service })
    }
}

/// What an agent has on its node.
pub(crate) struct Agent {
    pub(crate) dir: tempfile::TempDir,
    service: ServiceSettings,
}

impl Agent {
    /// A manager of its own, so that no back-off of a former request stands in the way.
    pub(crate) fn manager(&self) -> Result<Arc<CertManager>> {
        let clock = Arc::new(SystemClock);
        let service = CaService::new(self.service.clone(), Arc::clone(&clock) as _)?;
        Ok(CertManager::new(Ca::Service(Arc::new(service)), clock, CertSettings::default()))
    }

    pub(crate) async fn ask(&self, account: &str) -> Result<String, String> {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}")
            .parse()
            .map_err(|_malformed| "identity")?;
        let manager = self.manager().map_err(|error| error.to_string())?;
        let cert = manager.fetch(&identity).await.map_err(|error| error.to_string())?;
        Ok(cert.serial.clone())
    }
}

/// A controller process; dropping it kills it.
pub(crate) struct Controller {
    pub(crate) id: String,
    log: PathBuf,
    child: Child,
}

impl Controller {
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}:\n{}", self.id, self.log());
        }
        Ok(())
    }

    /// A port as the log tells it.
    pub(crate) fn port(&self, what: &str) -> Result<u16> {
        let log = self.log();
        let line = log.lines().find(|line| line.contains("controller started")).context("not started yet")?;
        let line: Value = serde_json::from_str(line)?;
        let address = line[what].as_str().context("no address")?;
        let (_, port) = address.rsplit_once(':').context("no port")?;
        Ok(port.parse()?)
    }

    /// GET from one of its HTTP ports: whether it was 200, and the answer.
    pub(crate) fn get(&self, server: &str, path: &str) -> Result<(bool, String)> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port(server)?))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok((text.starts_with("HTTP/1.1 200"), text))
    }

    pub(crate) fn leads(&self) -> Result<bool> {
        Ok(self.get("metrics", "/metrics")?.1.contains("nodemesh_controller_leader 1"))
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn terminate(mut self) -> Result<()> {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.child.id().cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        )?;
        let mut good = false;
        eventually("the controller to end", Duration::from_secs(15), || {
            let ended = self.child.try_wait()?;
            good = ended.is_some_and(|status| status.success());
            Ok(ended.is_some())
        })?;
        ensure!(good, "it ended badly:\n{}", self.log());
        Ok(())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.id, self.log());
        }
    }
}

pub(crate) fn pod(namespace: &str, name: &str, account: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  nodeName: {node}\n  \
         serviceAccountName: {account}\n  automountServiceAccountToken: false\n  containers: [{{name: main, image: none}}]\n"
    )
}

const ACCOUNTS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: nodemesh-agent, namespace: nodemesh-system}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: stranger, namespace: nodemesh-system}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: api, namespace: shop}
";

/// What a controller may do, and nothing else.
const RBAC: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: nodemesh-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: nodemesh-controller}
rules:
- {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
- {apiGroups: [""], resources: [pods], verbs: [list, watch]}
- {apiGroups: [""], resources: [services], verbs: [list, watch]}
- {apiGroups: [networking.istio.io], resources: [destinationrules, serviceentries, virtualservices, workloadentries], verbs: [list, watch]}
- {apiGroups: [networking.istio.io], resources: [destinationrules/status, virtualservices/status], verbs: [patch]}
- {apiGroups: [security.istio.io], resources: [peerauthentications, authorizationpolicies], verbs: [list, watch]}
- {apiGroups: [security.istio.io], resources: [peerauthentications/status, authorizationpolicies/status], verbs: [patch]}
- {apiGroups: [gateway.networking.k8s.io], resources: [httproutes, grpcroutes], verbs: [list, watch]}
- {apiGroups: [gateway.networking.k8s.io], resources: [httproutes/status, grpcroutes/status], verbs: [patch]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: nodemesh-controller}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: nodemesh-controller}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: nodemesh-controller}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: nodemesh-controller, namespace: nodemesh-system}
rules:
- {apiGroups: [""], resources: [secrets, configmaps], verbs: [create]}
- {apiGroups: [""], resources: [secrets], resourceNames: [nodemesh-ca], verbs: [get, update]}
- {apiGroups: [""], resources: [configmaps], resourceNames: [nodemesh-ca-root], verbs: [get, update]}
- {apiGroups: [""], resources: [configmaps], resourceNames: [nodemesh], verbs: [get]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}
- {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [nodemesh-controller], verbs: [get, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: nodemesh-controller, namespace: nodemesh-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: nodemesh-controller}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: nodemesh-controller}]
"#;
