//! Requests to the API server: one list page, one watch, discovery. Owns: the split of a watch's body into events and
//! what an answer's status means. Never: retries, or knows what an object says. Called by `feed`.
//!
//! kube's own `watcher` tells neither that a watch stands again after a failure, which is when the world stops being
//! stale, nor anything between two objects; so only its client and its types of the protocol are used.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIResourceList};
use kube::Client;
use kube::client::Body;
use kube::core::params::{ListParams, WatchParams};
use kube::core::{Request, Status, WatchEvent};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kinds::Watched;

/// Longest wait for the head of an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Longest silence of a watch. The server sends a bookmark about every minute; two lost ones mean that nobody is
/// there any more, which a broken network does not tell.
const SILENCE_MAX: Duration = Duration::from_secs(150);
/// Shortest and longest life of a watch, seconds: spread, so that the watches of many agents do not end together.
const WATCH_SECONDS: std::ops::Range<u32> = 200..290;
/// Objects of one page.
pub(super) const PAGE: u32 = 500;
/// Largest event of a watch, bytes: etcd takes no object above 1.5 MiB, JSON may be somewhat longer.
const EVENT_MAX_BYTES: usize = 8 << 20;
/// Largest page, bytes.
const PAGE_MAX_BYTES: usize = 512 << 20;
/// Largest refusal that is read, bytes.
const REFUSAL_MAX_BYTES: usize = 64 << 10;

/// Why a request has no result.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum WireError {
    /// 401 or 403.
    #[error("{0}")]
    Denied(String),
    #[error("no such resource")]
    NotFound,
    /// 410: what was asked for is too old to be known.
    #[error("the version asked for is gone")]
    Gone,
    /// 400 or 422: the server does not know what was asked.
    #[error("{0}")]
    Invalid(String),
    /// 500: the server cannot do this, now or ever; it does not say which.
    #[error("{0}")]
    Incapable(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Unreachable(String),
}

/// One page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    #[serde(default)]
    metadata: PageMeta,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) items: Vec<Value>,
}

/// Go writes an empty list as null.
fn nullable<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Value>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    more: String,
}

impl Page {
    pub(super) fn version(&self) -> &str {
        &self.metadata.resource_version
    }

    /// Token of the next page.
    pub(super) fn more(&self) -> Option<&str> {
        Some(self.metadata.more.as_str()).filter(|more| !more.is_empty())
    }
}

/// A page of at most `size` objects, from `token` on.
pub(super) async fn page(
    client: &Client,
    watched: &Watched,
    version: &str,
    size: u32,
    token: Option<&str>,
) -> Result<Page, WireError> {
    let params = ListParams {
        field_selector: watched.field_selector(),
        limit: Some(size),
        continue_token: token.map(str::to_owned),
        ..ListParams::default()
    };
    let request = Request::new(watched.path(version)).list(&params).map_err(|error| refused(&error))?;
    let body = open(client, request).await?;
    read(body).await
}

/// The version under which the server has this kind; none if it does not have it.
pub(super) async fn discover(client: &Client, watched: &Watched) -> Result<Option<&'static str>, WireError> {
    let path = format!("/apis/{}", watched.group);
    let group: APIGroup = match get(client, &path).await {
        Err(WireError::NotFound) => return Ok(None),
        other => other?,
    };
    for version in watched.versions {
        if !group.versions.iter().any(|served| served.version == **version) {
            continue;
        }
        let list: APIResourceList = match get(client, &format!("{path}/{version}")).await {
            Err(WireError::NotFound) => continue,
            other => other?,
        };
        if list.resources.iter().any(|resource| resource.name == watched.plural) {
            return Ok(Some(version));
        }
    }
    Ok(None)
}

async fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, WireError> {
    let request = http::Request::get(path).body(Vec::new()).map_err(|error| refused(&error))?;
    read(open(client, request).await?).await
}

async fn read<T: DeserializeOwned>(body: Body) -> Result<T, WireError> {
    let body = Limited::new(body, PAGE_MAX_BYTES).collect();
    let body = tokio::time::timeout(SILENCE_MAX, body).await.map_err(|_elapsed| silent(SILENCE_MAX))?;
    let body = body.map_err(|error| WireError::Unreachable(error.to_string()))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| refused(&error))
}

/// A watch that stands.
pub(super) struct Watch {
    body: Body,
    /// What has been received of events that are not complete.
    rest: BytesMut,
    /// Bytes of `rest` that hold no end of line.
    searched: usize,
}

/// Begins a watch after `since`; with `initial`, one that lists everything first.
pub(super) async fn watch(
    client: &Client,
    watched: &Watched,
    version: &str,
    since: &str,
    initial: bool,
) -> Result<Watch, WireError> {
    let params = WatchParams {
        field_selector: watched.field_selector(),
        timeout: Some(fastrand::u32(WATCH_SECONDS)),
        bookmarks: true,
        send_initial_events: initial,
        ..WatchParams::default()
    };
    let request = Request::new(watched.path(version)).watch(&params, since);
    let body = open(client, request.map_err(|error| refused(&error))?).await?;
    Ok(Watch { body, rest: BytesMut::new(), searched: 0 })
}

impl Watch {
    /// The next event; none when the server has ended the watch, as it does every few minutes.
    pub(super) async fn next(&mut self) -> Result<Option<WatchEvent<Value>>, WireError> {
        loop {
            if let Some(line) = self.line() {
                let event = serde_json::from_slice(&line).map_err(|error| refused(&error))?;
                return match event {
                    WatchEvent::Error(status) => Err(meaning(status.code, &status.message)),
                    event => Ok(Some(event)),
                };
            }
            if self.rest.len() > EVENT_MAX_BYTES {
                let problem = format!("an event is longer than {EVENT_MAX_BYTES} bytes");
                return Err(WireError::Refused(problem));
            }
            let frame = tokio::time::timeout(SILENCE_MAX, self.body.frame()).await;
            match frame.map_err(|_elapsed| silent(SILENCE_MAX))? {
                None => return Ok(None),
                Some(Err(error)) => return Err(WireError::Unreachable(error.to_string())),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.rest.extend_from_slice(data);
                    }
                }
            }
        }
    }

    fn line(&mut self) -> Option<BytesMut> {
        loop {
            let found = self.rest.iter().skip(self.searched).position(|byte| *byte == b'\n');
            let Some(length) = found.map(|at| self.searched + at) else {
                self.searched = self.rest.len();
                return None;
            };
            self.searched = 0;
            let line = self.rest.split_to(length);
            self.rest.advance(1);
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Some(line);
            }
        }
    }
}

/// Sends a request; the body of an answer that is no refusal.
async fn open(client: &Client, request: http::Request<Vec<u8>>) -> Result<Body, WireError> {
    let answer = tokio::time::timeout(ANSWER_MAX, client.send(request.map(Body::from))).await;
    let answer = answer
        .map_err(|_elapsed| silent(ANSWER_MAX))?
        .map_err(|error| WireError::Unreachable(causes(&error)))?;
    let code = answer.status();
    if code.is_success() {
        return Ok(answer.into_body());
    }
    let text = Limited::new(answer.into_body(), REFUSAL_MAX_BYTES).collect();
    let text = tokio::time::timeout(ANSWER_MAX, text).await.ok().and_then(Result::ok);
    let status = text.and_then(|text| serde_json::from_slice::<Status>(&text.to_bytes()).ok());
    let message = status.map(|status| status.message).filter(|message| !message.is_empty());
    Err(meaning(code.as_u16(), &message.unwrap_or_else(|| code.to_string())))
}

fn meaning(code: u16, message: &str) -> WireError {
    let message = message.to_owned();
    match code {
        401 | 403 => WireError::Denied(message),
        404 => WireError::NotFound,
        410 => WireError::Gone,
        400 | 422 => WireError::Invalid(message),
        // Not its own fault: it starts, ends, is overloaded, or stands behind a proxy that does not reach it.
        500 => WireError::Incapable(format!("500: {message}")),
        429 | 501..=599 => WireError::Unreachable(format!("{code}: {message}")),
        _ => WireError::Refused(format!("{code}: {message}")),
    }
}

fn silent(after: Duration) -> WireError {
    WireError::Unreachable(format!("no answer for {} s", after.as_secs()))
}

fn refused(error: &dyn std::error::Error) -> WireError {
    WireError::Refused(causes(error))
}

/// An error with what is behind it: the outer ones say little («client error»).
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(cause) = inner {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        inner = cause.source();
    }
    text
}
