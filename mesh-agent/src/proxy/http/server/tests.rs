use std::future::poll_fn;

use super::*;

/// What a client that then says nothing more is ended for, and after how long.
async fn silence(quiet: &mut Quiet, busy: bool) -> (Reason, Duration) {
    let since = Instant::now();
    let reason = poll_fn(|cx| quiet.poll(cx, busy)).await;
    (reason, since.elapsed())
}

/// On tokio's own clock, which goes on by itself where nothing else happens.
#[tokio::test(start_paused = true)]
async fn a_client_between_requests_has_an_hour_and_in_a_head_ten_seconds() {
    let read: Rc<Cell<u64>> = Rc::default();
    let mut quiet = Quiet::new(Some(Rc::clone(&read)));
    let within = |(reason, took): (Reason, Duration), limit: Duration| {
        assert!((limit..limit + Duration::from_millis(5)).contains(&took), "{reason}: {took:?}");
        reason
    };
    assert_eq!(within(silence(&mut quiet, false).await, IDLE_TIMEOUT), Reason::IdleTimeout);
    // A head begins; more of it does not give it more time.
    let mut quiet = Quiet::new(Some(Rc::clone(&read)));
    read.set(1);
    assert!(poll_fn(|cx| Poll::Ready(quiet.poll(cx, false).is_pending())).await);
    read.set(2);
    assert_eq!(within(silence(&mut quiet, false).await, HEAD_TIMEOUT), Reason::RequestTimeout);
    // A request that is under way has its own times; the hour begins with its answer's end.
    let mut quiet = Quiet::new(Some(Rc::clone(&read)));
    let busy = timeout(IDLE_TIMEOUT * 3, silence(&mut quiet, true)).await;
    assert!(busy.is_err());
    assert_eq!(within(silence(&mut quiet, false).await, IDLE_TIMEOUT), Reason::IdleTimeout);
}
