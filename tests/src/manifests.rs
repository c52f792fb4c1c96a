//! The manifest folder of a lab: what the API server would hold. Written file by file, each replaced in one step.
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::lab::Pod;

/// A folder of YAML files.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
    // Beside the folder, on the same file system: an unfinished file never appears inside.
    scratch: PathBuf,
}

/// A service and the pods behind it.
#[derive(Clone, Debug)]
pub struct ServiceSpec<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub vips: Vec<IpAddr>,
    pub ports: Vec<ServicePort<'a>>,
    pub pods: Vec<&'a Pod>,
}

/// One port of a service.
#[derive(Clone, Copy, Debug)]
pub struct ServicePort<'a> {
    pub name: &'a str,
    pub port: u16,
    pub target: u16,
    pub app_protocol: Option<&'a str>,
}

impl<'a> ServicePort<'a> {
    pub fn tcp(port: u16, target: u16) -> Self {
        Self { name: "tcp", port, target, app_protocol: None }
    }

    pub fn http(port: u16, target: u16) -> Self {
        Self { name: "http", port, target, app_protocol: Some("http") }
    }
}

impl Manifests {
    pub(crate) fn new(dir: &Path, scratch: &Path) -> Result<Self> {
        fs::create_dir_all(dir).context("cannot create the manifest folder")?;
        Ok(Self { dir: dir.to_path_buf(), scratch: scratch.to_path_buf() })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes `NAME.yaml` as it is, right or wrong.
    pub fn put_text(&self, name: &str, text: &str) -> Result<()> {
        let next = self.scratch.join(format!(".{name}.yaml"));
        fs::write(&next, text).with_context(|| format!("cannot write {}", next.display()))?;
        fs::rename(&next, self.file(name)).with_context(|| format!("cannot replace {name}.yaml"))
    }

    /// Writes objects as `NAME.yaml`. JSON is YAML.
    pub fn put(&self, name: &str, objects: &[Value]) -> Result<()> {
        let mut text = String::new();
        for object in objects {
            text.push_str("---\n");
            text.push_str(&serde_json::to_string_pretty(object).context("cannot write an object")?);
            text.push('\n');
        }
        self.put_text(name, &text)
    }

    /// Removes `NAME.yaml`; no error when it is not there.
    pub fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.file(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {name}.yaml"))
            }
            _ => Ok(()),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.yaml"))
    }

    /// A namespace, enrolled in the mesh or not.
    pub fn namespace(&self, name: &str, enrolled: bool) -> Result<()> {
        let labels = if enrolled { json!({"nodemesh.io/mesh": "enabled"}) } else { json!({}) };
        self.put(
            &format!("namespace-{name}"),
            &[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})],
        )
    }

    /// A pod as the API server would show it; `Lab::pod` has called this.
    pub fn pod(&self, pod: &Pod) -> Result<()> {
        self.put(&pod.manifest_name(), &[pod_object(pod)])
    }

    /// A service with one endpoint slice per family; every pod is ready.
    pub fn service(&self, spec: &ServiceSpec<'_>) -> Result<()> {
        let mut objects = vec![service_object(spec)];
        objects.extend([0, 1].map(|family| slice_object(spec, family)));
        self.put(&format!("service-{}-{}", spec.namespace, spec.name), &objects)
    }

    /// A `security.istio.io` object.
    pub fn security(&self, kind: &str, namespace: &str, name: &str, spec: &Value) -> Result<()> {
        self.put(
            &format!("{}-{namespace}-{name}", kind.to_lowercase()),
            &[json!({
                "apiVersion": "security.istio.io/v1", "kind": kind,
                "metadata": {"name": name, "namespace": namespace, "creationTimestamp": now()}, "spec": spec,
            })],
        )
    }

    /// Removes what `security` wrote.
    pub fn remove_security(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        self.remove(&format!("{}-{namespace}-{name}", kind.to_lowercase()))
    }

    /// `AuthorizationPolicy` from its spec.
    pub fn authorization(&self, namespace: &str, name: &str, spec: &Value) -> Result<()> {
        self.security("AuthorizationPolicy", namespace, name, spec)
    }

    /// `PeerAuthentication` with one mode for a whole namespace.
    pub fn mtls(&self, namespace: &str, mode: &str) -> Result<()> {
        self.security("PeerAuthentication", namespace, "default", &json!({"mtls": {"mode": mode}}))
    }
}

fn pod_object(pod: &Pod) -> Value {
    let mut annotations = json!({"nodemesh.io/netns": pod.netns().path()});
    for (name, value) in pod.annotations() {
        annotations[name] = json!(value);
    }
    let ips: Vec<Value> = pod.ips().iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid(), "labels": pod.labels(),
            "annotations": annotations, "creationTimestamp": rfc3339(pod.created()),
        },
        "spec": {
            "nodeName": pod.node(), "serviceAccountName": pod.account(),
            "containers": [{"name": "app", "image": "lab"}],
        },
        "status": {
            "phase": "Running", "podIP": pod.ips()[0], "podIPs": ips,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn service_object(spec: &ServiceSpec<'_>) -> Value {
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| {
            let mut object = json!({
                "name": port.name, "port": port.port, "targetPort": port.target, "protocol": "TCP",
            });
            if let Some(protocol) = port.app_protocol {
                object["appProtocol"] = json!(protocol);
            }
            object
        })
        .collect();
    let first = spec.vips.first().map_or_else(|| json!("None"), |vip| json!(vip));
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": spec.name, "namespace": spec.namespace},
        "spec": {
            "type": "ClusterIP", "clusterIP": first, "clusterIPs": spec.vips, "ports": ports,
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack",
        },
    })
}

fn slice_object(spec: &ServiceSpec<'_>, family: usize) -> Value {
    let endpoints: Vec<Value> = spec
        .pods
        .iter()
        .map(|pod| {
            json!({
                "addresses": [pod.ips()[family]], "nodeName": pod.node(),
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid()},
            })
        })
        .collect();
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| json!({"name": port.name, "port": port.target, "protocol": "TCP", "appProtocol": port.app_protocol}))
        .collect();
    let kind = ["IPv4", "IPv6"][family];
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-{}", spec.name, kind.to_lowercase()), "namespace": spec.namespace,
            "labels": {"kubernetes.io/service-name": spec.name},
        },
        "addressType": kind, "endpoints": endpoints, "ports": ports,
    })
}

/// The present as the API server writes it.
pub fn now() -> String {
    rfc3339(SystemTime::now())
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
