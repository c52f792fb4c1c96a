//! Clients that mean harm, or only never finish: what they cost is bounded, and others do not notice.
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_tests::eventually;
use mesh_tests::leaks;

use crate::routing::myapp;
use crate::shop::SOON;

/// RFC 9113, 3.4 and 6.5: the preface and an empty SETTINGS.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
/// HPACK, by index: GET, http, `/`.
const GET: [u8; 3] = [0x82, 0x86, 0x84];
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Writes until the other side has had enough; false if it never has.
fn refused(mut stream: TcpStream, frames: impl Iterator<Item = Vec<u8>>) -> Result<bool> {
    stream.set_read_timeout(Some(Duration::from_millis(1)))?;
    stream.write_all(HELLO)?;
    let mut scrap = [0; 65536];
    for frame in frames {
        if stream.write_all(&frame).is_err() {
            return Ok(true);
        }
        // What it says is taken: it must not be saved by a full buffer.
        if matches!(stream.read(&mut scrap), Ok(0)) {
            return Ok(true);
        }
    }
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(loop {
        match stream.read(&mut scrap) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(error) => break error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    })
}

/// Streams that are reset at once (CVE-2023-44487), header blocks without end (CVE-2024-27316's class) and a header bomb:
/// the connection ends, memory stays, and the next client is served.
#[test]
fn floods_of_frames_end_their_connection() -> Result<()> {
    let (shop, service) = myapp("floods")?;
    let agent = shop.agent("node-a")?;
    assert_eq!(shop.session(&service)?.get("/")?.status, 200);
    let before = agent.resident()?;
    let odd = |number: u32| 2 * number + 1;
    let resets = (0..20_000).map(|number| {
        let mut both = frame(HEADERS, END_HEADERS | END_STREAM, odd(number), &GET);
        both.extend(frame(RST_STREAM, 0, odd(number), &8_u32.to_be_bytes()));
        both
    });
    let resets: Vec<Vec<u8>> = resets.collect();
    let bursts = resets.chunks(500).map(<[_]>::concat);
    assert!(refused(shop.connect(service.at(0))?, bursts)?, "rapid reset");
    assert!(refused(shop.connect(service.at(0))?, resets.iter().cloned())?, "reset at a pace");
    // A literal field, never indexed, of 16 KiB of text, over and over in one header block.
    let literal = || {
        let mut field = vec![0x00, 1, b'x', 0x7f];
        field.extend([0x81, 0x7f]);
        field.extend(std::iter::repeat_n(b'v', 16_384));
        field.truncate(16_384);
        field
    };
    let endless = std::iter::once(frame(HEADERS, END_STREAM, 1, &GET))
        .chain((0..4_000).map(|_| frame(CONTINUATION, 0, 1, &literal())));
    assert!(refused(shop.connect(service.at(0))?, endless)?, "a header block without end");
    for (name, payload, kind) in [("pings", &[0; 8][..], PING), ("settings", &[][..], SETTINGS)] {
        // Their answers cost as much as they do: they may go on, but nobody else may notice.
        let flood = (0..5_000).map(|_| frame(kind, 0, 0, payload));
        let stream = shop.connect(service.at(0))?;
        std::thread::scope(|scope| -> Result<()> {
            let flooding = scope.spawn(move || refused(stream, flood));
            let since = Instant::now();
            assert_eq!(shop.session(&service)?.get("/")?.status, 200);
            assert!(since.elapsed() < Duration::from_secs(5), "{name}: {:?}", since.elapsed());
            drop(flooding.join());
            Ok(())
        })?;
    }
    let grown = agent.resident()?.saturating_sub(before);
    assert!(grown < 64 * 1024 * 1024, "{grown} bytes more");
    assert_eq!(shop.session(&service)?.get("/")?.status, 200);
    Ok(())
}

/// A head that never ends is given up, a head that is too large is refused, and both are bounded.
#[test]
fn heads_have_an_end() -> Result<()> {
    let (shop, service) = myapp("heads")?;
    let mut slow = shop.connect(service.at(0))?;
    slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")?;
    let since = Instant::now();
    slow.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut all = Vec::new();
    let ended = slow.read_to_end(&mut all);
    assert!(ended.is_err() || all.is_empty(), "{:?}", String::from_utf8_lossy(&all));
    let took = since.elapsed();
    assert!(took >= Duration::from_secs(9) && took < Duration::from_secs(15), "{took:?}");
    let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
    let large = format!("x-large: {}\r\n", "v".repeat(70_000));
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "p".repeat(9_000));
    for (text, status) in [
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{large}\r\n"), 431),
        (long, 414),
    ] {
        let mut session = shop.session(&service)?;
        session.send(text.as_bytes())?;
        assert_eq!(session.answer(false)?.status, status, "{}", &text[..40]);
    }
    let agent = shop.agent("node-a")?;
    eventually("the limit to be counted", SOON, || {
        Ok(agent.metric("nodemesh_limit_hits_total", &[("limit", "http_head")])? >= 3.0)
    })?;
    let reached: u64 = shop.servers.iter().map(|server| server.app.stats().requests()).sum();
    assert_eq!(reached, 0);
    Ok(())
}

/// Clients that stop reading hold their own answers only, and nothing is left when they go.
#[test]
fn readers_that_stall_hold_nobody() -> Result<()> {
    let (shop, service) = myapp("stalled readers")?;
    assert_eq!(shop.session(&service)?.get("/")?.status, 200);
    let agent = shop.agent("node-a")?;
    let (memory, files) = (agent.resident()?, leaks::descriptors(agent.pid())?);
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let mut session = shop.session(&service)?;
        session.send(b"GET /?size=20000000 HTTP/1.1\r\nHost: a\r\n\r\n")?;
        stalled.push(session);
    }
    std::thread::sleep(Duration::from_secs(1));
    let since = Instant::now();
    for _ in 0..20 {
        assert_eq!(shop.session(&service)?.get("/")?.status, 200);
    }
    // Held up they would never come; the other scenarios share this machine.
    assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    // 800 MB are on their way; what is held is windows and buffers.
    let grown = agent.resident()?.saturating_sub(memory);
    assert!(grown < 100 * 1024 * 1024, "{grown} bytes more");
    drop(stalled);
    eventually("their connections to go", SOON, || Ok(leaks::descriptors(agent.pid())? <= files + 20))?;
    Ok(())
}
