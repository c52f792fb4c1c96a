//! A port on this machine's loopback that leads into a namespace: the API server lives in a namespace of its own, and
//! whoever holds its kubeconfig need not know.
//!
//! A listener made outside stays outside; the thread that serves it has entered the namespace, and what it dials is
//! dialled there. So the machine's own network gets no route, address or rule.
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::netns::NetNs;

/// A forwarder; ends when dropped, with every connection through it.
pub(super) struct Forward {
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Forward {
    pub(super) fn start(into: &NetNs, to: SocketAddr) -> Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("cannot listen on the machine's loopback")?;
        listener.set_nonblocking(true).context("cannot make a listener non-blocking")?;
        let port = listener.local_addr().context("a listener without an address")?.port();
        let (stop, stopped) = oneshot::channel();
        let namespace = into.try_clone()?;
        let work = move || {
            if let Err(error) = serve(&namespace, listener, to, stopped) {
                eprintln!("forward to {to}: {error:#}");
            }
        };
        let thread = thread::Builder::new()
            .name("api-forward".to_owned())
            .spawn(work)
            .context("cannot start a thread")?;
        Ok(Self { port, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Refused only by a thread that ended before.
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn serve(
    namespace: &NetNs,
    listener: std::net::TcpListener,
    to: SocketAddr,
    mut stopped: oneshot::Receiver<()>,
) -> Result<()> {
    namespace.enter()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot make a runtime for the forwarder")?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener).context("cannot use the listener")?;
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                _ = &mut stopped => return Ok(()),
                Some(_) = open.join_next() => {}
                accepted = listener.accept() => {
                    // A connection that was reset before it was accepted is none.
                    let Ok((mut near, _)) = accepted else { continue };
                    open.spawn(async move {
                        // Nobody there: the client sees its connection end, as at a server that is starting.
                        let Ok(mut far) = TcpStream::connect(to).await else { return };
                        near.set_nodelay(true).ok();
                        far.set_nodelay(true).ok();
                        // Ended by either side, in whatever way: both know.
                        copy_bidirectional(&mut near, &mut far).await.ok();
                    });
                }
            }
        }
    })
}
