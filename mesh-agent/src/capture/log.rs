//! Lines that kernel programs built with the feature `log` write, handed on to the agent's log.

use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The reader of the programs' lines.
pub struct KernelLog(EbpfLogger<ToTracing>);

impl KernelLog {
    /// None where the object was built without the feature.
    pub(super) fn open(object: &mut Ebpf) -> Option<Self> {
        EbpfLogger::init_with_logger(object, ToTracing).ok().map(Self)
    }

    /// Hands lines on until it is dropped. Inside a tokio runtime.
    pub async fn run(self) -> io::Result<()> {
        // SAFETY: the logger owns its descriptor and never exchanges it; it is dropped with the registration.
        let ring = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) };
        let mut ring = ring.map_err(io::Error::from)?;
        loop {
            ring.get_mut().flush();
            ring.readable_mut().await?.clear_ready();
        }
    }
}

impl std::fmt::Debug for KernelLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KernelLog")
    }
}

struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        tracing::debug!(target: "mesh_ebpf", line = %record.args());
    }

    fn flush(&self) {}
}
