//! Where the agent's world comes from: the start of its source, and the wait for the first world. Called by `agent`.

use std::sync::Arc;

use tokio::signal::unix::Signal;

use crate::compile::MeshSettings;
use crate::config::Settings;
use crate::model::Hits;
use crate::source::Source;
use crate::source::dir::{DirSettings, DirSource};
use crate::source::kube::{self, KubeSettings};
use crate::world::WorldStore;

/// The directory that was named, or else the cluster.
pub(super) async fn start_source(
    settings: &Settings,
    mesh: MeshSettings,
    store: &Arc<WorldStore>,
    hits: Hits,
) -> anyhow::Result<Source> {
    let store = Arc::clone(store);
    let Some(manifests) = &settings.manifests else {
        let settings = KubeSettings {
            kubeconfig: settings.kubeconfig.clone(),
            context: settings.context.clone(),
            node: settings.node.as_str().into(),
            mesh,
            own_trust_domain: settings.own.trust_domain,
            own_root_namespace: settings.own.root_namespace,
            discovery: kube::DISCOVERY,
            pages: None,
        };
        return Ok(Source::Kube(kube::start(settings, store).await?));
    };
    let watching = DirSettings { hits, ..DirSettings::default() };
    Ok(Source::Dir(DirSource::start(manifests, watching, store)?))
}

/// Waits for the first whole world; a signal ends the wait, and with it the agent.
pub(super) async fn read_first(
    source: &Source,
    interrupt: &mut Signal,
    terminate: &mut Signal,
) -> anyhow::Result<()> {
    tokio::select! {
        () = source.synced() => Ok(()),
        _ = interrupt.recv() => anyhow::bail!("told to end before the cluster was read: {}", source.waiting().join("; ")),
        _ = terminate.recv() => anyhow::bail!("told to end before the cluster was read: {}", source.waiting().join("; ")),
    }
}
