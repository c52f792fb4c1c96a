//! A socket that is reset, not closed, unless it was told that all is well.

use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

/// One TCP end of a relay.
pub(super) struct TcpLeg {
    pub(super) tcp: TcpStream,
    clean: bool,
}

impl TcpLeg {
    /// TCP_NODELAY is set already: on the listener it was accepted by, or before it was connected.
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp, clean: false }
    }

    /// Both directions have ended with a FIN: close without a reset.
    pub(super) fn close(&mut self) {
        self.clean = true;
    }

    /// Whether the kernel holds an error for the socket, as after a reset that no read or write has met.
    pub(super) fn failed(&self) -> bool {
        !matches!(self.tcp.take_error(), Ok(None))
    }
}

impl Drop for TcpLeg {
    fn drop(&mut self) {
        if !self.clean {
            // With a linger time of zero the close that follows sends RST and frees the socket at once.
            if let Err(error) = SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO)) {
                tracing::trace!(%error, "SO_LINGER");
            }
        }
    }
}
