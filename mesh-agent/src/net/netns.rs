//! Network namespaces: opening one, and being inside it for a moment. A thread that enters must come
//! back before it does anything else, so the way in is a guard that cannot leave its thread.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use nix::sched::{CloneFlags, setns};

/// An open network namespace. Holding one keeps the namespace alive.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    cookie: u64,
}

impl NetNs {
    /// Opens a namespace by its file (`/run/netns/NAME`, `/proc/PID/ns/net`).
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_file(File::open(path)?)
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::from_file(open_current()?)
    }

    /// A namespace that somebody else has opened and handed over; an error if it is none.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Self::from_file(File::from(fd))
    }

    fn from_file(file: File) -> io::Result<Self> {
        let _guard = enter(&file)?;
        let cookie = cookie_here()?;
        drop(_guard);
        Ok(Self { file, cookie })
    }

    /// The kernel's name for this namespace, never used twice while the machine is up.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// What names it among all namespaces while it lives: device and inode of its file.
    pub fn file(&self) -> io::Result<(u64, u64)> {
        let found = self.file.metadata()?;
        Ok((found.dev(), found.ino()))
    }

    /// Moves the calling thread into the namespace until the guard is dropped. Never hold the guard
    /// across an await: other tasks would run in the pod's namespace.
    pub fn enter(&self) -> io::Result<NetNsGuard> {
        enter(&self.file)
    }

    /// Runs `f` inside the namespace, on this thread.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        let _guard = self.enter()?;
        Ok(f())
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Brings the thread home when dropped.
#[derive(Debug)]
#[must_use = "dropping the guard leaves the namespace at once"]
pub struct NetNsGuard {
    home: Rc<File>,
    /// The namespace belongs to the thread: the guard must be dropped where it was made.
    _thread: PhantomData<*const ()>,
}

impl Drop for NetNsGuard {
    fn drop(&mut self) {
        if let Err(error) = setns(&*self.home, CloneFlags::CLONE_NEWNET) {
            // Going on would open the agent's next sockets inside a pod: there is no safe way left.
            tracing::error!(%error, "cannot leave a pod's network namespace");
            std::process::abort();
        }
        HOME.with_borrow_mut(|home| *home = Some(Rc::clone(&self.home)));
    }
}

thread_local! {
    /// The namespace that the thread was in when it last came home, so that not every visit opens it anew. Empty
    /// while the thread is away, and until its first visit.
    static HOME: RefCell<Option<Rc<File>>> = const { RefCell::new(None) };
}

fn enter(target: &File) -> io::Result<NetNsGuard> {
    let home = match HOME.take() {
        Some(home) => home,
        None => Rc::new(open_current()?),
    };
    let guard = setns(target, CloneFlags::CLONE_NEWNET).map(|()| NetNsGuard { home, _thread: PhantomData });
    Ok(guard?)
}

fn open_current() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

fn cookie_here() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are to live values of the sizes given; the descriptor is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// From `asm-generic/socket.h`, Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;
