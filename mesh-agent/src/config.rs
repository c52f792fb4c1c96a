//! Settings of `mesh-agent run`: flag > environment `NODEMESH_*` > `--config FILE` > default.
//! Owns: names, defaults and checks of every setting. Never: acts on one.
//! Called by `main` (resolve) and by `agent` (reads).

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::identity::ServiceSettings;
use crate::model::identity::check_trust_domain;
use crate::observe::logging::{LogFormat, check_level};

mod args;

pub use args::RunArgs;

/// Where the agent answers its CLI.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/nodemesh/admin.sock";
/// Where the kernel programs and maps are pinned.
pub const DEFAULT_RESOLV_CONF: &str = "/etc/resolv.conf";
pub const DEFAULT_TLS_DIR: &str = "/etc/nodemesh/tls";
pub const DEFAULT_BPF_DIR: &str = "/sys/fs/bpf/nodemesh";
/// Scrapes come from the node itself unless told otherwise: labels tell who talks to whom.
pub const DEFAULT_METRICS: &str = "127.0.0.1:15020";
/// The kubelet asks on the node's address.
pub const DEFAULT_READINESS: &str = "0.0.0.0:15021";
/// Where the CNI plugin asks; another agent of the same machine has it beside its own admin socket.
pub const DEFAULT_CNI_SOCKET: &str = "/run/nodemesh/cni.sock";
/// With `hostPID` the pod's own is the host's.
pub const DEFAULT_PROC_DIR: &str = "/proc";
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
pub const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";
pub const DEFAULT_ROOT_NAMESPACE: &str = "istio-system";
pub const DEFAULT_LOG_LEVEL: &str = "info";
/// The controller's Service.
pub const DEFAULT_CA_ADDRESS: &str = "https://nodemesh-controller.nodemesh-system.svc:15012";
/// Where the DaemonSet mounts the trust bundle.
pub const DEFAULT_CA_ROOT: &str = "/var/run/secrets/nodemesh/root-cert.pem";
/// Where the DaemonSet mounts the agent's token.
pub const DEFAULT_CA_TOKEN: &str = "/var/run/secrets/tokens/nodemesh-token";
/// What istiod calls the cluster it runs in.
pub const DEFAULT_CLUSTER_ID: &str = "Kubernetes";
/// Below Kubernetes' grace period of 30 s, so that the agent ends by itself.
pub const DEFAULT_DRAIN_DEADLINE: Duration = Duration::from_secs(20);
pub const DEFAULT_CERT_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Data-plane workers when unsaid: one per core up to this many.
pub const DEFAULT_WORKERS_MAX: usize = 16;
/// Most data-plane workers; each has a set of listeners in every pod.
pub const WORKERS_MAX: usize = 256;
/// Longest drain, seconds.
pub const DRAIN_DEADLINE_MAX: Duration = Duration::from_secs(3600);
/// A certificate is renewed at half of its life; less than this leaves no time for it.
pub const CERT_LIFETIME_MIN: Duration = Duration::from_secs(2);
/// There is no revocation: a stolen key is good until its certificate ends.
pub const CERT_LIFETIME_MAX: Duration = Duration::from_secs(90 * 24 * 3600);
/// Longest name of a Unix socket, bytes: `sun_path` without its NUL (`unix(7)`).
pub const SOCKET_PATH_MAX_BYTES: usize = 107;
/// Longest node name or namespace, bytes (Kubernetes: a DNS subdomain).
pub const NAME_MAX_BYTES: usize = 253;
/// Largest configuration file, bytes.
pub const CONFIG_FILE_MAX_BYTES: u64 = 1 << 20;

/// What `mesh-agent run` works with, complete and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This node's name, as in the pods' `spec.nodeName`.
    pub node: String,
    /// A directory as the source; none = Kubernetes.
    pub manifests: Option<PathBuf>,
    /// None = the pod's own account, else the usual kubeconfig.
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
    /// Where the kubelet and the processes of the node's pods are found.
    pub proc_dir: PathBuf,
    pub ca: CaSettings,
    pub admin_socket: PathBuf,
    /// Where the CNI plugin asks.
    pub cni_socket: PathBuf,
    /// Where the CNI plugin is kept installed: the node's folders of plugins and of configurations. None = not at all.
    pub cni_dirs: Option<(PathBuf, PathBuf)>,
    pub metrics: SocketAddr,
    pub readiness: SocketAddr,
    pub trust_domain: String,
    pub cluster_domain: String,
    pub root_namespace: String,
    /// Names the name servers that resolve ServiceEntries' names.
    pub resolv_conf: PathBuf,
    /// Where the files are that DestinationRules name, by namespace.
    pub tls_dir: PathBuf,
    pub bpf_dir: PathBuf,
    /// Where a holder process answers; none = a killed agent's backlog is lost.
    pub holder_socket: Option<PathBuf>,
    /// The DaemonSet that this agent is of: says whether the end of a pod is the end of the mesh here.
    pub daemonset: Option<ObjectName>,
    /// Which agent of the node this is, for its probes.
    pub instance: Option<String>,
    pub workers: usize,
    pub log_format: LogFormat,
    pub log_level: String,
    pub access_log: bool,
    pub drain_deadline: Duration,
    pub cert_lifetime: Duration,
    /// Which of the settings that the mesh has too were given to this agent: they beat the mesh's.
    pub own: OwnSettings,
}

/// See [`Settings::own`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnSettings {
    pub trust_domain: bool,
    pub root_namespace: bool,
    pub access_log: bool,
}

/// Which certificate authority signs for this node's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaSettings {
    /// The development CA in this directory.
    Dir(PathBuf),
    /// The controller's, or istiod's.
    Service(ServiceSettings),
}

/// Why the settings cannot be used. Names the setting and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("config: cannot read {path}: {source}; check the path and its permissions")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("config: {path} is larger than {CONFIG_FILE_MAX_BYTES} bytes; it should hold settings only")]
    TooLarge { path: PathBuf },
    #[error("config: {path}: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("{field}: not set; pass --{field} or set {variable}, or `{field}:` in the --config file")]
    Missing { field: &'static str, variable: String },
    #[error("{field}: {problem}; {remedy}")]
    Invalid { field: &'static str, problem: String, remedy: &'static str },
}

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(pub bool);

/// A duration such as `20s`, `24h` or `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// An object inside a namespace, written `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
}

/// Why a text is no [`Switch`], [`Span`] or [`ObjectName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("`{0}` is neither `on` nor `off`")]
    Switch(String),
    #[error("`{0}` is no duration; write e.g. `20s`, `15m` or `24h`")]
    Span(String),
    #[error("`{0}` names no object; write NAMESPACE/NAME")]
    ObjectName(String),
}

impl FromStr for Switch {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "on" | "true" => Ok(Self(true)),
            "off" | "false" => Ok(Self(false)),
            _ => Err(TextError::Switch(text.to_owned())),
        }
    }
}

impl FromStr for Span {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text).map(Self).map_err(|_detail| TextError::Span(text.to_owned()))
    }
}

impl FromStr for ObjectName {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(TextError::ObjectName(text.to_owned())),
        }
    }
}

impl<'de> Deserialize<'de> for ObjectName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // YAML readers disagree on whether a bare `on` is a truth value; take both.
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Switch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`on` or `off`")
            }

            fn visit_bool<E>(self, on: bool) -> Result<Switch, E> {
                Ok(Switch(on))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Switch, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl RunArgs {
    /// Reads the file, if one is named, and completes and checks the settings.
    pub fn resolve(self) -> Result<Settings, ConfigError> {
        let file = match &self.config {
            Some(path) => read_file(path)?,
            None => Self::default(),
        };
        self.or(file).complete()
    }

    fn complete(self) -> Result<Settings, ConfigError> {
        let text = |value: Option<String>, default: &str| value.unwrap_or_else(|| default.to_owned());
        let path = |value: Option<PathBuf>, default: &str| value.unwrap_or_else(|| default.into());
        let own = OwnSettings {
            trust_domain: self.trust_domain.is_some(),
            root_namespace: self.root_namespace.is_some(),
            access_log: self.access_log.is_some(),
        };
        let admin_socket = path(self.admin_socket, DEFAULT_ADMIN_SOCKET);
        let settings = Settings {
            own,
            node: required("node", self.node)?,
            manifests: self.manifests,
            kubeconfig: self.kubeconfig,
            context: self.context,
            proc_dir: path(self.proc_dir, DEFAULT_PROC_DIR),
            ca: match self.ca_dir {
                Some(dir) => CaSettings::Dir(dir),
                None => CaSettings::Service(ServiceSettings {
                    address: ca_address(&text(self.ca_address, DEFAULT_CA_ADDRESS))?,
                    root: path(self.ca_root, DEFAULT_CA_ROOT),
                    token: path(self.ca_token, DEFAULT_CA_TOKEN),
                    cluster_id: text(self.cluster_id, DEFAULT_CLUSTER_ID),
                }),
            },
            cni_socket: self.cni_socket.unwrap_or_else(|| beside(&admin_socket)),
            cni_dirs: both("cni-bin-dir", self.cni_bin_dir, "cni-conf-dir", self.cni_conf_dir)?,
            admin_socket,
            metrics: address(self.metrics, DEFAULT_METRICS)?,
            readiness: address(self.readiness, DEFAULT_READINESS)?,
            trust_domain: text(self.trust_domain, DEFAULT_TRUST_DOMAIN),
            cluster_domain: text(self.cluster_domain, DEFAULT_CLUSTER_DOMAIN),
            root_namespace: text(self.root_namespace, DEFAULT_ROOT_NAMESPACE),
            resolv_conf: path(self.resolv_conf, DEFAULT_RESOLV_CONF),
            tls_dir: path(self.tls_dir, DEFAULT_TLS_DIR),
            bpf_dir: path(self.bpf_dir, DEFAULT_BPF_DIR),
            holder_socket: self.holder_socket,
            daemonset: self.daemonset,
            instance: self.instance,
            workers: self.workers.unwrap_or_else(default_workers),
            log_format: self.log_format.unwrap_or_default(),
            log_level: text(self.log_level, DEFAULT_LOG_LEVEL),
            access_log: self.access_log.is_none_or(|Switch(on)| on),
            drain_deadline: self.drain_deadline.map_or(DEFAULT_DRAIN_DEADLINE, |Span(time)| time),
            cert_lifetime: self.cert_lifetime.map_or(DEFAULT_CERT_LIFETIME, |Span(time)| time),
        };
        settings.check()?;
        Ok(settings)
    }
}

impl Settings {
    fn check(&self) -> Result<(), ConfigError> {
        check_name("node", &self.node, "use the name in the pods' spec.nodeName")?;
        check_name("cluster-domain", &self.cluster_domain, "use e.g. `cluster.local`")?;
        check_name("root-namespace", &self.root_namespace, "use e.g. `istio-system`")?;
        check_trust_domain(&self.trust_domain).map_err(|error| ConfigError::Invalid {
            field: "trust-domain",
            problem: error.to_string(),
            remedy: "all agents of a mesh need the same one",
        })?;
        self.check_source()?;
        for (field, socket) in [("admin-socket", &self.admin_socket), ("cni-socket", &self.cni_socket)] {
            if socket.as_os_str().len() > SOCKET_PATH_MAX_BYTES {
                let problem =
                    format!("longer than the {SOCKET_PATH_MAX_BYTES} bytes a Unix socket's name may have");
                return invalid(field, problem, "use a shorter path");
            }
        }
        if self.admin_socket == self.cni_socket {
            let problem = format!("{} is the admin socket too", self.cni_socket.display());
            return invalid("cni-socket", problem, "use another path");
        }
        if self.metrics == self.readiness && self.metrics.port() != 0 {
            let problem = format!("{} is the readiness address too", self.metrics);
            return invalid("metrics", problem, "give them different ports");
        }
        if !self.bpf_dir.is_absolute() {
            let problem = format!("{} is not absolute", self.bpf_dir.display());
            return invalid("bpf-dir", problem, "name a folder under /sys/fs/bpf");
        }
        check_range("workers", self.workers, 1, WORKERS_MAX, "use the number of cores")?;
        if let Err(error) = check_level(&self.log_level) {
            return invalid("log-level", error.to_string(), "see `mesh-agent run --help`");
        }
        let drain = (Duration::ZERO, DRAIN_DEADLINE_MAX);
        check_range(
            "drain-deadline",
            Span(self.drain_deadline),
            Span(drain.0),
            Span(drain.1),
            "use e.g. 20s",
        )?;
        let (low, high) = (Span(CERT_LIFETIME_MIN), Span(CERT_LIFETIME_MAX));
        check_range("cert-lifetime", Span(self.cert_lifetime), low, high, "use e.g. 24h")
    }
}

impl Settings {
    /// One source only: two would contradict each other about who exists.
    fn check_source(&self) -> Result<(), ConfigError> {
        if let Some(manifests) = &self.manifests {
            for (field, given) in
                [("kubeconfig", self.kubeconfig.is_some()), ("context", self.context.is_some())]
            {
                if given {
                    let problem =
                        "is for Kubernetes as the source, and manifests makes a directory the source"
                            .to_owned();
                    return invalid(field, problem, "leave out one of the two");
                }
            }
            if !manifests.is_dir() {
                return invalid(
                    "manifests",
                    format!("{} is not a directory", manifests.display()),
                    "make it, or name the one that holds the manifests",
                );
            }
        }
        if let Some(file) = self.kubeconfig.as_ref().filter(|file| !file.is_file()) {
            let problem = format!("{} is not a file", file.display());
            return invalid("kubeconfig", problem, "name a kubeconfig, or leave it out inside a cluster");
        }
        if !self.proc_dir.join("self").exists() {
            let problem = format!("{} is no proc file system", self.proc_dir.display());
            return invalid(
                "proc-dir",
                problem,
                "mount the host's, or leave it out where the host's is /proc",
            );
        }
        Ok(())
    }
}

impl PartialOrd for Span {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.0.partial_cmp(&other.0)
    }
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(DEFAULT_WORKERS_MAX))
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, ConfigError> {
    value.ok_or_else(|| ConfigError::Missing {
        field,
        variable: format!("NODEMESH_{}", field.replace('-', "_").to_uppercase()),
    })
}

fn address(value: Option<SocketAddr>, default: &'static str) -> Result<SocketAddr, ConfigError> {
    value.map_or_else(
        || {
            default.parse().map_err(|_never: std::net::AddrParseError| ConfigError::Invalid {
                field: "metrics",
                problem: format!("{default} is no address"),
                remedy: "write ADDR:PORT",
            })
        },
        Ok,
    )
}

fn ca_address(text: &str) -> Result<http::Uri, ConfigError> {
    let remedy = "write https://HOST:PORT";
    match text.parse::<http::Uri>() {
        Ok(uri) if uri.scheme_str() == Some("https") && uri.host().is_some() => Ok(uri),
        Ok(_) => invalid("ca-address", format!("`{text}` is no https address"), remedy),
        Err(error) => invalid("ca-address", format!("`{text}` is no address: {error}"), remedy),
    }
}

/// The CNI socket of an agent that has this admin socket.
fn beside(admin_socket: &Path) -> PathBuf {
    if admin_socket == Path::new(DEFAULT_ADMIN_SOCKET) {
        return DEFAULT_CNI_SOCKET.into();
    }
    admin_socket.with_extension("cni.sock")
}

/// Two settings that only make sense together.
fn both<T>(
    one: &'static str,
    first: Option<T>,
    other: &'static str,
    second: Option<T>,
) -> Result<Option<(T, T)>, ConfigError> {
    match (first, second) {
        (Some(first), Some(second)) => Ok(Some((first, second))),
        (None, None) => Ok(None),
        (first, _) => {
            let (set, missing) = if first.is_some() { (one, other) } else { (other, one) };
            invalid(missing, format!("not set, but {set} is"), "set both, or neither")
        }
    }
}

fn invalid<T>(field: &'static str, problem: String, remedy: &'static str) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid { field, problem, remedy })
}

fn check_name(field: &'static str, name: &str, remedy: &'static str) -> Result<(), ConfigError> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
    if name.is_empty() || name.len() > NAME_MAX_BYTES || !name.bytes().all(good) {
        return invalid(
            field,
            format!("`{name}` is not 1 to {NAME_MAX_BYTES} of a-z, 0-9, '.' and '-'"),
            remedy,
        );
    }
    Ok(())
}

fn check_range<T: PartialOrd + fmt::Display>(
    field: &'static str,
    value: T,
    low: T,
    high: T,
    remedy: &'static str,
) -> Result<(), ConfigError> {
    if value < low || value > high {
        return invalid(field, format!("{value} is outside {low} to {high}"), remedy);
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<RunArgs, ConfigError> {
    let unreadable = |source| ConfigError::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > CONFIG_FILE_MAX_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    parse(&text).map_err(|message| ConfigError::Parse { path: path.to_owned(), message })
}

fn parse(text: &str) -> Result<RunArgs, String> {
    // An empty document is YAML's null, not an empty map.
    let parsed: Option<RunArgs> = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    Ok(parsed.unwrap_or_default())
}

#[cfg(test)]
mod tests;
