//! The successor's end of a planned restart. Owns: the conversation with the running agent. Never: accepts.
//! Called by the agent's composition root at start.

use std::path::Path;

use super::channel::Channel;
use super::message::{Message, Service};
use super::{HandoverError, STEP_LIMIT, Sets, socket};

/// The running agent, from its successor's side. Dropping it before [`Predecessor::ready`] changes nothing
/// for the running agent.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
}

impl Predecessor {
    /// Connects to the running agent; [`HandoverError::NobodyThere`] if none serves the path.
    pub async fn connect(path: &Path) -> Result<Self, HandoverError> {
        let mut channel = Channel::new(socket::connect(path).await?);
        channel.greet(Service::Handover).await?;
        Ok(Self { channel })
    }

    /// Takes a duplicate of every listener. Both agents may accept on them from here on.
    pub async fn take(&mut self) -> Result<Sets, HandoverError> {
        self.channel.send(&Message::Take, &[]).await?;
        self.channel.receive_sets().await
    }

    /// Call when this agent accepts on all it took. Returns the sets enrolled since [`Predecessor::take`]:
    /// accept on them too. Then the predecessor drains, and the handover socket's path is free to bind.
    /// After an error the predecessor may or may not drain: go on accepting, and bind the path if it is free.
    pub async fn ready(mut self) -> Result<Sets, HandoverError> {
        self.channel.send(&Message::Ready, &[]).await?;
        let late = self.channel.receive_sets().await?;
        match self.channel.due(STEP_LIMIT, "done").await {
            Ok((Message::Done, _)) => Ok(late),
            Ok((other, _)) => Err(HandoverError::Unexpected { got: other.name(), wanted: "done" }),
            // It died after it gave everything: nothing is missing, and nobody drains.
            Err(HandoverError::Closed { .. }) => Ok(late),
            Err(error) => Err(error),
        }
    }
}
