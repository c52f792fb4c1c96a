//! The agent's end of the holder. Owns: one connection. Never: reconnects by itself. After an error other than
//! [`Refusal::Full`](super::Refusal::Full) the caller connects anew and puts all its sets again.
//! Called by the agent's composition root (fetch at start) and by enrolment (put, drop).

use std::path::Path;

use super::channel::Channel;
use super::message::{Message, Service};
use super::{HandoverError, ListenerSet, STEP_LIMIT, Sets, socket};

/// What the holder holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub pods: usize,
    pub descriptors: usize,
}

/// A connection to the holder.
#[derive(Debug)]
pub struct HolderClient {
    channel: Channel,
}

impl HolderClient {
    /// Connects to the holder; [`HandoverError::NobodyThere`] if none runs.
    pub async fn connect(path: &Path) -> Result<Self, HandoverError> {
        let mut channel = Channel::new(socket::connect(path).await?);
        channel.greet(Service::Holder).await?;
        Ok(Self { channel })
    }

    /// Has the holder keep a duplicate of the set, in place of one of the same pod and cookie.
    pub async fn put(&mut self, set: &ListenerSet) -> Result<Count, HandoverError> {
        self.channel.send_set(set, Message::Put).await?;
        self.holding().await
    }

    /// Has the holder forget a set; no error if it has none. Until then the sockets keep the namespace of a
    /// deleted pod alive, so an agent drops whatever it fetched and has no pod for.
    pub async fn drop_pod(&mut self, pod: &str, cookie: u64) -> Result<Count, HandoverError> {
        self.channel.send(&Message::Drop { pod: pod.to_owned(), cookie }, &[]).await?;
        self.holding().await
    }

    /// A duplicate of every set; the holder keeps its own.
    pub async fn fetch(&mut self) -> Result<Sets, HandoverError> {
        self.channel.send(&Message::Fetch, &[]).await?;
        self.channel.receive_sets().await
    }

    /// How much the holder holds.
    pub async fn count(&mut self) -> Result<Count, HandoverError> {
        self.channel.send(&Message::Count, &[]).await?;
        self.holding().await
    }

    async fn holding(&mut self) -> Result<Count, HandoverError> {
        match self.channel.due(STEP_LIMIT, "answer").await?.0 {
            Message::Holding { pods, descriptors } => Ok(Count { pods, descriptors }),
            other => Err(HandoverError::Unexpected { got: other.name(), wanted: "holding" }),
        }
    }
}
