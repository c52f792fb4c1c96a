//! One `sendmsg` and one `recvmsg` with descriptors. Owns: the control message. Never: waits, frames or reads
//! what the bytes mean. Called by [`super::channel`] and `cni::server`.
//!
//! Receiving does not use nix's iterator: it answers a cut control message (this process is at its limit of
//! open files) with an error and forgets the descriptors that the kernel did install, which would leak them.

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::MAX_DESCRIPTORS_PER_MESSAGE;

/// Words of a control buffer that holds the largest SCM_RIGHTS message, aligned as `cmsghdr` must be.
const CONTROL_WORDS: usize =
    (size_of::<libc::cmsghdr>() + MAX_DESCRIPTORS_PER_MESSAGE * size_of::<RawFd>()).div_ceil(8);

/// What one `recvmsg` brought.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) bytes: usize,
    pub(crate) fds: Vec<OwnedFd>,
    /// Descriptors were lost on the way (MSG_CTRUNC).
    pub(crate) cut: bool,
}

/// Sends bytes, the descriptors with the first of them; never waits.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?)
}

/// Receives into `buffer` and takes the descriptors that came along; never waits. The kernel ends a read at
/// the next message that carries descriptors, so one control buffer always suffices.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut parts = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data for which all zeroes is a valid value (null pointers with length 0).
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut parts;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer of the header is to a live local or to `buffer`, with its true length.
    let bytes = unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT)
    };
    let bytes = usize::try_from(bytes).map_err(|_negative| io::Error::last_os_error())?;
    Ok(Received { bytes, fds: take_descriptors(&header), cut: header.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// The descriptors in a header that `recvmsg` has just filled. Called once per header: it takes ownership.
fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the header's control buffer is alive and was filled by the kernel, msg_controllen included.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole, aligned cmsghdr inside the buffer.
        let (level, kind, length) = unsafe { ((*next).cmsg_level, (*next).cmsg_type, (*next).cmsg_len) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN only computes.
            let payload = length.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
            // SAFETY: as above; the data follows the header inside the buffer.
            let data = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            for i in 0..payload / size_of::<RawFd>() {
                // SAFETY: the kernel wrote `payload` bytes of descriptors at `data`, each newly installed for
                // this process and owned by nobody else.
                fds.push(unsafe { OwnedFd::from_raw_fd(data.add(i).read_unaligned()) });
            }
        }
        // SAFETY: `next` is a header of this buffer.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    fds
}

#[cfg(test)]
mod tests;
