//! Servers: HTTP/1.1 that says what it saw, and a TCP echo. A thread per connection.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::Failure;

/// Whether /healthz says so.
static HEALTHY: AtomicBool = AtomicBool::new(true);

pub(crate) fn serve(port: u16) -> Result<(), Failure> {
    each_connection(port, |stream| {
        // A client that goes away has had enough.
        answer_all(stream).ok();
    })
}

pub(crate) fn echo(port: u16) -> Result<(), Failure> {
    each_connection(port, |mut stream| {
        if let Ok(mut back) = stream.try_clone() {
            std::io::copy(&mut stream, &mut back).ok();
        }
    })
}

pub(crate) fn each_connection(port: u16, work: fn(TcpStream)) -> Result<(), Failure> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .map_err(|error| Failure::new(1, format!("cannot listen on {port}: {error}")))?;
    println!("listening on {port}");
    for stream in listener.incoming().flatten() {
        println!("connection from {:?}", stream.peer_addr().map(canonical));
        thread::spawn(move || work(stream));
    }
    Ok(())
}

fn answer_all(stream: TcpStream) -> std::io::Result<()> {
    let (peer, local) = (canonical(stream.peer_addr()?), canonical(stream.local_addr()?));
    let mut write = stream.try_clone()?;
    let mut read = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if read.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let (mut length, mut seen) = (0, String::new());
        loop {
            let mut header = String::new();
            read.read_line(&mut header)?;
            let header = header.trim_end();
            if header.is_empty() {
                break;
            }
            let (name, value) = header.split_once(':').unwrap_or((header, ""));
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap_or(0);
            }
            seen.push_str(&format!("header={}:{}\n", name.to_ascii_lowercase(), value.trim()));
        }
        std::io::copy(&mut (&mut read).take(length), &mut std::io::sink())?;
        let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
        let (status, body) =
            page(&path, &format!("name={}\nclient={peer}\nlocal={local}\npath={path}\n{seen}", name()));
        println!("{} {status} for {peer}", line.trim_end());
        write!(
            write,
            "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        if path == "/quit" {
            process::exit(0);
        }
    }
}

fn page(path: &str, about: &str) -> (&'static str, String) {
    match path {
        "/fail" => HEALTHY.store(false, Ordering::Relaxed),
        "/heal" => HEALTHY.store(true, Ordering::Relaxed),
        "/healthz" if !HEALTHY.load(Ordering::Relaxed) => {
            return ("503 Service Unavailable", "told to fail\n".to_owned());
        }
        _ => {}
    }
    ("200 OK", about.to_owned())
}

/// The pod's: its host name is its name.
fn name() -> String {
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    std::env::var("POD_NAME").unwrap_or_else(|_| own.trim().to_owned())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
