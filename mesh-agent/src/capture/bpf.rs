//! The `bpf(2)` calls the agent makes itself. aya loads programs; what happens afterwards (map access
//! from many threads without a lock, links that are pinned and updated in place) is done here.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Commands of `enum bpf_cmd`.
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const MAP_LOOKUP_AND_DELETE_ELEM: u32 = 21;
const MAP_LOOKUP_BATCH: u32 = 24;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// Where a program attaches (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum AttachType {
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    SkLookup = 36,
}

/// Programs that one namespace may hold of one kind (the kernel's own limit).
const QUERY_MAX: usize = 64;

/// The largest member of `union bpf_attr` used here. The kernel wants what it does not know to be zero.
#[repr(C, align(8))]
struct Attr([u8; 72]);

impl Attr {
    fn new() -> Self {
        Self([0; 72])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Self {
        self.u32(at, fd.as_raw_fd() as u32)
    }

    fn pointer<T>(self, at: usize, to: *const T) -> Self {
        self.u64(at, to as u64)
    }

    fn read_u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// # Safety
    /// Every pointer in the attribute must be valid for what the command reads and writes.
    unsafe fn call(&mut self, command: u32) -> io::Result<i32> {
        // SAFETY: the attribute is live and of the length given; what it points to is the caller's part.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
    }

    /// # Safety
    /// As for [`Self::call`]; the command must be one that returns a new descriptor.
    unsafe fn call_for_fd(&mut self, command: u32) -> io::Result<OwnedFd> {
        // SAFETY: by this function's contract.
        let fd = unsafe { self.call(command) }?;
        // SAFETY: the kernel has just made the descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// # Safety
/// `K` and `V` must be the map's key and value types, `V` valid for any bytes.
pub(super) unsafe fn lookup<K, V: Default>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::default();
    let mut attr = Attr::new().fd(0, map).pointer(8, key).pointer(16, &raw mut value);
    // SAFETY: both are live and, by contract, of the map's sizes.
    found(unsafe { attr.call(MAP_LOOKUP_ELEM) }).map(|found| found.then_some(value))
}

/// Fills `values`, one element per possible CPU.
/// # Safety
/// The map must be per-CPU with values of 8 bytes and `values` as long as the number of possible CPUs.
pub(super) unsafe fn lookup_per_cpu(map: BorrowedFd<'_>, key: u32, values: &mut [u64]) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, map).pointer(8, &raw const key).pointer(16, values.as_mut_ptr());
    // SAFETY: both are live and, by contract, large enough.
    unsafe { attr.call(MAP_LOOKUP_ELEM) }.map(drop)
}

/// Takes an element out, in one step that no program can come between.
/// # Safety
/// As for [`lookup`].
pub(super) unsafe fn take<K, V: Default>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::default();
    let mut attr = Attr::new().fd(0, map).pointer(8, key).pointer(16, &raw mut value);
    // SAFETY: both are live and, by contract, of the map's sizes.
    found(unsafe { attr.call(MAP_LOOKUP_AND_DELETE_ELEM) }).map(|found| found.then_some(value))
}

/// # Safety
/// `K` and `V` must be the map's key and value types.
pub(super) unsafe fn update<K, V>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, map).pointer(8, key).pointer(16, value);
    // SAFETY: both are live and, by contract, of the map's sizes.
    unsafe { attr.call(MAP_UPDATE_ELEM) }.map(drop)
}

/// Returns whether there was such an element.
/// # Safety
/// `K` must be the map's key type.
pub(super) unsafe fn delete<K>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = Attr::new().fd(0, map).pointer(8, key);
    // SAFETY: the key is live and, by contract, of the map's size.
    found(unsafe { attr.call(MAP_DELETE_ELEM) })
}

/// One step of reading a whole hash map; `cursor` comes from the step before. Returns the number of
/// elements written and whether that was the end.
/// # Safety
/// `keys` and `values` must be of the map's types and equally long.
pub(super) unsafe fn lookup_batch<K, V>(
    map: BorrowedFd<'_>,
    cursor: &mut Option<u64>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, bool)> {
    let from = cursor.unwrap_or(0);
    let mut next = 0u64;
    let from_pointer = if cursor.is_some() { &raw const from } else { std::ptr::null() };
    let mut attr = Attr::new()
        .pointer(0, from_pointer)
        .pointer(8, &raw mut next)
        .pointer(16, keys.as_mut_ptr())
        .pointer(24, values.as_mut_ptr())
        .u32(32, keys.len() as u32)
        .fd(36, map);
    // SAFETY: the cursor of a hash map is four bytes; the slices are, by contract, large enough.
    let result = unsafe { attr.call(MAP_LOOKUP_BATCH) };
    let count = attr.read_u32(32) as usize;
    *cursor = Some(next);
    match result {
        Ok(_) => Ok((count, false)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((count, true)),
        Err(error) => Err(error),
    }
}

fn found(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Attr::new().pointer(0, path.as_ptr()).fd(8, object);
    // SAFETY: the path is live and ends in a zero byte.
    unsafe { attr.call(OBJ_PIN) }.map(drop)
}

pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = Attr::new().pointer(0, path.as_ptr());
    // SAFETY: as above.
    unsafe { attr.call_for_fd(OBJ_GET) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    kind: AttachType,
) -> io::Result<OwnedFd> {
    let mut attr = Attr::new().fd(0, program).fd(4, target).u32(8, kind as u32);
    // SAFETY: no pointers.
    unsafe { attr.call_for_fd(LINK_CREATE) }
}

/// Puts another program behind a link, without a moment in which none is attached.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, link).fd(4, program);
    // SAFETY: no pointers.
    unsafe { attr.call(LINK_UPDATE) }.map(drop)
}

/// Takes a link's program off its target, now: a link that is merely dropped goes at some later moment.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, link);
    // SAFETY: no pointers.
    unsafe { attr.call(LINK_DETACH) }.map(drop)
}

/// Ids of the programs attached to a target.
pub(super) fn attached(target: BorrowedFd<'_>, kind: AttachType) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; QUERY_MAX];
    let mut attr =
        Attr::new().fd(0, target).u32(4, kind as u32).pointer(16, ids.as_mut_ptr()).u32(24, QUERY_MAX as u32);
    // SAFETY: the array is live and as long as the attribute says.
    unsafe { attr.call(PROG_QUERY) }?;
    Ok(ids[..(attr.read_u32(24) as usize).min(QUERY_MAX)].to_vec())
}

/// Sizes of a map's key and value.
pub(super) fn map_sizes(map: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    // The head of `struct bpf_map_info`: type, id, key size, value size.
    let mut info = [0u32; 4];
    let mut attr = Attr::new().fd(0, map).u32(4, size_of_val(&info) as u32).pointer(8, info.as_mut_ptr());
    // SAFETY: the array is live and as long as the attribute says.
    unsafe { attr.call(OBJ_GET_INFO_BY_FD) }?;
    Ok((info[2], info[3]))
}
