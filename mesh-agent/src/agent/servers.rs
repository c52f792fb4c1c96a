//! The doors for questions: admin socket, metrics, readiness. Owns: the tasks that serve them. Never: answers.
//! Called by `agent`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinHandle;

use super::view::NodeView;
use crate::admin::{AdminServer, AdminSource, HttpServer, Takeover};
use crate::config::Settings;

/// How long a door waits for the predecessor to close its own.
pub(super) const BIND_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// The serving tasks.
#[derive(Default)]
pub(super) struct Servers {
    tasks: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Opens all three. `planned`: a predecessor hands over and closes its own in a moment.
    pub(super) async fn start(
        &mut self,
        settings: &Settings,
        view: &Arc<NodeView>,
        planned: bool,
    ) -> anyhow::Result<()> {
        let metrics = view.metrics();
        let source: Arc<dyn AdminSource> = Arc::<NodeView>::clone(view);
        let patience = if planned { BIND_PATIENCE } else { Duration::ZERO };
        let takeover = if planned { Takeover::Planned } else { Takeover::Never };
        let admin =
            AdminServer::bind(&settings.admin_socket, takeover, Arc::clone(&source), Arc::clone(metrics))?;
        let address = settings.metrics;
        let scrape = patiently(patience, || HttpServer::metrics(address, Arc::clone(metrics)))
            .await
            .with_context(|| format!("metrics: cannot listen on {address}; name another --metrics"))?;
        let address = settings.readiness;
        let ready = || HttpServer::readiness(address, Arc::clone(&source), Arc::clone(metrics));
        let ready = patiently(patience, ready)
            .await
            .with_context(|| format!("readiness: cannot listen on {address}; name another --readiness"))?;
        self.tasks.push(tokio::spawn(async move {
            admin.run().await;
        }));
        self.tasks.push(tokio::spawn(async move {
            scrape.run().await;
        }));
        self.tasks.push(tokio::spawn(async move {
            ready.run().await;
        }));
        Ok(())
    }

    /// Closes them.
    pub(super) fn stop(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
    }
}

/// Tries to open a door for as long as this.
pub(super) async fn patiently<T, E, F>(patience: Duration, open: impl Fn() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let end = tokio::time::Instant::now() + patience;
    loop {
        match open().await {
            Err(_) if tokio::time::Instant::now() < end => tokio::time::sleep(PAUSE).await,
            opened => return opened,
        }
    }
}
