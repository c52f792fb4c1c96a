use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::*;

/// A pipe that nobody reads until it is told.
struct Stalled {
    go: Receiver<()>,
    written: Arc<AtomicU64>,
}

impl Write for Stalled {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.written.load(Ordering::SeqCst) == 0 {
            let _gone = self.go.recv();
        }
        self.written.fetch_add(1, Ordering::SeqCst);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_log_that_nobody_reads_drops_lines_and_never_blocks() {
    let (resume, go) = channel();
    let written = Arc::new(AtomicU64::new(0));
    let (mut writer, guard) = start_writer(Stalled { go, written: Arc::clone(&written) }).unwrap();
    let lines = LOG_QUEUE_LINES_MAX as u64 + 1000;
    let begun = Instant::now();
    for _ in 0..lines {
        writer.write_all(b"line\n").unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    let dropped = guard.dropped_lines().load(Ordering::Relaxed);
    assert!((999..=1000).contains(&dropped), "{dropped}");
    resume.send(()).unwrap();
    drop(guard);
    assert_eq!(written.load(Ordering::SeqCst), lines - dropped, "what was queued is written at the end");
}

#[test]
fn a_bad_filter_is_named() {
    for text in ["info,=", "mesh_agent=loud", "a=b=c"] {
        let error = check_level(text).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains("use e.g."), "{error}");
    }
    assert!(check_level("info,access=off").is_ok());
}
