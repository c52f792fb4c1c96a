//! Sets up the process's log: one line per event, text or JSON, on standard error.
//! Owns: format, level filter and the writer thread. Never: decides what is worth a line.
//! Called by `agent::run` once, and by tests.

use std::io::{self, IsTerminal, Write};
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that may wait for the terminal or pipe. Beyond it lines are dropped and counted: a log that nobody
/// reads must not stop traffic.
pub const LOG_QUEUE_LINES_MAX: usize = 8192;

/// The API client's own target.
const CLIENT: &str = "kube_client";

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("log-level: `{text}` is no filter ({source}); use e.g. `info` or `info,access=off`")]
    Filter { text: String, source: tracing_subscriber::filter::ParseError },
    #[error("log: a second set-up in one process ({0})")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
    #[error("log: no thread for the writer ({0}); raise the process's limit of threads")]
    Thread(#[from] io::Error),
}

/// Checks a filter without using it.
pub fn check_level(text: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::builder().parse(text).map_err(|source| LoggingError::Filter { text: text.to_owned(), source })
}

/// Keeps the log alive; dropping it writes what waits.
#[derive(Debug)]
pub struct LogGuard {
    queue: Option<SyncSender<Message>>,
    writer: Option<JoinHandle<()>>,
    dropped: Arc<AtomicU64>,
}

enum Message {
    Line(Vec<u8>),
    End,
}

impl LogGuard {
    /// Lines lost because the queue was full.
    pub fn dropped_lines(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            // Fails only when the writer is gone, and then nothing waits.
            let _gone = queue.send(Message::End);
        }
        if let Some(writer) = self.writer.take() {
            let _panicked = writer.join();
        }
    }
}

/// Starts logging for the whole process.
pub fn init(format: LogFormat, level: &str) -> Result<LogGuard, LoggingError> {
    let mut filter = check_level(level)?;
    if !level.contains(CLIENT) {
        // It logs each error that it returns; whoever called says what the error means, or that it means nothing.
        filter = filter.add_directive(
            Directive::from_str(&format!("{CLIENT}=off"))
                .map_err(|source| LoggingError::Filter { text: CLIENT.to_owned(), source })?,
        );
    }
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (writer, guard) = start_writer(io::stderr())?;
    match format {
        LogFormat::Text => text(filter, colour, writer).try_init()?,
        LogFormat::Json => json(filter, writer).try_init()?,
    }
    Ok(guard)
}

/// Text lines: time, level, target, message, fields.
pub fn text<W>(filter: EnvFilter, colour: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(writer).finish()
}

/// One JSON object per line, its fields at the top level.
pub fn json<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_env_filter(filter)
        .with_writer(writer)
        .finish()
}

/// Hands lines to a thread that writes them to `out`.
pub fn start_writer(out: impl Write + Send + 'static) -> io::Result<(LogWriter, LogGuard)> {
    let (queue, lines) = sync_channel(LOG_QUEUE_LINES_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    let writer = std::thread::Builder::new().name("log".to_owned()).spawn(move || write_all(&lines, out))?;
    let guard = LogGuard { queue: Some(queue.clone()), writer: Some(writer), dropped: Arc::clone(&dropped) };
    Ok((LogWriter { queue, dropped }, guard))
}

fn write_all(lines: &Receiver<Message>, mut out: impl Write) {
    // An error means that nobody reads any more; there is no one left to tell.
    while let Ok(Message::Line(line)) = lines.recv() {
        let _unread = out.write_all(&line);
    }
    let _unread = out.flush();
}

/// Queues lines; never blocks.
#[derive(Clone, Debug)]
pub struct LogWriter {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Message::Line(line.to_vec())) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for LogWriter {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests;
