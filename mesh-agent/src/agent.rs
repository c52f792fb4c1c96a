//! The composition root of `mesh-agent run`: builds every part, connects them, runs the control loop and ends
//! them in order. Owns: the lifetime of every task and thread of the agent. Never: decides anything itself.
//! Called by `main`.

mod judge;
mod pods;
mod view;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::capture::{Capture, CaptureConfig};
use crate::config::Settings;
use crate::identity::{Ca, CertManager, CertSettings, DirCa, SystemClock};
use crate::model::Reason;
use crate::observe::{AccessLog, ConnectionTable, Metrics};
use crate::proxy::limits::{Budget, MAX_CONNECTIONS_PER_NODE};
use crate::proxy::worker::{Command, Shared, WorkerHandle};
use crate::source::dir::DirSource;
use crate::world::WorldStore;

/// How often the kernel is told that the agent lives, and what could not be done is tried again.
const TICK: Duration = Duration::from_millis(500);
/// A bypassed flow that was opened by a verdict read just before it was withdrawn shows up this much later.
const RECHECK: Duration = Duration::from_millis(50);
/// How often the drain looks whether the last connection has gone.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// How long connections that were cut at the drain's deadline may take to say so.
const CUT_GRACE: Duration = Duration::from_millis(500);
