//! The running agent's end of a planned restart. Owns: the handover socket. Never: stops accepting or undoes
//! anything itself; the event tells the caller to. Called by the agent's composition root.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;

use super::channel::Channel;
use super::message::{Message, Service};
use super::socket::{Bound, check_peer};
use super::{ACCEPT_PAUSE, HandoverError, ListenerSet, MAX_SETS, READY_LIMIT, Refusal, STEP_LIMIT};

/// What a successor did.
#[derive(Debug)]
pub enum Event {
    /// It accepts connections on these sets (pod, namespace cookie): stop accepting on them, drain, exit
    /// without undoing capture. A pod that is not named was enrolled in the last moment and is still ours.
    SuccessorReady { handed: HashSet<(String, u64)> },
    /// It failed before it was ready. Nothing changed: call [`HandoverServer::serve`] again.
    SuccessorFailed { error: HandoverError },
}

/// Gives the listeners to a successor, one successor at a time.
#[derive(Debug)]
pub struct HandoverServer {
    /// None once the sets are handed over: the path belongs to the successor.
    socket: Option<Bound>,
    ready_limit: Duration,
}

impl HandoverServer {
    /// Makes the socket (mode 0600). Needs a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, HandoverError> {
        Ok(Self { socket: Some(Bound::bind(path)?), ready_limit: READY_LIMIT })
    }

    /// Waits for a successor and serves it until it is ready or fails. `provider` is asked for the current
    /// sets when a successor asks for them and again when it is ready, for those enrolled in between.
    /// Dropping the future ends a conversation in progress, as if it had failed.
    pub async fn serve<L: Borrow<ListenerSet>>(
        &mut self,
        mut provider: impl FnMut() -> Vec<L>,
    ) -> Result<Event, HandoverError> {
        let socket = self.socket.as_ref().ok_or(HandoverError::Finished)?;
        let mut channel = match check_and_open(socket.accept().await?) {
            Ok(channel) => channel,
            Err(error) => return Ok(Event::SuccessorFailed { error }),
        };
        let outcome = tokio::select! {
            // In this order: a successor that died is noticed before its replacement is told to wait for it.
            biased;
            outcome = converse(&mut channel, self.ready_limit, &mut provider) => outcome,
            never = refuse_others(socket) => match never {},
        };
        match outcome {
            Ok(handed) => {
                // The file goes before the last word, so that the successor can bind the path at once.
                self.socket = None;
                if let Err(error) = channel.send(&Message::Done, &[]).await {
                    tracing::warn!(%error, "the successor left right after it was ready");
                }
                Ok(Event::SuccessorReady { handed })
            }
            Err(error) => {
                if !matches!(error, HandoverError::Closed { .. } | HandoverError::Version { .. }) {
                    channel.refuse(Refusal::Protocol { error: error.to_string() }).await;
                }
                Ok(Event::SuccessorFailed { error })
            }
        }
    }
}

fn check_and_open(stream: UnixStream) -> Result<Channel, HandoverError> {
    check_peer(&stream)?;
    Ok(Channel::new(stream))
}

/// The conversation up to the point of no return: the successor is ready and has every set.
async fn converse<L: Borrow<ListenerSet>>(
    channel: &mut Channel,
    ready_limit: Duration,
    provider: &mut impl FnMut() -> Vec<L>,
) -> Result<HashSet<(String, u64)>, HandoverError> {
    channel.welcome(Service::Handover).await?;
    match channel.due(STEP_LIMIT, "take").await?.0 {
        Message::Take => {}
        other => return Err(HandoverError::Unexpected { got: other.name(), wanted: "take" }),
    }
    let mut handed = HashSet::new();
    send_new(channel, &provider(), &mut handed).await?;
    match channel.due(ready_limit, "ready").await?.0 {
        Message::Ready => {}
        other => return Err(HandoverError::Unexpected { got: other.name(), wanted: "ready" }),
    }
    send_new(channel, &provider(), &mut handed).await?;
    Ok(handed)
}

/// Sends the sets that the successor does not have yet.
async fn send_new<L: Borrow<ListenerSet>>(
    channel: &mut Channel,
    sets: &[L],
    handed: &mut HashSet<(String, u64)>,
) -> Result<(), HandoverError> {
    if sets.len() > MAX_SETS {
        let remedy = "restart without a handover";
        return Err(HandoverError::Limit { what: "sets", value: sets.len(), limit: MAX_SETS, remedy });
    }
    let mut sent = 0;
    for set in sets.iter().map(Borrow::borrow) {
        if handed.insert((set.pod.clone(), set.cookie)) {
            channel.send_set(set, Message::Set).await?;
            sent += 1;
        }
    }
    channel.send(&Message::End { sets: sent }, &[]).await
}

/// Answers everybody else while one successor is served: two agents must not both believe to have taken over.
async fn refuse_others(socket: &Bound) -> Infallible {
    loop {
        match socket.accept().await.and_then(check_and_open) {
            Ok(mut channel) => channel.refuse(Refusal::Busy).await,
            Err(error) => {
                tracing::warn!(%error, "cannot answer on the handover socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
