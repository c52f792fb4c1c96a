//! One connection that moves as much as it can in one direction, as iperf3 does.
use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_tests::{NetNs, client};

use crate::http::Count;
use crate::stage::Route;

const BLOCK: usize = 128 << 10;
const WARM_UP: Duration = Duration::from_millis(200);
/// The first byte of a connection says what its client wants.
const UPLOAD: u8 = b'U';

/// Serves connections until the process ends; counts what uploads bring.
pub(crate) fn serve(ns: &NetNs, port: u16) -> Result<Arc<AtomicU64>> {
    let received = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&received);
    let listener = ns.run(|| {
        TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
            .context("cannot bind the bulk server")
    })?;
    thread::Builder::new()
        .name(format!("bulk-{port}"))
        .spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let counted = Arc::clone(&counted);
                // A connection that its client ends is over, not wrong.
                thread::spawn(move || drop(answer(stream, &counted)));
            }
        })
        .context("cannot start the bulk server")?;
    Ok(received)
}

fn answer(mut stream: TcpStream, received: &AtomicU64) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK];
    stream.read_exact(&mut block[..1])?;
    if block[0] == UPLOAD {
        loop {
            let length = stream.read(&mut block)?;
            if length == 0 {
                return Ok(());
            }
            received.fetch_add(length as u64, Ordering::Relaxed);
        }
    }
    loop {
        stream.write_all(&block)?;
    }
}

/// Bytes that arrived, whichever way they went.
pub(crate) fn move_bytes(route: &Route<'_>, upload: bool, length: Duration) -> Result<Count> {
    let mut stream = route.client.connect(route.bulk)?;
    stream.write_all(if upload { &[UPLOAD] } else { b"D" }).context("asking the bulk server")?;
    let arrived = if upload { Arc::clone(&route.received) } else { Arc::new(AtomicU64::new(0)) };
    let seen = Arc::clone(&arrived);
    let origin = arrived.load(Ordering::Relaxed);
    let mut end = stream.try_clone().context("cannot duplicate a connection")?;
    let mover = thread::spawn(move || {
        let mut block = vec![0; BLOCK];
        // Ends with the shutdown below.
        while let Ok(moved) = if upload { stream.write(&block) } else { stream.read(&mut block) } {
            if moved == 0 {
                break;
            }
            if !upload {
                seen.fetch_add(moved as u64, Ordering::Relaxed);
            }
        }
    });
    thread::sleep(WARM_UP);
    let (before, start) = (arrived.load(Ordering::Relaxed), Instant::now());
    thread::sleep(length);
    let (after, time) = (arrived.load(Ordering::Relaxed), start.elapsed());
    end.shutdown(Shutdown::Both).ok();
    if upload {
        // What is on its way belongs to this connection, not to the next measurement.
        client::read_all(&mut end).ok();
    }
    mover.join().ok();
    Ok(Count { number: after - before, time, total: after - origin })
}
