//! `nodemesh-test-app`: all that runs in a pod of the test cluster, from an image that holds nothing else.
//!
//! Only the standard library, so that `build.rs` can link it statically by itself. Names are looked up by code of its
//! own: the C library's resolver wants to load parts of itself, which a static program in an empty image cannot.
mod client;
mod grpc;
mod http;
mod resolve;
mod traffic;

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const USAGE: &str = "usage: nodemesh-test-app VERB
  serve [PORT]         HTTP: / says who asked whom; /healthz, with /fail and /heal to switch it; /quit ends the program
  echo [PORT]          TCP: sends back what it receives
  get URL [HEADER...]  one request; prints the body; exit code 6: no such name, 7: no connection, 22: status 400 or more
  ask METHOD URL       one request without a body; prints its status and what it got, whatever they are
  hold HOST:PORT       a line to an echo ten times a second; prints each answer, ends with the connection
  grpc [PORT]          a gRPC server that answers its health check
  traffic MS TO...     a new connection to each echo every MS milliseconds; says how many were good and which failed
  watch HOST:PORT      new connections to an echo, one after the other; says when they begin or cease to be refused
  resolve NAME         prints addresses, one a line
  sleep [SECONDS]      does nothing
  pause                does nothing, forever
";

/// Where nothing else is said.
const PORT: u16 = 8080;

/// Why a verb failed: the code that a script can tell apart, and a sentence.
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) said: String,
}

impl Failure {
    pub(crate) fn new(code: u8, said: impl Into<String>) -> Self {
        Self { code, said: said.into() }
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rest = words.get(1..).unwrap_or_default();
    let first = rest.first().map(String::as_str);
    let port = || {
        first.map_or(Ok(PORT), |text| {
            text.parse().map_err(|error| Failure::new(2, format!("port {text}: {error}")))
        })
    };
    let done = match (words.first().map(String::as_str), first) {
        (Some("serve"), _) => port().and_then(http::serve),
        (Some("echo"), _) => port().and_then(http::echo),
        (Some("grpc"), _) => port().and_then(grpc::health),
        (Some("traffic"), Some(every)) => traffic::steady(every, &rest[1..]),
        (Some("watch"), Some(to)) => traffic::watch(to),
        (Some("get"), Some(url)) => client::get(url, &rest[1..]),
        (Some("ask"), Some(method)) => client::ask(method, rest.get(1).map_or("", String::as_str)),
        (Some("hold"), Some(to)) => client::hold(to),
        (Some("resolve"), Some(name)) => client::resolve(name),
        (Some("pause" | "sleep"), None) => loop {
            thread::park();
        },
        (Some("sleep"), Some(seconds)) => {
            thread::sleep(Duration::from_secs_f64(seconds.parse().unwrap_or(0.0)));
            Ok(())
        }
        _ => Err(Failure::new(2, USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.said);
            ExitCode::from(failure.code)
        }
    }
}
