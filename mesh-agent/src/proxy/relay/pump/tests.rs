use super::*;

#[test]
fn small_chunks_that_wait_are_one_and_keep_their_order() {
    let mut backlog = FromTunnel::default();
    let mut expected = Vec::new();
    for index in 0..10_000_u32 {
        // Among the small ones a large one now and then, which stays as it is.
        let size = if index % 1000 == 500 { MERGE_BELOW_BYTES } else { 1 };
        let chunk = vec![index as u8; size];
        expected.extend_from_slice(&chunk);
        backlog.push(chunk.into());
    }
    assert!(backlog.chunks.len() <= 21, "{}", backlog.chunks.len());
    let mut seen = Vec::new();
    let mut step = 1;
    while !backlog.is_empty() {
        let front = backlog.chunks.front().map_or(&backlog.tail[..], |chunk| &chunk[..]);
        let count = front.len().min(step);
        seen.extend_from_slice(&front[..count]);
        backlog.advance(count);
        step = step % 700 + 13;
    }
    assert!(seen == expected);
    assert_eq!((backlog.chunks.capacity(), backlog.tail.capacity()), (0, 0));
}
