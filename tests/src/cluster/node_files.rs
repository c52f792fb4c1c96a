//! What a node's programs are told: the settings of containerd, kubelet and the pods' network.
//!
//! Settings that look odd are there because nodes are namespaces of a machine that may have version 1 of cgroups, no
//! right to lower an OOM score (CAP_SYS_RESOURCE) and a disk that others fill.
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::control_plane::ControlPlane;
use super::image::PAUSE;
use super::{DNS_SERVICE, node::Plan};

/// Where a node sees its own folder.
pub(super) const HERE: &str = "/run/nodemesh-node";
/// In that folder: there when the control plane is ready.
pub(super) const START: &str = "start";
pub(super) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// Where DaemonSets of meshes and networks put their plugins, by custom.
pub(super) const CNI_BIN: &str = "/opt/cni/bin";

/// Writes them to the node's folder.
pub(super) fn write(state: &Path, plan: &Plan, plane: &ControlPlane) -> Result<()> {
    for dir in ["logs", "var-lib", "var-log", "layers"] {
        fs::create_dir_all(state.join(dir)).context("cannot create a node's folders")?;
    }
    let address = plan.address.to_string();
    let pair = plane.pki().server(&plan.name, &[&plan.name, &address])?;
    let user = format!("system:node:{}", plan.name);
    let kubelet = plane.inner_kubeconfig(&plan.name, &user, Some("system:nodes"))?;
    let proxy = plane.inner_kubeconfig("kube-proxy", "system:kube-proxy", None)?;
    for (from, to) in [
        (pair.cert, "kubelet.crt"),
        (pair.key, "kubelet.key"),
        (plane.pki().ca().cert, "ca.crt"),
        (kubelet, "kubelet.kubeconfig"),
        (proxy, "kube-proxy.kubeconfig"),
    ] {
        fs::copy(&from, state.join(to)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    for (file, text) in [
        ("address", address),
        // Nodes have no name server: a pod that does not use the cluster's finds none.
        ("resolv.conf", String::new()),
        ("containerd.toml", containerd()),
        ("kubelet.json", format!("{:#}\n", kubelet_settings())),
        ("cni.conflist", format!("{:#}\n", network(plan))),
    ] {
        fs::write(state.join(file), text).with_context(|| format!("cannot write a node's {file}"))?;
    }
    Ok(())
}

fn containerd() -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
# Not of use here, and each of them probes the machine at start.
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_BIN}"
conf_dir = "/etc/cni/net.d"
"#
    )
}

fn kubelet_settings() -> serde_json::Value {
    let here = |file: &str| format!("{HERE}/{file}");
    json!({
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": here("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": here("kubelet.crt"), "tlsPrivateKeyFile": here("kubelet.key"),
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": [], "failCgroupV1": false,
        "failSwapOn": false, "oomScoreAdj": 0,
        "clusterDNS": [DNS_SERVICE], "clusterDomain": "cluster.local", "resolvConf": here("resolv.conf"),
        "evictionHard": {
            "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
            "imagefs.available": "0%", "imagefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": false, "registerNode": true, "readOnlyPort": 0,
        // Ready is told, and a changed ConfigMap is seen, sooner than by the defaults of a minute.
        "nodeStatusUpdateFrequency": "2s", "syncFrequency": "5s",
    })
}

/// A cable per pod and a route to it: no bridge, so that replies of a neighbour on the same node pass the node's rules.
fn network(plan: &Plan) -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0", "name": "nodemesh-test",
        "plugins": [{
            "type": "ptp", "ipMasq": false,
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": plan.pods}]], "routes": [{"dst": "0.0.0.0/0"}],
                // Gone with a start of the node, as its pods are.
                "dataDir": "/run/cni/networks",
            },
        }],
    })
}
