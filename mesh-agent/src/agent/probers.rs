//! Keeps the kernel informed of who the node's kubelet is. Owns: the task that looks for it and notices its end. Never:
//! judges a probe; the kernel programs let the kubelet's own connections through. Called by `agent`.

use std::path::Path;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::task::JoinHandle;

use crate::capture::{CaptureHandle, Kubelet, Processes};

/// Pause between two looks at the node's processes while there is no kubelet, once there has been one: it restarts.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// The same before there has been any: the node may have none.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// Starts the task; none if this node's kubelet could not be recognised, which is said in the log.
pub(super) fn start(capture: &CaptureHandle, proc_dir: &Path) -> Option<JoinHandle<()>> {
    match capture.processes(proc_dir) {
        Ok(processes) => Some(tokio::spawn(follow(capture.clone(), processes))),
        Err(error) => {
            tracing::warn!(%error, "kubelet probes are not recognised; under STRICT they are refused like any plaintext");
            None
        }
    }
}

async fn follow(capture: CaptureHandle, processes: Processes) {
    let mut seen = false;
    loop {
        let kubelets = look(&processes).await;
        if let Err(error) = capture.set_probers(&processes, &kubelets) {
            tracing::warn!(%error, "the kernel could not be told who the kubelet is; trying again");
        } else if !kubelets.is_empty() {
            let pids: Vec<u32> = kubelets.iter().map(|kubelet| kubelet.pid).collect();
            tracing::info!(?pids, "the kubelet's probes go to the pods untouched");
            seen = true;
            let (ended, _, _) =
                select_all(kubelets.into_iter().map(|kubelet| Box::pin(kubelet.ended()))).await;
            match ended {
                Ok(()) => {
                    tracing::info!("the kubelet has ended; looking for the next one");
                    continue;
                }
                Err(error) => tracing::warn!(%error, "the kubelet's end will be noticed late"),
            }
        }
        tokio::time::sleep(if seen { RESTART_PAUSE } else { FIRST_PAUSE }).await;
    }
}

/// A file of each process is read: off the control loop's thread.
async fn look(processes: &Processes) -> Vec<Kubelet> {
    let processes = processes.clone();
    match tokio::task::spawn_blocking(move || processes.kubelets()).await {
        Ok(Ok(kubelets)) => kubelets,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the node's processes cannot be listed");
            Vec::new()
        }
        Err(error) => {
            tracing::error!(%error, "the look at the node's processes failed");
            Vec::new()
        }
    }
}
