//! A connection that stays open: one request after the other, as a client with a connection pool makes them.
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::client::IO_DEADLINE;
use mesh_tests::{Pod, eventually};

use crate::shop::{FOLLOWS, Shop};

/// How long a relayed connection is listened to while its agent is frozen.
const SILENCE: Duration = Duration::from_millis(700);

pub(super) struct Live {
    stream: TcpStream,
}

impl Live {
    pub(super) fn open(pod: &Pod, to: SocketAddr) -> Result<Self> {
        Ok(Self { stream: pod.connect(to)? })
    }

    /// A connection that the kernel lets through. The first one after a change may still be relayed, because its verdict
    /// was not there yet.
    pub(super) fn bypassed(shop: &Shop, pod: &Pod, to: SocketAddr) -> Result<Self> {
        let mut found = None;
        eventually("a bypassed connection", FOLLOWS, || {
            let live = Self::open(pod, to)?;
            let own = live.stream.local_addr().context("getsockname")?.to_string();
            let all = shop.agent(pod.node())?.ask(&["connections"])?;
            let bypassed = all
                .as_array()
                .into_iter()
                .flatten()
                .any(|conn| conn["path"] == "bypass" && conn["source"]["address"] == own.as_str());
            found = bypassed.then_some(live);
            Ok(found.is_some())
        })?;
        found.context("a bypassed connection")
    }

    pub(super) fn ask(&mut self, from: &str) -> Result<String> {
        self.send()?;
        self.answer(from)
    }

    fn send(&mut self) -> Result<()> {
        self.stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").context("asking on an open connection")
    }

    /// The answer to a question that was sent before.
    pub(super) fn answer(&mut self, from: &str) -> Result<String> {
        let mut got = Vec::new();
        let mut block = [0; 512];
        while !got.ends_with(b"\n") || got.ends_with(b"\r\n") {
            let length = self.stream.read(&mut block).context("reading the answer on an open connection")?;
            if length == 0 {
                bail!("expected an answer of {from}; saw the connection closed");
            }
            got.extend_from_slice(&block[..length]);
        }
        let text = String::from_utf8_lossy(&got).into_owned();
        let body = text.rsplit("\r\n").next().unwrap_or_default().trim().to_owned();
        if !body.contains(from) {
            bail!("expected an answer of {from}; saw: {body}");
        }
        Ok(body)
    }

    /// Asks, and listens for a while: true when nothing comes. The answer may still come later.
    pub(super) fn is_silent(&mut self) -> Result<bool> {
        self.send()?;
        self.stream.set_read_timeout(Some(SILENCE)).context("cannot set a deadline")?;
        let heard = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(Some(IO_DEADLINE)).context("cannot set a deadline")?;
        match heard {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(true),
            Err(error) => Err(error).context("listening on an open connection"),
            Ok(_) => Ok(false),
        }
    }

    /// Waits until the connection is gone; how it ended, as the application sees it.
    pub(super) fn ended(&mut self) -> Result<String> {
        self.stream.set_read_timeout(Some(FOLLOWS)).context("cannot set a deadline")?;
        match self.stream.read(&mut [0; 512]) {
            Ok(0) => Ok("closed".to_owned()),
            Ok(_) => bail!("expected the connection to be cut; saw bytes"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                bail!("expected the connection to be cut; saw it open after {FOLLOWS:?}")
            }
            Err(error) => Ok(error.to_string()),
        }
    }
}
