//! Where objects come from. Owns: a directory of manifests, or a Kubernetes API server; beside them the name servers. Each source feeds `compile`
//! and publishes to a `WorldStore`. Called by the composition root.

use std::time::SystemTime;

pub mod dir;
pub mod kube;
pub mod names;

/// The source that an agent runs with; dropping it ends it and leaves the world as it is.
pub enum Source {
    Dir(dir::DirHandle),
    Kube(kube::KubeHandle),
}

impl Source {
    /// Completes once the first world is published.
    pub async fn synced(&self) {
        match self {
            Self::Dir(_) => {}
            Self::Kube(handle) => handle.synced().await,
        }
    }

    /// The first world is published.
    pub fn is_synced(&self) -> bool {
        match self {
            Self::Dir(_) => true,
            Self::Kube(handle) => handle.is_synced(),
        }
    }

    /// What is missing before that, in sentences.
    pub fn waiting(&self) -> Vec<String> {
        match self {
            Self::Kube(handle) if !handle.is_synced() => handle.status().waiting(),
            Self::Dir(_) | Self::Kube(_) => Vec::new(),
        }
    }

    /// In a few words.
    pub fn describe(&self) -> String {
        match self {
            Self::Dir(handle) => format!("directory {}", handle.status().directory.display()),
            Self::Kube(handle) => format!("kubernetes {}", handle.status().server),
        }
    }

    /// When it was last read with a result.
    pub fn last_load(&self) -> SystemTime {
        match self {
            Self::Dir(handle) => handle.status().last_load,
            Self::Kube(handle) => handle.status().last_load,
        }
    }

    /// Since when something newer than what is in force may exist.
    pub fn stale_since(&self) -> Option<SystemTime> {
        match self {
            Self::Dir(handle) => handle.status().stale_since,
            Self::Kube(handle) => handle.status().stale_since(),
        }
    }

    /// How each kind is doing, where kinds are read one by one.
    pub fn kinds(&self) -> Vec<kube::KindStatus> {
        match self {
            Self::Dir(_) => Vec::new(),
            Self::Kube(handle) => handle.status().kinds.into_values().collect(),
        }
    }
}
