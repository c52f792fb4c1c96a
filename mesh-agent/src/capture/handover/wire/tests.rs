use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::*;

#[test]
fn the_largest_message_arrives_whole_and_close_on_exec() {
    let (a, b) = UnixStream::pair().unwrap();
    let raw = vec![a.as_raw_fd(); MAX_DESCRIPTORS_PER_MESSAGE];
    assert_eq!(send(a.as_fd(), b"x", &raw).unwrap(), 1);
    let got = receive(b.as_fd(), &mut [0; 16]).unwrap();
    assert_eq!((got.bytes, got.fds.len(), got.cut), (1, MAX_DESCRIPTORS_PER_MESSAGE, false));
    for fd in &got.fds {
        assert_eq!(fcntl(fd, FcntlArg::F_GETFD).unwrap(), FdFlag::FD_CLOEXEC.bits());
    }
}

#[test]
fn one_more_is_refused_by_the_kernel() {
    let (a, _b) = UnixStream::pair().unwrap();
    let raw = vec![a.as_raw_fd(); MAX_DESCRIPTORS_PER_MESSAGE + 1];
    assert_eq!(send(a.as_fd(), b"x", &raw).unwrap_err().raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn a_read_ends_before_the_next_message_with_descriptors() {
    let (a, b) = UnixStream::pair().unwrap();
    for _ in 0..2 {
        send(a.as_fd(), b"x", &vec![a.as_raw_fd(); MAX_DESCRIPTORS_PER_MESSAGE]).unwrap();
    }
    for _ in 0..2 {
        let got = receive(b.as_fd(), &mut [0; 16]).unwrap();
        assert_eq!((got.bytes, got.fds.len(), got.cut), (1, MAX_DESCRIPTORS_PER_MESSAGE, false));
    }
}
