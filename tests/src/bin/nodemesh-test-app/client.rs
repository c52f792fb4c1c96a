//! Clients: one HTTP request, and a connection that is held and used.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use crate::{Failure, resolve};

const DEADLINE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(100);

const NO_NAME: u8 = 6;
const NO_CONNECTION: u8 = 7;
const BAD_STATUS: u8 = 22;
pub(crate) const BROKEN: u8 = 56;

pub(crate) fn resolve(name: &str) -> Result<(), Failure> {
    for address in addresses(name)? {
        println!("{address}");
    }
    Ok(())
}

pub(crate) fn get(url: &str, headers: &[String]) -> Result<(), Failure> {
    let (status, body) = request("GET", url, headers)?;
    print!("{body}");
    if status >= 400 {
        return Err(Failure::new(BAD_STATUS, format!("{url}: status {status}")));
    }
    Ok(())
}

pub(crate) fn ask(method: &str, url: &str) -> Result<(), Failure> {
    // A server may want to be told that there is no body (RFC 9110, 8.6).
    let (status, body) = request(method, url, &["content-length: 0".to_owned()])?;
    println!("{status} {body}");
    Ok(())
}

/// The status and body of an answer.
fn request(method: &str, url: &str, headers: &[String]) -> Result<(u16, String), Failure> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = connect(authority, 80)?;
    let broken = |error: std::io::Error| Failure::new(BROKEN, format!("{url}: {error}"));
    let more: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    write!(stream, "{method} /{path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n{more}\r\n")
        .map_err(broken)?;
    let mut read = BufReader::new(stream);
    let mut line = String::new();
    read.read_line(&mut line).map_err(broken)?;
    let Some(status) = line.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok()) else {
        return Err(Failure::new(BROKEN, format!("{url}: no HTTP answer, but {line:?}")));
    };
    let mut length = None;
    loop {
        line.clear();
        read.read_line(&mut line).map_err(broken)?;
        let header = line.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse::<u64>().ok();
        }
    }
    // Without a length the body ends with the connection.
    let mut body = String::new();
    read.take(length.unwrap_or(u64::MAX)).read_to_string(&mut body).map_err(broken)?;
    Ok((status, body))
}

pub(crate) fn hold(to: &str) -> Result<(), Failure> {
    let mut stream = connect(to, 0)?;
    let broken = |error: std::io::Error| Failure::new(BROKEN, format!("{to}: {error}"));
    let mut read = BufReader::new(stream.try_clone().map_err(broken)?);
    for number in 0_u64.. {
        writeln!(stream, "{number}").map_err(broken)?;
        let mut line = String::new();
        if read.read_line(&mut line).map_err(broken)? == 0 {
            return Err(Failure::new(BROKEN, format!("{to}: closed after {number} lines")));
        }
        print!("{line}");
        thread::sleep(STEP);
    }
    Ok(())
}

pub(crate) fn connect(authority: &str, default: u16) -> Result<TcpStream, Failure> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && !port.contains(']') => {
            (host, port.parse().map_err(|error| Failure::new(2, format!("port {port}: {error}")))?)
        }
        _ => (authority, default),
    };
    let mut last = Failure::new(NO_CONNECTION, format!("{authority}: no address"));
    for address in addresses(host)? {
        let to = SocketAddr::new(address, port);
        match TcpStream::connect_timeout(&to, DEADLINE) {
            Ok(stream) => {
                let timeout = |error: std::io::Error| Failure::new(1, error.to_string());
                stream.set_read_timeout(Some(DEADLINE)).map_err(timeout)?;
                stream.set_write_timeout(Some(DEADLINE)).map_err(timeout)?;
                return Ok(stream);
            }
            Err(error) => last = Failure::new(NO_CONNECTION, format!("{to}: {error}")),
        }
    }
    Err(last)
}

fn addresses(name: &str) -> Result<Vec<IpAddr>, Failure> {
    resolve::addresses(name).map_err(|said| Failure::new(NO_NAME, said))
}
