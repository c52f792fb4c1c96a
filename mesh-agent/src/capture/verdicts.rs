//! The verdict cache: which connects the kernel answers by itself. The caller hands over all verdicts that
//! should hold; what differs from what does hold is written, withdrawals first.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use mesh_common::{Address, Setting, VERDICTS_MAX, Verdict, VerdictAction, VerdictKey};

use super::error::CaptureError;
use super::handle::{CaptureHandle, Shared};

/// What the kernel does with a connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelAction {
    /// Lets it through, past the agent; also past the one of the destination, which must be on this node.
    Bypass,
    /// Answers `ECONNREFUSED`.
    Refuse,
}

impl KernelAction {
    fn code(self) -> u32 {
        match self {
            Self::Bypass => VerdictAction::BYPASS,
            Self::Refuse => VerdictAction::REFUSE,
        }
    }
}

/// What a change of the verdicts came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerdictChange {
    pub written: usize,
    pub removed: usize,
    /// Verdicts that found no room; their connections go through the agent.
    pub over_limit: usize,
}

/// The verdicts in the kernel, as last written.
#[derive(Debug, Default)]
pub(super) struct Installed {
    generation: u64,
    verdicts: HashMap<VerdictKey, Verdict>,
}

impl CaptureHandle {
    /// Makes exactly these verdicts hold. Key: cookie of the opener's namespace, and destination.
    ///
    /// Flows that are live are not ended: look at [`CaptureHandle::flows`] *after* this call. A flow whose
    /// verdict goes while its first packet is on its way is not let through, but handed to the agent.
    pub fn set_verdicts(
        &self,
        wanted: &HashMap<(u64, SocketAddr), KernelAction>,
    ) -> Result<VerdictChange, CaptureError> {
        let mut installed = self.shared().verdicts.lock();
        let generation = installed.generation;
        let table = &self.shared().maps.verdicts;
        let mut change = VerdictChange::default();
        let mut desired = HashMap::with_capacity(wanted.len().min(VERDICTS_MAX as usize));
        for ((cookie, to), action) in wanted {
            if desired.len() == VERDICTS_MAX as usize {
                change.over_limit += 1;
                continue;
            }
            let key = VerdictKey::new(*cookie, Address::from(to.ip()), to.port());
            desired.insert(key, Verdict { generation, action: action.code(), padding: 0 });
        }
        // The record follows step by step: after an error half way, what was written is still known and can be
        // withdrawn by the next call.
        let gone: Vec<VerdictKey> =
            installed.verdicts.keys().filter(|key| !desired.contains_key(*key)).copied().collect();
        for key in gone {
            table.remove(&key).map_err(access)?;
            installed.verdicts.remove(&key);
            change.removed += 1;
        }
        for (key, verdict) in desired {
            if installed.verdicts.get(&key) != Some(&verdict) {
                installed.verdicts.insert(key, verdict);
                if let Err(error) = table.set(&key, &verdict) {
                    installed.verdicts.remove(&key);
                    return Err(access(error));
                }
                change.written += 1;
            }
        }
        Ok(change)
    }

    /// Voids every verdict at once: all connects go through the agent until the next
    /// [`CaptureHandle::set_verdicts`]. For when the answers may all be wrong and finding out takes time.
    pub fn bump_generation(&self) -> Result<u64, CaptureError> {
        let mut installed = self.shared().verdicts.lock();
        let generation = installed.generation + 1;
        self.shared()
            .maps
            .set(Setting::Generation, generation)
            .map_err(|source| CaptureError::MapAccess { map: "CONFIG", source })?;
        installed.generation = generation;
        Ok(generation)
    }

    /// Takes over the verdicts that an agent before has left: they hold until the first `set_verdicts`.
    pub(super) fn adopt_generation(&self) -> Result<(), CaptureError> {
        let mut installed = self.shared().verdicts.lock();
        installed.generation = self
            .shared()
            .maps
            .setting(Setting::Generation)
            .map_err(|source| CaptureError::MapAccess { map: "CONFIG", source })?;
        installed.verdicts = self.shared().maps.verdicts.entries().map_err(access)?.into_iter().collect();
        Ok(())
    }
}

impl Shared {
    /// Drops the verdicts about what a pod opens and about what is opened to it: the next one with its address
    /// may be another, and must not be reached by what was decided about this one.
    pub(super) fn forget_verdicts(&self, cookie: u64, addresses: &[IpAddr]) -> Result<(), CaptureError> {
        let addresses: Vec<Address> = addresses.iter().map(|address| Address::from(*address)).collect();
        let of_the_pod = |key: &&VerdictKey| key.cookie == cookie || addresses.contains(&key.address);
        let mut installed = self.verdicts.lock();
        let gone: Vec<VerdictKey> = installed.verdicts.keys().filter(of_the_pod).copied().collect();
        for key in gone {
            self.maps.verdicts.remove(&key).map_err(access)?;
            installed.verdicts.remove(&key);
        }
        Ok(())
    }
}

fn access(source: std::io::Error) -> CaptureError {
    CaptureError::MapAccess { map: "VERDICTS", source }
}
