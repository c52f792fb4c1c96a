//! Many bytes: all of them arrive, in order, in both directions at once.
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use anyhow::{Context, Result, ensure};
use mesh_tests::App;
use mesh_tests::apps::pattern;

use crate::mesh::{Mesh, PORT, Route};

const BYTES: usize = 64 << 20;
const BLOCK: usize = 64 << 10;
/// The pattern's period.
const PERIOD: usize = 251;

/// A stretch of the pattern from which every block of it can be cut.
fn stretch() -> Vec<u8> {
    (0..BLOCK + PERIOD).map(pattern).collect()
}

/// Sends `bytes` patterned bytes to an echo and checks what comes back, both at the same time.
pub(crate) fn exchange(stream: &TcpStream, bytes: usize) -> Result<()> {
    let stretch = stretch();
    thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<()> {
            let mut writer = stream;
            let mut at = 0;
            while at < bytes {
                let length = BLOCK.min(bytes - at);
                let from = at % PERIOD;
                writer.write_all(&stretch[from..from + length]).context("sending")?;
                at += length;
            }
            stream.shutdown(Shutdown::Write).context("finishing")
        });
        let (mut reader, mut at, mut block) = (stream, 0, vec![0; BLOCK]);
        loop {
            let length = reader.read(&mut block).with_context(|| format!("reading at {at}"))?;
            if length == 0 {
                break;
            }
            let from = at % PERIOD;
            ensure!(block[..length] == stretch[from..from + length], "other bytes at {at}");
            at += length;
        }
        ensure!(at == bytes, "{at} bytes came back");
        sending.join().map_err(|_panic| anyhow::anyhow!("the sender panicked"))?
    })
}

/// 64 MiB go to an echo and come back, byte for byte, on every route and in both families.
#[test]
fn every_byte_arrives() -> Result<()> {
    let mesh = Mesh::new("64 MiB both ways")?;
    for route in Route::ALL {
        let echo = mesh.serve(route, PORT, App::echo)?;
        let before = echo.stats().received();
        for family in [0, 1] {
            let stream = mesh.connect(route, PORT, family)?;
            exchange(&stream, BYTES).with_context(|| format!("{route:?}, family {family}"))?;
        }
        assert_eq!(echo.stats().received() - before, 2 * BYTES as u64, "{route:?}");
    }
    Ok(())
}
