//! The flags of `mesh-agent run`, which are the fields of its configuration file too. Called by `config`.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::*;

/// One source of settings: the flags and environment, or the file. Same names, same text forms.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RunArgs {
    /// YAML file with any of these settings, named as the flags are
    #[arg(long, env = "NODEMESH_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Name of this node, as in the pods' spec.nodeName
    #[arg(long, env = "NODEMESH_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// Directory of manifests (Pods, Services, policies, ...), reloaded on change
    #[arg(long, env = "NODEMESH_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Kubeconfig of the cluster that is the source [default: the pod's own account, else as kubectl]
    #[arg(long, env = "NODEMESH_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, env = "NODEMESH_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// Where the processes of the node's pods are found [default: /proc]
    #[arg(long, env = "NODEMESH_PROC_DIR", value_name = "DIR")]
    pub proc_dir: Option<PathBuf>,
    /// Directory of the development certificate authority, made on first use
    #[arg(long, env = "NODEMESH_CA_DIR", value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Without --ca-dir: the certificate authority, ours or istiod's
    /// [default: https://nodemesh-controller.nodemesh-system.svc:15012]
    #[arg(long, env = "NODEMESH_CA_ADDRESS", value_name = "URL")]
    pub ca_address: Option<String>,
    /// PEM bundle that verifies the CA's server [default: /var/run/secrets/nodemesh/root-cert.pem]
    #[arg(long, env = "NODEMESH_CA_ROOT", value_name = "FILE")]
    pub ca_root: Option<PathBuf>,
    /// Token for the CA, read for each request [default: /var/run/secrets/tokens/nodemesh-token]
    #[arg(long, env = "NODEMESH_CA_TOKEN", value_name = "FILE")]
    pub ca_token: Option<PathBuf>,
    /// Name by which the CA knows this cluster [default: Kubernetes]
    #[arg(long, env = "NODEMESH_CLUSTER_ID", value_name = "NAME")]
    pub cluster_id: Option<String>,
    /// Set by the command line's own --admin-socket
    #[arg(skip)]
    pub admin_socket: Option<PathBuf>,
    /// Unix socket on which the CNI plugin asks [default: /run/nodemesh/cni.sock, or beside another --admin-socket]
    #[arg(long, env = "NODEMESH_CNI_SOCKET", value_name = "PATH")]
    pub cni_socket: Option<PathBuf>,
    /// The node's folder of CNI plugins, in which the agent keeps its own; needs --cni-conf-dir
    #[arg(long, env = "NODEMESH_CNI_BIN_DIR", value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// The node's folder of CNI configurations, in whose first the agent keeps its plugin; needs --cni-bin-dir
    #[arg(long, env = "NODEMESH_CNI_CONF_DIR", value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Address of /metrics [default: 127.0.0.1:15020]
    #[arg(long, env = "NODEMESH_METRICS", value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Address of /healthz/ready [default: 0.0.0.0:15021]
    #[arg(long, env = "NODEMESH_READINESS", value_name = "ADDR:PORT")]
    pub readiness: Option<SocketAddr>,
    /// Trust domain of the mesh's identities [default: cluster.local]
    #[arg(long, env = "NODEMESH_TRUST_DOMAIN", value_name = "NAME")]
    pub trust_domain: Option<String>,
    /// DNS domain of the cluster's Services [default: cluster.local]
    #[arg(long, env = "NODEMESH_CLUSTER_DOMAIN", value_name = "NAME")]
    pub cluster_domain: Option<String>,
    /// Namespace whose policies hold for the whole mesh [default: istio-system]
    #[arg(long, env = "NODEMESH_ROOT_NAMESPACE", value_name = "NAME")]
    pub root_namespace: Option<String>,
    /// Names the name servers that resolve ServiceEntries' names [default: /etc/resolv.conf]
    #[arg(long, env = "NODEMESH_RESOLV_CONF", value_name = "FILE")]
    pub resolv_conf: Option<PathBuf>,
    /// Certificates and keys that DestinationRules name: of namespace NS under DIR/NS [default: /etc/nodemesh/tls]
    #[arg(long, env = "NODEMESH_TLS_DIR", value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Folder of the pinned kernel programs and maps [default: /sys/fs/bpf/nodemesh]
    #[arg(long, env = "NODEMESH_BPF_DIR", value_name = "DIR")]
    pub bpf_dir: Option<PathBuf>,
    /// Unix socket of a holder process (`mesh-agent hold`) that keeps the listeners if the agent is killed
    #[arg(long, env = "NODEMESH_HOLDER_SOCKET", value_name = "PATH")]
    pub holder_socket: Option<PathBuf>,
    /// The DaemonSet that this agent is a pod of: told to end, it takes pods out of the mesh only if that is gone
    #[arg(long, env = "NODEMESH_DAEMONSET", value_name = "NAMESPACE/NAME")]
    pub daemonset: Option<ObjectName>,
    /// Which agent of the node this is, for `mesh-agent probe`; the pod's UID
    #[arg(long, env = "NODEMESH_INSTANCE", value_name = "NAME", hide = true)]
    pub instance: Option<String>,
    /// Data-plane workers [default: one per core, at most 16]
    #[arg(long, env = "NODEMESH_WORKERS", value_name = "N")]
    pub workers: Option<usize>,
    /// How log lines look [default: text]
    #[arg(long, env = "NODEMESH_LOG_FORMAT", value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Log filter, e.g. `info` or `info,mesh_agent::tunnel=debug` [default: info]
    #[arg(long, env = "NODEMESH_LOG_LEVEL", value_name = "FILTER")]
    pub log_level: Option<String>,
    /// One log line per finished connection [default: on]
    #[arg(long, env = "NODEMESH_ACCESS_LOG", value_name = "on|off")]
    pub access_log: Option<Switch>,
    /// How long live connections may go on after SIGTERM, e.g. 20s [default: 20s]
    #[arg(long, env = "NODEMESH_DRAIN_DEADLINE", value_name = "DURATION")]
    pub drain_deadline: Option<Span>,
    /// Life of a workload certificate, renewed at its half, e.g. 24h [default: 24h]
    #[arg(long, env = "NODEMESH_CERT_LIFETIME", value_name = "DURATION")]
    pub cert_lifetime: Option<Span>,
}

impl RunArgs {
    /// Fills what is unset from `lower`.
    pub(super) fn or(self, lower: Self) -> Self {
        Self {
            config: self.config.or(lower.config),
            node: self.node.or(lower.node),
            manifests: self.manifests.or(lower.manifests),
            kubeconfig: self.kubeconfig.or(lower.kubeconfig),
            context: self.context.or(lower.context),
            proc_dir: self.proc_dir.or(lower.proc_dir),
            ca_dir: self.ca_dir.or(lower.ca_dir),
            ca_address: self.ca_address.or(lower.ca_address),
            ca_root: self.ca_root.or(lower.ca_root),
            ca_token: self.ca_token.or(lower.ca_token),
            cluster_id: self.cluster_id.or(lower.cluster_id),
            admin_socket: self.admin_socket.or(lower.admin_socket),
            cni_socket: self.cni_socket.or(lower.cni_socket),
            cni_bin_dir: self.cni_bin_dir.or(lower.cni_bin_dir),
            cni_conf_dir: self.cni_conf_dir.or(lower.cni_conf_dir),
            metrics: self.metrics.or(lower.metrics),
            readiness: self.readiness.or(lower.readiness),
            trust_domain: self.trust_domain.or(lower.trust_domain),
            cluster_domain: self.cluster_domain.or(lower.cluster_domain),
            root_namespace: self.root_namespace.or(lower.root_namespace),
            resolv_conf: self.resolv_conf.or(lower.resolv_conf),
            tls_dir: self.tls_dir.or(lower.tls_dir),
            bpf_dir: self.bpf_dir.or(lower.bpf_dir),
            holder_socket: self.holder_socket.or(lower.holder_socket),
            daemonset: self.daemonset.or(lower.daemonset),
            instance: self.instance.or(lower.instance),
            workers: self.workers.or(lower.workers),
            log_format: self.log_format.or(lower.log_format),
            log_level: self.log_level.or(lower.log_level),
            access_log: self.access_log.or(lower.access_log),
            drain_deadline: self.drain_deadline.or(lower.drain_deadline),
            cert_lifetime: self.cert_lifetime.or(lower.cert_lifetime),
        }
    }
}
