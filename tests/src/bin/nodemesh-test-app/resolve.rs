//! A stub resolver (RFC 1035) with the search list and `ndots` of resolv.conf, as a pod has them.
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

const PORT: u16 = 53;
const TRIES: usize = 3;
const DEADLINE: Duration = Duration::from_secs(2);
const ANSWER_MAX: usize = 4096;
const A: u16 = 1;
const AAAA: u16 = 28;

struct Settings {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    dots: usize,
}

/// Every address of a name: IPv4 first.
pub(crate) fn addresses(name: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = name.trim_matches(['[', ']']).parse() {
        return Ok(vec![address]);
    }
    if name == "localhost" {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let settings = settings();
    let mut last = format!("{name}: no such name");
    for candidate in candidates(name, &settings) {
        let mut found = Vec::new();
        for kind in [A, AAAA] {
            match ask(&settings, &candidate, kind) {
                Ok(addresses) => found.extend(addresses),
                Err(error) => last = format!("{candidate}: {error}"),
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(last)
}

fn settings() -> Settings {
    let mut settings = Settings { servers: Vec::new(), search: Vec::new(), dots: 1 };
    for line in fs::read_to_string("/etc/resolv.conf").unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                settings.servers.extend(words.filter_map(|word| word.parse::<IpAddr>().ok()))
            }
            Some("search") => settings.search = words.map(str::to_owned).collect(),
            Some("options") => {
                let dots =
                    words.filter_map(|word| word.strip_prefix("ndots:")).find_map(|dots| dots.parse().ok());
                settings.dots = dots.unwrap_or(settings.dots);
            }
            _ => {}
        }
    }
    settings
}

fn candidates(name: &str, settings: &Settings) -> Vec<String> {
    if let Some(whole) = name.strip_suffix('.') {
        return vec![whole.to_owned()];
    }
    let mut all: Vec<String> = settings.search.iter().map(|domain| format!("{name}.{domain}")).collect();
    let at = if name.matches('.').count() >= settings.dots { 0 } else { all.len() };
    all.insert(at, name.to_owned());
    all
}

fn ask(settings: &Settings, name: &str, kind: u16) -> Result<Vec<IpAddr>, String> {
    let mut last = "resolv.conf names no server".to_owned();
    for try_number in 0..TRIES {
        for server in &settings.servers {
            match exchange(*server, name, kind, 0x4e00 + u16::try_from(try_number).unwrap_or(0)) {
                Ok(addresses) => return Ok(addresses),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

fn exchange(server: IpAddr, name: &str, kind: u16, id: u16) -> Result<Vec<IpAddr>, String> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let text = |error: std::io::Error| error.to_string();
    let socket = UdpSocket::bind((any, 0)).map_err(text)?;
    socket.set_read_timeout(Some(DEADLINE)).map_err(text)?;
    socket.connect((server, PORT)).map_err(text)?;
    socket.send(&question(name, kind, id)).map_err(text)?;
    let mut answer = [0; ANSWER_MAX];
    let length = socket.recv(&mut answer).map_err(text)?;
    read(&answer[..length], kind, id)
}

fn question(name: &str, kind: u16, id: u16) -> Vec<u8> {
    // One question, recursion desired.
    let mut packet = Vec::from(id.to_be_bytes());
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap_or(0));
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1]);
    packet
}

fn read(answer: &[u8], kind: u16, id: u16) -> Result<Vec<IpAddr>, String> {
    let short = || "an answer that breaks off".to_owned();
    let word = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    if word(0).ok_or_else(short)? != id {
        return Err("an answer to another question".to_owned());
    }
    match word(2).ok_or_else(short)? & 15 {
        0 => {}
        3 => return Err("no such name".to_owned()),
        code => return Err(format!("the name server failed with code {code}")),
    }
    let records = word(6).ok_or_else(short)?;
    // The question comes back first.
    let mut at = skip_name(answer, 12).ok_or_else(short)? + 4;
    let mut found = Vec::new();
    for _ in 0..records {
        at = skip_name(answer, at).ok_or_else(short)?;
        let length = usize::from(word(at + 8).ok_or_else(short)?);
        let data = answer.get(at + 10..at + 10 + length).ok_or_else(short)?;
        match (word(at).ok_or_else(short)?, <[u8; 4]>::try_from(data), <[u8; 16]>::try_from(data)) {
            (A, Ok(bytes), _) if kind == A => found.push(Ipv4Addr::from(bytes).into()),
            (AAAA, _, Ok(bytes)) if kind == AAAA => found.push(Ipv6Addr::from(bytes).into()),
            // An alias: what it leads to stands in the same answer.
            _ => {}
        }
        at += 10 + length;
    }
    Ok(found)
}

fn skip_name(answer: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *answer.get(at)? {
            0 => return Some(at + 1),
            // A pointer ends the name.
            length if length >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}
