//! The question `explain SRC DST[:PORT] [METHOD PATH]`: its text form on the command line and in a URL.
//! Owns: parsing both. Never: resolves a name (the source does). Called by `cli::explain` and `admin::routes`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Longest name or address in a question, bytes.
pub const NAME_MAX_BYTES: usize = 512;
/// Longest path of a request in a question, bytes.
pub const PATH_MAX_BYTES: usize = 8192;

/// Who wants to reach whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainQuery {
    /// `NAMESPACE/NAME`, `NAME.NAMESPACE`, or a pod's address.
    pub source: String,
    /// As the source, or a Service by the same forms, its host name or VIP.
    pub destination: String,
    /// None: the destination's only port.
    pub port: Option<u16>,
    /// None: a TCP connection.
    pub request: Option<AskedRequest>,
    /// The name in the connection's ClientHello. None: the destination's, as it is written.
    pub sni: Option<String>,
}

/// The request that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedRequest {
    pub method: String,
    /// With its query, as a client would send it.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

/// Why a text is no question.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error("{field}: empty; write NAMESPACE/NAME, NAME.NAMESPACE or an address")]
    Empty { field: &'static str },
    #[error("{field}: longer than {NAME_MAX_BYTES} bytes; write NAMESPACE/NAME or an address")]
    TooLong { field: &'static str },
    #[error("destination: `{0}` is no port; write DST:PORT with PORT from 1 to 65535")]
    Port(String),
    #[error("{field}: `{text}` has a character that no name has")]
    Character { field: &'static str, text: String },
    #[error("method: `{0}` is none; write e.g. GET")]
    Method(String),
    #[error("path: `{0}` does not begin with a slash, or has a character that no path has")]
    Path(String),
    #[error("header: `{0}` is none; write `NAME: VALUE`")]
    Header(String),
    #[error("query: a request needs both method and path")]
    Half,
    #[error("sni: `{0}` is no server's name; write e.g. shop.example.com")]
    Sni(String),
    #[error("query: `{0}` is no known parameter; use src, dst, method, path, header and sni")]
    Parameter(String),
    #[error("query: `{0}` is not percent-encoded UTF-8")]
    Encoding(String),
}

impl ExplainQuery {
    /// From the two words of the command line.
    pub fn parse(source: &str, destination: &str) -> Result<Self, QueryError> {
        let (name, port) = split_port(destination)?;
        check("source", source)?;
        check("destination", name)?;
        Ok(Self { source: source.to_owned(), destination: name.to_owned(), port, request: None, sni: None })
    }

    /// The same question about a request; headers as `NAME: VALUE`.
    pub fn with_request(self, method: &str, path: &str, headers: &[String]) -> Result<Self, QueryError> {
        let token = !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
        if !token {
            return Err(QueryError::Method(method.to_owned()));
        }
        let printable = path.bytes().all(|byte| byte > b' ' && byte != 0x7f);
        if !(path.starts_with('/') || path == "*") || !printable || path.len() > PATH_MAX_BYTES {
            return Err(QueryError::Path(path.to_owned()));
        }
        let header = |text: &String| {
            let bad = || QueryError::Header(text.clone());
            let (name, value) = text.split_once(':').ok_or_else(bad)?;
            let name: http::HeaderName = name.trim().parse().map_err(|_invalid| bad())?;
            let value = value.trim();
            let _valid = http::HeaderValue::from_str(value).map_err(|_invalid| bad())?;
            Ok((name.as_str().to_owned(), value.to_owned()))
        };
        let headers = headers.iter().map(header).collect::<Result<_, _>>()?;
        let request = AskedRequest { method: method.to_owned(), path: path.to_owned(), headers };
        Ok(Self { request: Some(request), ..self })
    }

    /// The same question about a connection whose ClientHello has this name.
    pub fn with_sni(self, name: &str) -> Result<Self, QueryError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if name.is_empty() || name.len() > NAME_MAX_BYTES || !name.bytes().all(good) {
            return Err(QueryError::Sni(name.to_owned()));
        }
        Ok(Self { sni: Some(name.trim_end_matches('.').to_ascii_lowercase()), ..self })
    }

    /// From a URL's query, `src=..&dst=..`, with `&sni=..`, and for a request `&method=..&path=..&header=..&header=..`.
    pub fn from_url(query: &str) -> Result<Self, QueryError> {
        let (mut source, mut destination) = (String::new(), String::new());
        let (mut method, mut path, mut headers, mut sni) = (None, None, Vec::new(), None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "src" => source = decode(value)?,
                "dst" => destination = decode(value)?,
                "method" => method = Some(decode(value)?),
                "path" => path = Some(decode(value)?),
                "header" => headers.push(decode(value)?),
                "sni" => sni = Some(decode(value)?),
                _ => return Err(QueryError::Parameter(key.to_owned())),
            }
        }
        let mut asked = Self::parse(&source, &destination)?;
        if let Some(name) = sni {
            asked = asked.with_sni(&name)?;
        }
        match (method, path) {
            (Some(method), Some(path)) => asked.with_request(&method, &path, &headers),
            (None, None) if headers.is_empty() => Ok(asked),
            _ => Err(QueryError::Half),
        }
    }

    /// The URL's query.
    pub fn to_url(&self) -> String {
        let mut url = format!("src={}&dst={}", encode(&self.source), encode(&self.to_string()));
        if let Some(name) = &self.sni {
            url.push_str(&format!("&sni={}", encode(name)));
        }
        if let Some(request) = &self.request {
            url.push_str(&format!("&method={}&path={}", encode(&request.method), encode(&request.path)));
            for (name, value) in &request.headers {
                url.push_str(&format!("&header={}", encode(&format!("{name}: {value}"))));
            }
        }
        url
    }
}

/// The destination as it is written on the command line.
impl fmt::Display for ExplainQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) if self.destination.contains(':') => write!(f, "[{}]:{port}", self.destination),
            Some(port) => write!(f, "{}:{port}", self.destination),
            None => f.write_str(&self.destination),
        }
    }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), QueryError> {
    // A bare IPv6 address is all colons; with a port it needs brackets (RFC 3986, section 3.2.2).
    if Ipv6Addr::from_str(text).is_ok() {
        return Ok((text, None));
    }
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return match rest.strip_prefix(':') {
            Some(port) => Ok((address, Some(number(port)?))),
            None if rest.is_empty() => Ok((address, None)),
            None => Err(QueryError::Port(rest.to_owned())),
        };
    }
    match text.rsplit_once(':') {
        Some((name, port)) => Ok((name, Some(number(port)?))),
        None => Ok((text, None)),
    }
}

fn number(text: &str) -> Result<u16, QueryError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.ok_or_else(|| QueryError::Port(text.to_owned()))
}

fn check(field: &'static str, text: &str) -> Result<(), QueryError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b':' | b'%');
    if text.is_empty() {
        return Err(QueryError::Empty { field });
    }
    if text.len() > NAME_MAX_BYTES {
        return Err(QueryError::TooLong { field });
    }
    if !text.bytes().all(good) {
        return Err(QueryError::Character { field, text: text.to_owned() });
    }
    Ok(())
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn decode(text: &str) -> Result<String, QueryError> {
    let bad = || QueryError::Encoding(text.to_owned());
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit =
            || bytes.next().and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(bad()) };
        out.push(high << 4 | low);
    }
    String::from_utf8(out).map_err(|_not_utf8| bad())
}

#[cfg(test)]
mod tests;
