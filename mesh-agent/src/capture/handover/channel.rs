//! One conversation: messages as a length (four bytes, little endian) and JSON text, descriptors with the
//! first byte. Owns: the stream and the message being read. Never: decides what to say.
//! Called by the clients and servers of [`super`].

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;

use super::message::{Assembler, Message, Service, split};
use super::{
    HandoverError, ListenerSet, MAX_DESCRIPTORS_PER_MESSAGE, MAX_MESSAGE_BYTES, MAX_SETS, PROTOCOL_VERSION,
    Refusal, STEP_LIMIT, Sets, wire,
};

/// Bytes of the length before each message.
const LENGTH_BYTES: usize = 4;

/// A message and what came with it.
pub(super) type Incoming = (Message, Vec<OwnedFd>);

#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    /// The message being read. Kept here, not in the reading future, so that giving up a read loses nothing.
    bytes: Vec<u8>,
    filled: usize,
    fds: Vec<OwnedFd>,
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, bytes: Vec::new(), filled: 0, fds: Vec::new() }
    }

    /// Sends a message. Where the peer is gone and said why before it went, that is the error.
    pub(super) async fn send(
        &mut self,
        message: &Message,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), HandoverError> {
        let text = serde_json::to_vec(message).map_err(|source| HandoverError::Unreadable { source })?;
        let too_long = || HandoverError::TooLong { bytes: text.len(), limit: MAX_MESSAGE_BYTES };
        let length = u32::try_from(text.len()).map_err(|_overflow| too_long())?;
        if text.len() > MAX_MESSAGE_BYTES {
            return Err(too_long());
        }
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&text);
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        match within(STEP_LIMIT, "taking a message", self.write(&bytes, &raw)).await {
            Err(HandoverError::Closed { wanted }) => match self.next().await {
                Ok(Some((Message::Refused { refusal }, _))) => Err(HandoverError::Refused { refusal }),
                _ => Err(HandoverError::Closed { wanted }),
            },
            sent => sent,
        }
    }

    async fn write(&self, bytes: &[u8], fds: &[RawFd]) -> Result<(), HandoverError> {
        let mut sent = 0;
        while sent < bytes.len() {
            // The descriptors went with the first byte.
            let fds = if sent == 0 { fds } else { &[] };
            let write = || wire::send(self.stream.as_fd(), &bytes[sent..], fds);
            sent += self.stream.async_io(Interest::WRITABLE, write).await.map_err(send_failed)?;
        }
        Ok(())
    }

    /// The next message, or none if the peer ended between two. Giving up and asking again loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<Incoming>, HandoverError> {
        loop {
            let wanted = self.wanted()?;
            if self.filled == wanted {
                return self.finish().map(Some);
            }
            self.bytes.resize(wanted, 0);
            let (stream, rest) = (&self.stream, &mut self.bytes[self.filled..]);
            let read = stream.async_io(Interest::READABLE, || wire::receive(stream.as_fd(), rest)).await;
            let mut got = match read {
                Ok(got) => got,
                // A peer that closed with our words unread: gone, as with a plain end.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => wire::Received::default(),
                Err(source) => return Err(HandoverError::Io { doing: "read from the peer", source }),
            };
            if got.cut {
                return Err(HandoverError::DescriptorsLost);
            }
            if got.bytes == 0 {
                return if self.filled == 0 {
                    Ok(None)
                } else {
                    Err(HandoverError::Truncated { got: self.filled, wanted })
                };
            }
            self.filled += got.bytes;
            self.fds.append(&mut got.fds);
            if self.fds.len() > MAX_DESCRIPTORS_PER_MESSAGE {
                let came = self.fds.len();
                return Err(HandoverError::DescriptorCount { named: MAX_DESCRIPTORS_PER_MESSAGE, came });
            }
        }
    }

    /// The next message, within the limit; the end of the conversation is an error.
    pub(super) async fn due(
        &mut self,
        limit: Duration,
        wanted: &'static str,
    ) -> Result<Incoming, HandoverError> {
        match within(limit, wanted, self.next()).await? {
            Some((Message::Refused { refusal }, _)) => Err(HandoverError::Refused { refusal }),
            Some(incoming) => Ok(incoming),
            None => Err(HandoverError::Closed { wanted }),
        }
    }

    /// How long the message is as far as is known: its length first, then all of it.
    fn wanted(&self) -> Result<usize, HandoverError> {
        let Some(length) = self.bytes.first_chunk::<LENGTH_BYTES>().filter(|_| self.filled >= LENGTH_BYTES)
        else {
            return Ok(LENGTH_BYTES);
        };
        match usize::try_from(u32::from_le_bytes(*length)) {
            Ok(bytes) if bytes <= MAX_MESSAGE_BYTES => Ok(LENGTH_BYTES + bytes),
            Ok(bytes) => Err(HandoverError::TooLong { bytes, limit: MAX_MESSAGE_BYTES }),
            Err(_too_wide) => Err(HandoverError::TooLong { bytes: usize::MAX, limit: MAX_MESSAGE_BYTES }),
        }
    }

    fn finish(&mut self) -> Result<Incoming, HandoverError> {
        let bytes = std::mem::take(&mut self.bytes);
        let fds = std::mem::take(&mut self.fds);
        self.filled = 0;
        let message: Message = serde_json::from_slice(&bytes[LENGTH_BYTES..])
            .map_err(|source| HandoverError::Unreadable { source })?;
        if message.descriptors() != fds.len() {
            return Err(HandoverError::DescriptorCount { named: message.descriptors(), came: fds.len() });
        }
        Ok((message, fds))
    }

    /// The opening words, from the end that connected.
    pub(super) async fn greet(&mut self, service: Service) -> Result<(), HandoverError> {
        self.send(&Message::Hello { version: PROTOCOL_VERSION, service }, &[]).await?;
        self.check_hello(service).await
    }

    /// The opening words, from the end that was connected to. The answer goes out before the check, so that
    /// the peer can name the mismatch too.
    pub(super) async fn welcome(&mut self, service: Service) -> Result<(), HandoverError> {
        let checked = self.check_hello(service).await;
        if !matches!(checked, Err(HandoverError::Closed { .. } | HandoverError::Late { .. })) {
            self.send(&Message::Hello { version: PROTOCOL_VERSION, service }, &[]).await?;
        }
        checked
    }

    async fn check_hello(&mut self, ours: Service) -> Result<(), HandoverError> {
        match self.due(STEP_LIMIT, "hello").await?.0 {
            Message::Hello { version, .. } if version != PROTOCOL_VERSION => {
                Err(HandoverError::Version { theirs: version, ours: PROTOCOL_VERSION })
            }
            Message::Hello { service, .. } if service != ours => {
                Err(HandoverError::WrongService { theirs: service, ours })
            }
            Message::Hello { .. } => Ok(()),
            other => Err(HandoverError::Unexpected { got: other.name(), wanted: "hello" }),
        }
    }

    /// Sends one set in as many messages as it needs, each made by `wrap`.
    pub(super) async fn send_set(
        &mut self,
        set: &ListenerSet,
        wrap: fn(super::message::SetPart) -> Message,
    ) -> Result<(), HandoverError> {
        for (part, fds) in split(set)? {
            self.send(&wrap(part), &fds).await?;
        }
        Ok(())
    }

    /// Receives sets until `End`.
    pub(super) async fn receive_sets(&mut self) -> Result<Sets, HandoverError> {
        let (mut sets, mut assembler) = (Sets::new(), Assembler::default());
        loop {
            match self.due(STEP_LIMIT, "a set").await? {
                (Message::Set(part), fds) => {
                    sets.extend(assembler.add(part, fds)?);
                    if sets.len() > MAX_SETS {
                        let remedy = "drop sets of pods that are gone";
                        let value = sets.len();
                        return Err(HandoverError::Limit { what: "sets", value, limit: MAX_SETS, remedy });
                    }
                }
                (Message::End { .. }, _) if assembler.unfinished() => {
                    return Err(HandoverError::Unexpected { got: "end", wanted: "the rest of a set" });
                }
                (Message::End { sets: said }, _) if said != sets.len() => {
                    return Err(HandoverError::SetCount { said, came: sets.len() });
                }
                (Message::End { .. }, _) => return Ok(sets),
                (other, _) => {
                    return Err(HandoverError::Unexpected { got: other.name(), wanted: "a set or end" });
                }
            }
        }
    }

    /// Tells the peer why the conversation ends, if it still listens.
    pub(super) async fn refuse(&mut self, refusal: Refusal) {
        if let Err(error) = self.send(&Message::Refused { refusal }, &[]).await {
            tracing::debug!(%error, "the refused peer is gone");
        }
    }
}

fn send_failed(source: io::Error) -> HandoverError {
    match source.raw_os_error() {
        Some(libc::EPIPE | libc::ECONNRESET) => HandoverError::Closed { wanted: "taking a message" },
        Some(libc::ETOOMANYREFS) => HandoverError::TooManyInFlight,
        _ => HandoverError::Io { doing: "write to the peer", source },
    }
}

pub(super) async fn within<T>(
    limit: Duration,
    doing: &'static str,
    step: impl Future<Output = Result<T, HandoverError>>,
) -> Result<T, HandoverError> {
    tokio::time::timeout(limit, step).await.map_err(|_elapsed| HandoverError::Late { doing, limit })?
}

#[cfg(test)]
pub(super) mod tests;
