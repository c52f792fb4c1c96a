//! `mesh-agent admin-relay`: standard input and output are a connection to the admin socket. The CLI runs it inside an
//! agent's container, which has no shell and no other program. Called by `main`, without a runtime: a blocked read of
//! standard input must not keep the process.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use super::Exit;
use crate::admin::Problem;

/// Bytes per read.
const CHUNK: usize = 32 * 1024;

/// Relays until the agent has answered and closed, or the caller is gone.
pub fn run(socket: &Path) -> Exit {
    match relay(socket) {
        Ok(()) => Exit::Good,
        // The caller has gone; nobody is left to be told.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Good,
        Err(error) => {
            eprintln!("mesh-agent: admin-relay: {error}");
            Exit::Unreachable
        }
    }
}

fn relay(socket: &Path) -> io::Result<()> {
    // Not the buffered standard streams: an answer without a line's end would wait in them.
    let (input, output) = (io::stdin(), io::stdout());
    let mut input = File::from(input.as_fd().try_clone_to_owned()?);
    let mut output = File::from(output.as_fd().try_clone_to_owned()?);
    let mut answers = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) => return refuse(&mut output, socket, &error),
    };
    let mut questions = answers.try_clone()?;
    thread::spawn(move || {
        // Whatever ends it, the agent sees the end of the questions and closes.
        let _ended = copy(&mut input, &mut questions);
        let _closed = questions.shutdown(Shutdown::Write);
    });
    copy(&mut answers, &mut output)
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The caller speaks HTTP: it is told as HTTP tells it.
fn refuse(output: &mut impl Write, socket: &Path, error: &io::Error) -> io::Result<()> {
    let problem = Problem { error: format!("nobody answers on {}: {error}", socket.display()) };
    let body = serde_json::to_string(&problem)?;
    let length = body.len();
    write!(
        output,
        "HTTP/1.1 502 Bad Gateway\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )?;
    output.flush()
}
