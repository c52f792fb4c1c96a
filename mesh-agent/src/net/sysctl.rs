//! Settings of a network namespace that capture needs. All functions act on the namespace the calling
//! thread is in: `/proc/sys/net` shows whichever the opening thread belongs to.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};

use mesh_common::SavedSettings;

/// What must hold in an enrolled pod, in the order of [`SavedSettings::values`].
const NEEDED: [(&str, u8); SavedSettings::COUNT] = [
    // An application's accepted socket takes the mark of the leg, so that its answers return to the agent.
    ("ipv4/tcp_fwmark_accept", 1),
    // The same for the resets and acknowledgements that no socket sends.
    ("ipv4/fwmark_reflect", 1),
    ("ipv6/fwmark_reflect", 1),
    // The agent's legs to one application share its address: their ports must be usable again after a
    // second (by timestamps), not after a minute.
    ("ipv4/tcp_tw_reuse", 1),
    // Not `accept_local`, though it would spare the check of each packet's source, a percent of a short connection: it lets
    // in what claims to come from the pod itself, and `mesh_steer` cannot tell it from what does (an address of `eth0` is
    // the interface that both are said to have come by).
];

/// The settings of the namespaces; the only part of `/proc/sys` that is written.
const ROOT: &str = "/proc/sys/net";

/// Makes the settings writable where a container runtime has made all of `/proc/sys` read-only, in this process's own
/// mount namespace. The other settings of the node stay out of reach.
pub fn make_writable() -> io::Result<()> {
    if !statvfs(ROOT)?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(());
    }
    let none = None::<&str>;
    mount(Some(ROOT), ROOT, none, MsFlags::MS_BIND, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(none, ROOT, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags, none)?;
    Ok(())
}

/// Sets what is needed and returns what was there before.
pub fn prepare() -> io::Result<SavedSettings> {
    let mut saved = SavedSettings::default();
    for (at, (name, wanted)) in NEEDED.iter().enumerate() {
        let path = Path::new("/proc/sys/net").join(name);
        let before = match fs::read_to_string(&path) {
            Ok(text) => text,
            // Without IPv6 in the kernel there is nothing to set.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        saved.values[at] = before.trim().parse().unwrap_or(0);
        if saved.values[at] != *wanted {
            fs::write(&path, wanted.to_string())?;
            saved.changed |= 1 << at;
        }
    }
    Ok(saved)
}

/// Puts back what [`prepare`] changed.
pub fn restore(saved: &SavedSettings) -> io::Result<()> {
    for (at, (name, _)) in NEEDED.iter().enumerate() {
        if saved.changed & 1 << at != 0 {
            fs::write(Path::new("/proc/sys/net").join(name), saved.values[at].to_string())?;
        }
    }
    Ok(())
}
