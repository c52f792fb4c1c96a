//! The Unix sockets' files: making one that only this user can open, replacing one that nobody serves any
//! more, and knowing the peer. Owns: the file while it is bound. Never: reads or writes a connection.
//! Called by the servers and clients of [`super`].

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

use super::HandoverError;

/// Connections that may wait for `accept`.
const BACKLOG: i32 = 16;

/// A listening Unix socket and its file, which goes when this is dropped (if it is still this socket's).
#[derive(Debug)]
pub(super) struct Bound {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: a file that somebody else put there since is not ours to remove.
    file: (u64, u64),
}

impl Bound {
    /// Makes the socket, mode 0600. A file left by a dead process is replaced; a live one is never.
    /// Needs a tokio runtime.
    pub(super) fn bind(path: &Path) -> Result<Self, HandoverError> {
        let failed = |source| HandoverError::Bind { path: path.to_owned(), source };
        // Two processes that both find a dead file must not remove each other's new one: the lock spans the
        // question and the bind.
        let _lock = Lock::take(path).map_err(failed)?;
        clear_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
        // The kernel gives the file the mode of the socket's own inode: set before bind there is no moment at
        // which anybody else could open it, unlike with a chmod after.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| failed(e.into()))?;
        socket.bind(&SockAddr::unix(path).map_err(failed)?).map_err(failed)?;
        socket.listen(BACKLOG).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let file = identity_of(path).map_err(failed)?;
        let listener = UnixListener::from_std(StdListener::from(OwnedFd::from(socket))).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), file })
    }

    /// The next peer, whoever it is; ask [`check_peer`].
    pub(super) async fn accept(&self) -> Result<UnixStream, HandoverError> {
        match self.listener.accept().await {
            Ok((stream, _)) => Ok(stream),
            Err(source) => Err(HandoverError::Io { doing: "accept on the handover socket", source }),
        }
    }
}

impl Drop for Bound {
    /// Removes the file before the socket closes: while it answers, nobody replaces it, so the file that is
    /// compared is the file that is removed.
    fn drop(&mut self) {
        if identity_of(&self.path).is_ok_and(|file| file == self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the handover socket");
        }
    }
}

/// Opens a connection to the process that serves `path`, and checks its uid.
pub(super) async fn connect(path: &Path) -> Result<UnixStream, HandoverError> {
    let stream = UnixStream::connect(path).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            HandoverError::NobodyThere { path: path.to_owned() }
        }
        _ => HandoverError::Connect { path: path.to_owned(), source },
    })?;
    check_peer(&stream)?;
    Ok(stream)
}

/// Only a process of the same user takes part: whoever has the descriptors can read the pods' traffic.
pub(super) fn check_peer(stream: &UnixStream) -> Result<(), HandoverError> {
    let peer = getsockopt(stream, sockopt::PeerCredentials)
        .map_err(|e| HandoverError::Io { doing: "ask who the peer is", source: e.into() })?;
    let expected = nix::unistd::geteuid().as_raw();
    if peer.uid() == expected { Ok(()) } else { Err(HandoverError::PeerUid { uid: peer.uid(), expected }) }
}

/// The right to make the socket, a locked file beside it that goes with the right. Whoever waited for a file that was
/// removed meanwhile holds nothing: another may have made and locked a new one.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits for it.
    fn take(socket: &Path) -> io::Result<Self> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
            file.lock()?;
            let own = file.metadata()?;
            match identity_of(&path) {
                Ok(there) if there == (own.dev(), own.ino()) => return Ok(Self { path, _file: file }),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Lock {
    /// Removes the file while it is locked: only its holder ever does, so it is this one.
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the lock of the handover socket");
        }
    }
}

/// Removes a socket file that nobody answers on.
fn clear_stale(path: &Path) -> Result<(), HandoverError> {
    let failed = |source| HandoverError::Bind { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(HandoverError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    probe.set_nonblocking(true).map_err(failed)?;
    match probe.connect(&SockAddr::unix(path).map_err(failed)?) {
        // A full backlog (WouldBlock) is a live server too.
        Ok(()) => Err(HandoverError::InUse { path: path.to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            Err(HandoverError::InUse { path: path.to_owned() })
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        // Its owner removed it meanwhile.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

#[cfg(test)]
pub(super) mod tests;
