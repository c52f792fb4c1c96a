//! The embedded object, and the programs in it: loading them and keeping their links pinned.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::programs::{CgroupSockAddr, Program, ProgramFd, SkLookup, SockOps};
use aya::{Ebpf, EbpfLoader};

use super::bpf::{self, AttachType};
use super::error::CaptureError;
use super::host::Kernel;
use super::maps::{LOGS, NAMES, pin_path};

/// Built by `cargo xtask build-ebpf`; `build.rs` says where it is.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MESH_BPF_OBJECT"));

/// A program of the cgroup root: its name in the object, the name of its pin, its hook.
pub(super) const CGROUP_PROGRAMS: [(&str, &str, AttachType); 3] = [
    ("mesh_connect4", "connect4", AttachType::Connect4),
    ("mesh_connect6", "connect6", AttachType::Connect6),
    ("mesh_sockops", "sockops", AttachType::SockOps),
];
pub(super) const STEER: &str = "mesh_steer";

/// Opens the object with every map taken from (or put into) `dir`. `slot` goes into the steering program.
pub(super) fn load(dir: &Path, kernel: Kernel, slot: u32) -> Result<Ebpf, CaptureError> {
    let has_set_retval = u32::from(kernel.has_set_retval);
    let mut loader = EbpfLoader::new();
    let has_namespaced_pid = u32::from(kernel.has_namespaced_pid);
    loader
        .override_global("SLOT", &slot, true)
        .override_global("HAS_SET_RETVAL", &has_set_retval, true)
        .override_global("HAS_NAMESPACED_PID", &has_namespaced_pid, true);
    for name in NAMES.into_iter().chain(LOGS) {
        loader.map_pin_path(name, pin_path(dir, name));
    }
    Ok(loader.load(OBJECT)?)
}

/// Hands one program of the object to the kernel, which verifies it.
pub(super) fn load_program(object: &mut Ebpf, name: &'static str) -> Result<ProgramFd, CaptureError> {
    let program = object.program_mut(name).ok_or(CaptureError::NoProgram { program: name })?;
    let loaded = match program {
        Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
        Program::SockOps(program) => SockOps::load(program),
        Program::SkLookup(program) => SkLookup::load(program),
        _ => return Err(CaptureError::NoProgram { program: name }),
    };
    let failed = |source| CaptureError::Program { program: name, source };
    loaded.map_err(failed)?;
    let fd = program.fd().map_err(failed)?;
    fd.try_clone().map_err(|source| CaptureError::Attach {
        program: name,
        target: "a descriptor".into(),
        source,
    })
}

/// Attaches a program and pins its link, so that it stays when the agent dies. Where a link is pinned
/// already (by the agent before), the program behind it is exchanged.
pub(super) fn attach(
    program: &ProgramFd,
    target: BorrowedFd<'_>,
    kind: AttachType,
    pin: &Path,
) -> io::Result<()> {
    if let Some(link) = pinned_link(pin)? {
        match bpf::link_update(link.as_fd(), program.as_fd()) {
            Ok(()) => return Ok(()),
            // What the link was attached to is gone, and so is its use.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => fs::remove_file(pin)?,
            Err(error) => return Err(error),
        }
    }
    let link = bpf::link_create(program.as_fd(), target, kind)?;
    bpf::pin(link.as_fd(), pin)
}

fn pinned_link(pin: &Path) -> io::Result<Option<OwnedFd>> {
    match bpf::open_pinned(pin) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes a pinned program off its target and removes the pin; one that is not there is no error.
pub(super) fn detach(pin: &Path) -> Result<(), CaptureError> {
    let failed = |source| CaptureError::Path { path: pin.to_path_buf(), source };
    if let Some(link) = pinned_link(pin).map_err(failed)? {
        match bpf::link_detach(link.as_fd()) {
            // Already off: its namespace is gone.
            Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => return Err(failed(error)),
            _ => {}
        }
    }
    unpin(pin)
}

/// Removes a pin; one that is not there is no error.
pub(super) fn unpin(pin: &Path) -> Result<(), CaptureError> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(CaptureError::Path { path: pin.to_path_buf(), source })
        }
        _ => Ok(()),
    }
}
