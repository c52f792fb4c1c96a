//! The worker's pool of relay buffers.
//! Owns: a few buffers that keep their memory between uses. Never: crosses a thread.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

/// One read at most, bytes.
pub const RELAY_BUFFER_BYTES: usize = 64 * 1024;
/// Buffers that an idle worker keeps.
pub const POOLED_BUFFERS_MAX: usize = 8;
/// A read at least this large is handed on in its buffer; a smaller one is copied out, so that a few bytes
/// waiting in a stalled stream never hold a whole buffer.
const HAND_ON_BYTES: usize = RELAY_BUFFER_BYTES / 2;

thread_local! {
    static POOL: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer of [`RELAY_BUFFER_BYTES`].
pub(super) fn take() -> BytesMut {
    POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(RELAY_BUFFER_BYTES))
}

/// Gives a buffer back; its contents are forgotten.
pub(super) fn give(mut buffer: BytesMut) {
    buffer.clear();
    // Advancing moves the start of a buffer; `reserve` finds the memory before it again, as nobody shares it.
    buffer.reserve(RELAY_BUFFER_BYTES);
    POOL.with_borrow_mut(|pool| {
        if pool.len() < POOLED_BUFFERS_MAX {
            pool.push(buffer);
        }
    });
}

/// The buffer's contents as something that can be kept; the buffer goes back to the pool if it is not in them.
pub(super) fn into_bytes(buffer: BytesMut) -> Bytes {
    if buffer.len() >= HAND_ON_BYTES {
        return buffer.freeze();
    }
    let bytes = Bytes::copy_from_slice(&buffer);
    give(buffer);
    bytes
}
