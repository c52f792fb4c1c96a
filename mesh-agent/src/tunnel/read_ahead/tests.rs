use std::cell::Cell;
use std::rc::Rc;

use tokio::io::AsyncReadExt;

use super::*;

/// A socket that has `left` bytes to give, and counts how often it is asked.
struct Source {
    left: usize,
    asked: Rc<Cell<usize>>,
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.asked.set(self.asked.get() + 1);
        let count = self.left.min(buf.remaining());
        for _ in 0..count {
            let byte = (self.left % 251) as u8;
            buf.put_slice(&[byte]);
            self.left -= 1;
        }
        Poll::Ready(Ok(()))
    }
}

fn expected(all: usize) -> Vec<u8> {
    (1..=all).rev().map(|left| (left % 251) as u8).collect()
}

/// Reads everything as TLS does, a record at a time.
async fn read_all(reader: &mut ReadAhead<Source>, record: usize) -> Vec<u8> {
    let (mut all, mut block) = (Vec::new(), vec![0; record]);
    loop {
        match reader.read(&mut block).await.unwrap() {
            0 => return all,
            count => all.extend_from_slice(&block[..count]),
        }
    }
}

/// In bulk, eight records cost one read of the socket, and every byte arrives in its place.
#[tokio::test]
async fn bulk_is_read_ahead() {
    let asked = Rc::new(Cell::new(0));
    let mut reader = ReadAhead::new(Source { left: 1 << 20, asked: Rc::clone(&asked) });
    assert_eq!(read_all(&mut reader, 16 * 1024).await, expected(1 << 20));
    assert!(asked.get() <= 12, "{} reads for 64 records", asked.get());
    assert_eq!(reader.ahead.capacity(), 0, "an idle tunnel keeps no buffer");
}

/// Small reads go straight to the caller's buffer and no memory is taken.
#[tokio::test]
async fn little_is_not_read_ahead() {
    let asked = Rc::new(Cell::new(0));
    let mut reader = ReadAhead::new(Source { left: 10_000, asked: Rc::clone(&asked) });
    let mut block = [0; 4096];
    assert_eq!(reader.read(&mut block).await.unwrap(), 4096);
    assert_eq!(reader.ahead.capacity(), 0);
    assert_eq!(reader.inner.left, 10_000 - 4096, "nothing beyond what was asked for is taken");
}
