//! The namespaces that are not in the mesh, in a file beside the plugin's socket: what the plugin goes by while no agent
//! answers. Owns: that file. A namespace that is not in it is taken for one in the mesh: an agent that has never run
//! here, or a namespace made since, must not let a pod start in the clear.
//! Called by `agent` (writes) and by the plugin (reads).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Largest file that the plugin reads, bytes: tens of thousands of namespaces.
const ROLL_MAX_BYTES: u64 = 16 << 20;

/// The file's content.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Roll {
    outside: BTreeSet<String>,
}

/// The roll that belongs to a socket: `cni.sock` has `cni.namespaces`.
pub fn path(socket: &Path) -> PathBuf {
    socket.with_extension("namespaces")
}

/// Whether the namespace is known not to be in the mesh. A file that cannot be read knows nothing.
pub fn is_outside(socket: &Path, namespace: &str) -> bool {
    let path = path(socket);
    let small = fs::metadata(&path).is_ok_and(|found| found.len() <= ROLL_MAX_BYTES);
    let text = if small { fs::read(&path).unwrap_or_default() } else { Vec::new() };
    serde_json::from_slice::<Roll>(&text).is_ok_and(|roll| roll.outside.contains(namespace))
}

/// Keeps the file in line with what the agent knows.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    written: Option<Roll>,
}

impl Writer {
    pub fn new(socket: &Path) -> Self {
        Self { path: path(socket), written: None }
    }

    /// Writes the file in one step, if it is to change.
    pub fn write<'a>(&mut self, outside: impl Iterator<Item = &'a str>) -> io::Result<()> {
        let roll = Roll { outside: outside.map(str::to_owned).collect() };
        if self.written.as_ref() == Some(&roll) {
            return Ok(());
        }
        let mut next = self.path.clone().into_os_string();
        next.push(format!(".{}", std::process::id()));
        let next = PathBuf::from(next);
        let written = fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&next)
            .and_then(|mut file| file.write_all(&serde_json::to_vec(&roll)?))
            .and_then(|()| fs::rename(&next, &self.path));
        if let Err(error) = written {
            // Perhaps never made.
            let _gone = fs::remove_file(&next);
            return Err(error);
        }
        self.written = Some(roll);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
