//! Ctrl-C and Enter. A signal does not kill the demo: it is noted, the story ends at its next step, and what was built
//! is taken down as at any other end.
use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::terminal::Terminal;

/// Notes waiting to be read; more signals than this say nothing new.
const NOTES: usize = 8;

pub(crate) struct Stop {
    asked: Arc<AtomicBool>,
    notes: Receiver<()>,
    note: SyncSender<()>,
}

impl Stop {
    /// Takes over SIGINT, SIGTERM and SIGHUP (the terminal was closed).
    pub(crate) fn install() -> Result<Self> {
        let (note, notes) = sync_channel(NOTES);
        let asked = Arc::new(AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot make a runtime for signals")?;
        let mut signals = runtime.block_on(async {
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            kinds.map(signal).into_iter().collect::<Result<Vec<_>, _>>().context("cannot wait for signals")
        })?;
        let (flag, sender) = (Arc::clone(&asked), note.clone());
        let watch = move || {
            runtime.block_on(async {
                let [interrupt, terminate, hangup] = signals.as_mut_slice() else { return };
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                    flag.store(true, Ordering::Release);
                    // A full queue has been told already.
                    sender.try_send(()).ok();
                }
            });
        };
        thread::Builder::new().name("signals".to_owned()).spawn(watch).context("cannot start a thread")?;
        Ok(Self { asked, notes, note })
    }

    pub(crate) fn asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Between two steps of the story.
    pub(crate) fn check(&self) -> Result<()> {
        if self.asked() {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Until Enter, the end of the input, or a signal.
    pub(crate) fn wait(&self, terminal: &Terminal) {
        terminal.title("\nPress Enter (or Ctrl-C) to take the shop down.");
        let sender = self.note.clone();
        let read = move || {
            let mut line = String::new();
            // An unreadable input is an ended one.
            std::io::stdin().lock().read_line(&mut line).ok();
            sender.try_send(()).ok();
        };
        let reader = thread::Builder::new().name("enter".to_owned()).spawn(read);
        if let Err(error) = reader {
            terminal.failure(&format!("cannot wait for Enter ({error}); Ctrl-C ends the demo"));
        }
        // The senders live as long as we do: this cannot fail.
        self.notes.recv().ok();
    }
}
