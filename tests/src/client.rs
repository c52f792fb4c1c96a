//! Clients: plain sockets, with what a test may want to set on them, and one HTTP request.
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Protocol, Socket, Type};

/// No test waits longer than this for one read, write or connect.
pub const IO_DEADLINE: Duration = Duration::from_secs(10);

/// How to connect.
#[derive(Clone, Debug)]
pub struct Dial {
    pub source: Option<IpAddr>,
    pub mark: Option<u32>,
    pub device: Option<String>,
    pub receive_buffer: Option<usize>,
    pub mptcp: bool,
    pub deadline: Duration,
}

impl Default for Dial {
    fn default() -> Self {
        Self {
            source: None,
            mark: None,
            device: None,
            receive_buffer: None,
            mptcp: false,
            deadline: IO_DEADLINE,
        }
    }
}

/// Connects in the calling thread's namespace.
pub fn dial(to: SocketAddr, how: &Dial) -> Result<TcpStream> {
    let protocol = if how.mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket =
        Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol)).context("cannot make a socket")?;
    if let Some(mark) = how.mark {
        socket.set_mark(mark).context("cannot set SO_MARK")?;
    }
    if let Some(device) = &how.device {
        socket.bind_device(Some(device.as_bytes())).context("cannot set SO_BINDTODEVICE")?;
    }
    if let Some(size) = how.receive_buffer {
        socket.set_recv_buffer_size(size).context("cannot set SO_RCVBUF")?;
    }
    if let Some(source) = how.source {
        socket.bind(&SocketAddr::new(source, 0).into()).context("cannot bind the source address")?;
    }
    socket.connect_timeout(&to.into(), how.deadline).with_context(|| format!("connecting to {to}"))?;
    socket.set_read_timeout(Some(how.deadline)).context("cannot set the read deadline")?;
    socket.set_write_timeout(Some(how.deadline)).context("cannot set the write deadline")?;
    socket.set_tcp_nodelay(true).context("cannot set TCP_NODELAY")?;
    Ok(socket.into())
}

/// Sends `bytes` and reads as many back; an error when they differ.
pub fn echo(stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).context("writing to the echo")?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).context("reading from the echo")?;
    if back != bytes {
        bail!("the echo gave other bytes back");
    }
    Ok(())
}

/// Reads one line, which the server says by itself.
pub fn line(stream: &mut impl Read) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).context("reading a line")?;
        if byte == *b"\n" {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        line.push(byte[0]);
    }
}

/// Speaks TLS as a client that asks for this name and trusts these certificates only.
pub fn tls(
    stream: TcpStream,
    name: &str,
    trusted: &[CertificateDer<'static>],
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(certificate.clone()).context("a certificate to trust")?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("no TLS version")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).context("a server's name")?;
    let tls = ClientConnection::new(Arc::new(config), name).context("cannot start TLS")?;
    Ok(StreamOwned::new(tls, stream))
}

/// Reads to the end of the stream.
pub fn read_all(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).context("reading to the end")?;
    Ok(all)
}

/// The kind of I/O error at the root of a failure, if it was one.
pub fn io_kind(error: &anyhow::Error) -> Option<std::io::ErrorKind> {
    error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind)
}

/// What an HTTP server answered.
#[derive(Debug)]
pub struct HttpReply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl HttpReply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body of the lab's own HTTP server.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }
}

/// One GET with `Connection: close`; the body is what follows the head until the end, de-chunked where needed.
pub fn get(mut stream: TcpStream, host: &str, path: &str) -> Result<HttpReply> {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: lab\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("writing an HTTP request")?;
    let all = read_all(&mut stream)?;
    // The server closes first; a second close needs no answer.
    drop(stream.shutdown(Shutdown::Both));
    parse(&all)
}

fn parse(all: &[u8]) -> Result<HttpReply> {
    let Some(end) = all.windows(4).position(|window| window == b"\r\n\r\n") else {
        bail!("not an HTTP response: {:?}", String::from_utf8_lossy(&all[..all.len().min(200)]));
    };
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let mut reply =
        HttpReply { status: status.context("no HTTP status")?, headers, body: all[end + 4..].to_vec() };
    if reply.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        reply.body = join_chunks(&reply.body)?;
    }
    Ok(reply)
}

fn join_chunks(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n").context("a chunk without a size")?;
        let size = usize::from_str_radix(String::from_utf8_lossy(&rest[..line]).trim(), 16)
            .context("a chunk's size")?;
        rest = &rest[line + 2..];
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(rest.get(..size).context("a chunk is cut short")?);
        rest = rest.get(size + 2..).context("a chunk without an end")?;
    }
}

/// One HTTP/1.1 connection that stays open from request to request.
#[derive(Debug)]
pub struct Session {
    read: BufReader<TcpStream>,
    write: TcpStream,
    host: String,
}

/// A request of a [`Session`].
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
}

impl<'a> Ask<'a> {
    pub fn get(path: &'a str) -> Self {
        Self { method: "GET", path, headers: &[], body: b"" }
    }

    #[must_use]
    pub fn headers(mut self, headers: &'a [(&'a str, &'a str)]) -> Self {
        self.headers = headers;
        self
    }

    pub fn post(path: &'a str, body: &'a [u8]) -> Self {
        Self { method: "POST", path, headers: &[], body }
    }
}

impl Session {
    pub fn new(stream: TcpStream, host: &str) -> Result<Self> {
        let write = stream.try_clone().context("cannot copy a socket")?;
        Ok(Self { read: BufReader::new(stream), write, host: host.to_owned() })
    }

    /// Waits longer for an answer than other clients of the lab.
    pub fn patient(self, deadline: Duration) -> Result<Self> {
        self.write.set_read_timeout(Some(deadline)).context("cannot set the read deadline")?;
        Ok(self)
    }

    pub fn get(&mut self, path: &str) -> Result<HttpReply> {
        self.ask(&Ask::get(path))
    }

    /// Sends a request and reads its answer.
    pub fn ask(&mut self, ask: &Ask<'_>) -> Result<HttpReply> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", ask.method, ask.path, self.host);
        for (name, value) in ask.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !ask.body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", ask.body.len()));
        }
        head.push_str("\r\n");
        let mut all = head.into_bytes();
        all.extend_from_slice(ask.body);
        self.send(&all)?;
        self.answer(ask.method == "HEAD")
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.write.write_all(bytes).context("writing an HTTP request")
    }

    /// The connection itself, after an answer of 101. Nothing has been read beyond it.
    pub fn into_stream(self) -> TcpStream {
        self.write
    }

    /// Reads the next answer; interim ones are passed over.
    pub fn answer(&mut self, headless: bool) -> Result<HttpReply> {
        loop {
            let reply = self.head()?;
            if reply.status == 101 || !(100..200).contains(&reply.status) {
                return self.body(reply, headless);
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.read.read_line(&mut line).context("reading an HTTP answer")? == 0 {
            bail!("the connection ended before an answer");
        }
        Ok(line.trim_end().to_owned())
    }

    fn head(&mut self) -> Result<HttpReply> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("not an HTTP answer: {first:?}"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        Ok(HttpReply { status, headers, body: Vec::new() })
    }

    fn body(&mut self, mut reply: HttpReply, headless: bool) -> Result<HttpReply> {
        if headless || reply.status == 204 || reply.status == 304 || reply.status == 101 {
            return Ok(reply);
        }
        if let Some(length) = reply.header("content-length") {
            let length: usize = length.parse().context("a length")?;
            reply.body = vec![0; length];
            self.read.read_exact(&mut reply.body).context("reading a body")?;
        } else if reply.header("transfer-encoding").is_some() {
            loop {
                let size = usize::from_str_radix(&self.line()?, 16).context("a chunk's size")?;
                let mut chunk = vec![0; size];
                self.read.read_exact(&mut chunk).context("reading a chunk")?;
                reply.body.extend_from_slice(&chunk);
                self.line()?;
                if size == 0 {
                    break;
                }
            }
        } else {
            self.read.read_to_end(&mut reply.body).context("reading to the end")?;
        }
        Ok(reply)
    }
}
