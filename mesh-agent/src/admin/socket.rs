//! The admin socket's file: made with mode 0600, replaced only when nobody answers on it, removed at the end.
//! Owns: that file. Never: speaks on it. Called by `admin::server`.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// What to do if an agent answers on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// Two agents would fight: refuse.
    Never,
    /// The predecessor handed over and ends soon: take its name.
    Planned,
}

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "admin-socket: an agent answers on {0} already; stop it, or give this one another --admin-socket"
    )]
    InUse(PathBuf),
    #[error("admin-socket: {0} is not a socket and is left alone; remove it or name another path")]
    NotASocket(PathBuf),
    #[error("admin-socket: cannot use {path}: {source}; check that the folder can be written")]
    Io { path: PathBuf, source: io::Error },
}

/// The bound socket; dropping it removes the file, unless a successor has taken the name.
#[derive(Debug)]
pub struct BoundSocket {
    pub(crate) listener: UnixListener,
    pub(crate) file: SocketFile,
}

/// The file's name and identity.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let own =
            fs::symlink_metadata(&self.path).is_ok_and(|m| m.dev() == self.device && m.ino() == self.inode);
        if own {
            // Gone already is as good.
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// Binds `path`, making its folder if need be.
pub fn bind(path: &Path, takeover: Takeover) -> Result<BoundSocket, SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let stale = match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) if takeover == Takeover::Never && answers(path) => {
            return Err(SocketError::InUse(path.to_owned()));
        }
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(failed(error)),
    };
    // Made under another name and moved: nobody ever sees the socket with a wider mode or without a listener.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    // Left by a killed agent that had our process id.
    let _gone = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).map_err(failed)?;
    let placed = fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).and_then(|()| {
        if stale {
            fs::rename(&fresh, path)
        } else {
            fs::hard_link(&fresh, path).and_then(|()| fs::remove_file(&fresh))
        }
    });
    if let Err(error) = placed {
        let _gone = fs::remove_file(&fresh);
        // Another agent started at the same moment and was first.
        let lost = error.kind() == io::ErrorKind::AlreadyExists;
        return Err(if lost { SocketError::InUse(path.to_owned()) } else { failed(error) });
    }
    listener.set_nonblocking(true).map_err(failed)?;
    let own = fs::symlink_metadata(path).map_err(failed)?;
    let file = SocketFile { path: path.to_owned(), device: own.dev(), inode: own.ino() };
    Ok(BoundSocket { listener, file })
}

/// Anything but a refusal means that somebody is there (a full backlog included).
fn answers(path: &Path) -> bool {
    match UnixStream::connect(path) {
        Ok(_stream) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound),
    }
}
