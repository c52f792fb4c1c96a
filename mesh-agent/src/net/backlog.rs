//! What a full backlog of one of our listeners cost. Called by `agent`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Words of `SO_MEMINFO`, and the one that counts drops (`SK_MEMINFO_VARS`, `SK_MEMINFO_DROPS` of sock_diag.h).
const MEMINFO_WORDS: usize = 9;
const MEMINFO_DROPS: usize = 8;

/// Connections that a listener has dropped in its life: its backlog was full, or the kernel had no memory for them.
pub fn drops(listener: BorrowedFd<'_>) -> io::Result<u32> {
    let mut words = [0u32; MEMINFO_WORDS];
    let mut length = size_of_val(&words) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `words`, and the descriptor is open while it is borrowed.
    let result = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            words.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(words[MEMINFO_DROPS]) }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn a_full_backlog_counts_what_it_drops() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        listener.listen(2).unwrap();
        assert_eq!(drops(listener.as_fd()).unwrap(), 0);
        let address = listener.local_addr().unwrap();
        let clients: Vec<Socket> = (0..8)
            .map(|_| {
                let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                client.set_nonblocking(true).unwrap();
                let begun = client.connect(&address).unwrap_err();
                assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
                client
            })
            .collect();
        let until = Instant::now() + Duration::from_secs(5);
        while drops(listener.as_fd()).unwrap() == 0 {
            assert!(Instant::now() < until, "nothing was counted");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(clients);
    }
}
