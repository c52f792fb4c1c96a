//! The CNI specification's side: environment, network configuration, errors. Owns: reading what the runtime says and
//! writing what it expects. Never: talks to the agent. Called by `cni::plugin`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::json;
use super::protocol::PodRef;

/// Versions of the specification that the plugin speaks; what it passes through has looked alike in all of them.
pub(super) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// What a runtime that names no version is answered in.
const VERSION_UNSAID: &str = "0.3.1";

/// Error codes of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    IncompatibleVersion = 1,
    UnknownContainer = 3,
    InvalidEnvironment = 4,
    Io = 5,
    Decode = 6,
    InvalidConfig = 7,
    TryAgainLater = 11,
}

/// What the runtime is told instead of a result.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Failure {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// As JSON for standard output.
    pub(super) fn to_json(&self, version: &str) -> String {
        let code = self.code as u32;
        serde_json::json!({
            "cniVersion": version, "code": code, "msg": format!("{}: {}", super::PLUGIN, self.message),
        })
        .to_string()
    }
}

/// What the plugin is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        Ok(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            other => {
                let message = format!("CNI_COMMAND: `{other}` is no command of the CNI specification");
                return Err(Failure::new(Code::InvalidEnvironment, message));
            }
        })
    }
}

/// The environment, as the runtime sets it for one attachment.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    pub(super) sandbox: String,
    pub(super) netns: Option<PathBuf>,
    arguments: BTreeMap<String, String>,
}

impl Environment {
    /// From the variables `CNI_*`.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let filled = |name: &str| variable(name).filter(|value| !value.is_empty());
        let arguments = filled("CNI_ARGS").unwrap_or_default();
        let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        Self {
            sandbox: filled("CNI_CONTAINERID").unwrap_or_default(),
            netns: filled("CNI_NETNS").map(PathBuf::from),
            arguments: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        }
    }

    /// The pod, if the runtime was told to make one; a plain container has no place in the mesh.
    pub(super) fn pod(&self) -> Result<Option<PodRef>, Failure> {
        let argument = |name: &str| self.arguments.get(name).filter(|value| !value.is_empty()).cloned();
        let (Some(namespace), Some(name)) = (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME")) else {
            return Ok(None);
        };
        self.require_sandbox()?;
        let uid = argument("K8S_POD_UID");
        Ok(Some(PodRef { namespace, name, uid, sandbox: self.sandbox.clone() }))
    }

    pub(super) fn require_sandbox(&self) -> Result<(), Failure> {
        if self.sandbox.is_empty() {
            return Err(Failure::new(Code::InvalidEnvironment, "CNI_CONTAINERID: not set"));
        }
        Ok(())
    }

    pub(super) fn netns(&self) -> Result<&PathBuf, Failure> {
        let missing = || Failure::new(Code::InvalidEnvironment, "CNI_NETNS: not set");
        self.netns.as_ref().ok_or_else(missing)
    }
}

/// The part of the network configuration that the plugin reads.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Config {
    #[serde(rename = "cniVersion", default)]
    version: String,
    pub(super) socket: Option<PathBuf>,
    /// Namespaces whose pods are left alone, agent or not.
    #[serde(rename = "excludeNamespaces", default)]
    pub(super) exclude_namespaces: Vec<String>,
    #[serde(rename = "prevResult")]
    previous: Option<Previous>,
    #[serde(rename = "cni.dev/valid-attachments", default)]
    valid: Vec<Attachment>,
}

#[derive(Debug, Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    sandbox: String,
}

/// What the plugin before has made.
#[derive(Debug, Default, Deserialize)]
struct Previous {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Ip {
    /// With its prefix length.
    address: String,
    interface: Option<usize>,
}

impl Config {
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        serde_json::from_str(text).map_err(|error| {
            Failure::new(Code::Decode, format!("the network configuration cannot be read: {error}"))
        })
    }

    /// The version to answer in.
    pub(super) fn version(&self) -> &str {
        if self.version.is_empty() { VERSION_UNSAID } else { &self.version }
    }

    pub(super) fn check_version(&self) -> Result<(), Failure> {
        if VERSIONS.contains(&self.version()) {
            return Ok(());
        }
        let message = format!("cniVersion: `{}` is none of {}", self.version, VERSIONS.join(", "));
        Err(Failure::new(Code::IncompatibleVersion, message))
    }

    /// The pod's addresses, one for each family.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>, Failure> {
        let Some(previous) = &self.previous else {
            let message = format!(
                "prevResult: missing; {} gives no pod a network, put it after the plugin that does",
                super::PLUGIN
            );
            return Err(Failure::new(Code::InvalidConfig, message));
        };
        let mut found: Vec<IpAddr> = Vec::new();
        for ip in &previous.ips {
            // An address of the host's side has an interface without sandbox.
            let interface = ip.interface.and_then(|index| previous.interfaces.get(index));
            if interface.is_some_and(|interface| interface.sandbox.is_empty()) {
                continue;
            }
            let text = ip.address.split('/').next().unwrap_or_default();
            let address: IpAddr = text.parse().map_err(|error| {
                let message = format!("prevResult.ips: `{}` is no address: {error}", ip.address);
                Failure::new(Code::InvalidConfig, message)
            })?;
            if !found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                found.push(address);
            }
        }
        Ok(found)
    }

    pub(super) fn valid_sandboxes(&self) -> Vec<String> {
        self.valid.iter().map(|attachment| attachment.sandbox.clone()).collect()
    }
}

/// The result of the plugin before, in its own words.
pub(super) fn previous_result(config: &str) -> Option<&str> {
    let (_, value) = json::members(config)?.into_iter().find(|(name, _)| name == "prevResult")?;
    config.get(value)
}

/// The answer to `VERSION`.
pub(super) fn versions() -> String {
    #[derive(Serialize)]
    struct Versions {
        #[serde(rename = "cniVersion")]
        version: &'static str,
        #[serde(rename = "supportedVersions")]
        supported: [&'static str; VERSIONS.len()],
    }
    let versions = Versions { version: VERSIONS[VERSIONS.len() - 1], supported: VERSIONS };
    serde_json::to_string(&versions).unwrap_or_default()
}

#[cfg(test)]
mod tests;
