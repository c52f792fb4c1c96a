//! A door between the source and the API server, which a test can shut: bytes pass as they are.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh_tests::ApiServer;
use parking_lot::Mutex;

pub(crate) struct Gate {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    closed: AtomicBool,
    ended: AtomicBool,
    passing: Mutex<Vec<TcpStream>>,
}

impl Gate {
    pub(crate) fn before(api: &ApiServer) -> Self {
        let url = api.url();
        let server: SocketAddr = url.trim_start_matches("https://").trim_end_matches('/').parse().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if shared.ended.load(Ordering::Acquire) {
                    return;
                }
                if shared.closed.load(Ordering::Acquire) {
                    continue;
                }
                let Ok(upstream) = TcpStream::connect(server) else { continue };
                let mut passing = shared.passing.lock();
                passing.extend([client.try_clone().unwrap(), upstream.try_clone().unwrap()]);
                pump(client.try_clone().unwrap(), upstream.try_clone().unwrap());
                pump(upstream, client);
            }
        });
        Self { address, state }
    }

    /// The admin's kubeconfig, by way of the door.
    pub(crate) fn kubeconfig(&self, api: &ApiServer) -> PathBuf {
        let text = std::fs::read_to_string(api.admin_kubeconfig()).unwrap();
        let changed = text.replace(&api.url(), &format!("https://{}", self.address));
        assert_ne!(changed, text, "the kubeconfig does not name {}", api.url());
        let path = api.dir().join("gate.kubeconfig");
        std::fs::write(&path, changed).unwrap();
        path
    }

    pub(crate) fn close(&self) {
        self.state.closed.store(true, Ordering::Release);
        for stream in self.state.passing.lock().drain(..) {
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
    }

    pub(crate) fn open(&self) {
        self.state.closed.store(false, Ordering::Release);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Release);
        self.close();
        drop(TcpStream::connect(self.address));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        drop(io::copy(&mut from, &mut to));
        drop(to.shutdown(std::net::Shutdown::Write));
    });
}
