use super::*;
use crate::identity::DirCa;
use crate::identity::testing::{Authority, ManualClock, identity, manager};

const HOUR: Duration = Duration::from_secs(3600);

/// Waits until `done`; the test harness's own limit ends a wait that never does.
async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn concurrent_fetches_share_one_request_and_later_ones_the_cache() {
    let authority = Authority::new();
    let web = identity("web");
    let (a, b, c) = tokio::join!(
        authority.manager.fetch(&web),
        authority.manager.fetch(&web),
        authority.manager.fetch(&web)
    );
    let a = a.unwrap();
    assert!(Arc::ptr_eq(&a, &b.unwrap()) && Arc::ptr_eq(&a, &c.unwrap()));
    assert!(Arc::ptr_eq(&a, &authority.manager.current(&web).unwrap()));
    assert!(authority.manager.current(&identity("other")).is_none());
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_stop_the_request() {
    let authority = Authority::new();
    let web = identity("web");
    {
        let mut fetch = Box::pin(authority.manager.fetch(&web));
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(fetch.as_mut().poll(cx).is_pending()));
        assert!(polled.await);
    }
    until(|| authority.manager.current(&web).is_some()).await;
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_life_by_the_clock_passed_in() {
    let authority = Authority::new();
    let web = identity("web");
    let first = authority.cert("web").await;
    // Of what it had left when it was issued: it is backdated.
    let to_half = first.not_after.duration_since(authority.clock.now()).unwrap() / 2;
    authority.clock.advance(to_half - Duration::from_secs(1));
    assert_eq!(authority.manager.renew_due(), 0);
    authority.clock.advance(Duration::from_secs(1));
    assert_eq!(authority.manager.renew_due(), 1);
    assert_eq!(authority.manager.renew_due(), 0, "one request at a time");
    until(|| authority.manager.current(&web).unwrap().serial != first.serial).await;
    assert!(authority.manager.current(&web).unwrap().not_after > first.not_after);
}

#[tokio::test]
async fn run_renews_and_ends_when_cancelled() {
    let authority = Authority::new();
    let first = authority.cert("web").await;
    authority.clock.advance(13 * HOUR);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let run = tokio::spawn(Arc::clone(&authority.manager).run(async { drop(stopped.await) }));
    until(|| authority.manager.current(&identity("web")).unwrap().serial != first.serial).await;
    stop.send(()).unwrap();
    run.await.unwrap();
}

#[tokio::test]
async fn an_expired_certificate_is_not_handed_out() {
    let authority = Authority::new();
    let first = authority.cert("web").await;
    authority.clock.advance(25 * HOUR);
    assert!(authority.manager.current(&identity("web")).is_none());
    assert_eq!(authority.manager.list()[0].state, CertState::Expired);
    assert_ne!(authority.cert("web").await.serial, first.serial);
}

#[tokio::test]
async fn failures_back_off_and_the_old_certificate_stays_until_it_ends() {
    let authority = Authority::new();
    let web = identity("web");
    let first = authority.cert("web").await;
    let key = authority.dir.path().join("ca-cert.pem");
    let good = std::fs::read(&key).unwrap();
    std::fs::write(&key, "broken").unwrap();
    authority.clock.advance(13 * HOUR);
    assert_eq!(authority.manager.renew_due(), 1);
    until(|| authority.manager.list()[0].failures == 1).await;
    assert_eq!(authority.manager.current(&web).unwrap().serial, first.serial);
    assert_eq!(authority.manager.renew_due(), 0, "not before the retry is due");

    // A new identity fails at once, and again without asking the CA until the retry is due.
    let other = identity("other");
    assert!(matches!(authority.manager.fetch(&other).await, Err(CertError::Pem { .. })));
    assert!(matches!(authority.manager.fetch(&other).await, Err(CertError::Backoff { .. })));
    std::fs::write(&key, good).unwrap();
    authority.clock.advance(Duration::from_secs(2));
    assert!(authority.manager.fetch(&other).await.is_ok());
    assert_eq!(authority.manager.renew_due(), 1);
    until(|| authority.manager.list().iter().all(|row| row.failures == 0)).await;
    assert_ne!(authority.manager.current(&web).unwrap().serial, first.serial);
}

#[test]
fn waits_double_up_to_the_cap_and_jitter_only_shortens() {
    assert_eq!(retry_wait(1, 0.0), Duration::from_secs(1));
    assert_eq!(retry_wait(4, 0.0), Duration::from_secs(8));
    assert_eq!(retry_wait(60, 0.0), RETRY_MAX);
    assert_eq!(retry_wait(u32::MAX, 0.0), RETRY_MAX);
    assert!(retry_wait(4, 0.99) >= Duration::from_secs(6));
}

#[tokio::test]
async fn jitter_moves_a_renewal_forward_only() {
    let authority = Authority::new();
    let cert = authority.cert("web").await;
    let issued = authority.clock.now();
    let half = renewal_time(&cert, issued, 0.0, 0.9);
    let early = renewal_time(&cert, issued, 0.1, 0.999);
    let half_life = half.duration_since(issued).unwrap();
    assert!(early < half && early > half - half_life.mul_f64(0.1));
}

/// Backdating is longer than the life of such a certificate; its renewal is due in the future all the same.
#[tokio::test]
async fn a_certificate_of_seconds_is_not_due_as_soon_as_it_is_issued() {
    let authority = Authority::new();
    let settings = CertSettings { lifetime: Duration::from_secs(4), jitter: 0.0, ..CertSettings::default() };
    let ca = Ca::Dir(Arc::new(DirCa::open(authority.dir.path()).unwrap()));
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&authority.clock);
    let manager = CertManager::new(ca, clock, settings);
    manager.fetch(&identity("web")).await.unwrap();
    assert_eq!(manager.renew_due(), 0);
    authority.clock.advance(Duration::from_millis(2100));
    assert_eq!(manager.renew_due(), 1);
}

#[tokio::test]
async fn retain_forgets_and_a_late_answer_does_not_bring_it_back() {
    let authority = Authority::new();
    authority.cert("web").await;
    authority.cert("gone").await;
    let fetching = tokio::spawn({
        let manager = Arc::clone(&authority.manager);
        async move { manager.fetch(&identity("late")).await }
    });
    until(|| authority.manager.list().len() == 3).await;
    authority.manager.retain(&HashSet::from([identity("web")]));
    assert!(fetching.await.unwrap().is_ok(), "who waits still gets its answer");
    let left: Vec<_> = authority.manager.list().into_iter().map(|row| row.identity).collect();
    assert_eq!(left, [identity("web")]);
}

#[tokio::test]
async fn the_list_tells_state_times_and_errors() {
    let authority = Authority::new();
    let cert = authority.cert("web").await;
    let rows = authority.manager.list();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].state, rows[0].serial.as_ref()), (CertState::Valid, Some(&cert.serial)));
    assert_eq!(rows[0].not_after, Some(cert.not_after));
    assert!(rows[0].next_request.unwrap() < cert.not_after);
    assert!(serde_json::to_string(&rows).unwrap().contains("spiffe://cluster.local/ns/test/sa/web"));
}

#[tokio::test]
async fn managers_that_share_a_fresh_folder_trust_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let make = || {
        let (path, clock) = (dir.path().join("ca"), Arc::clone(&clock));
        tokio::task::spawn_blocking(move || manager(&path, &clock))
    };
    let (a, b) = tokio::join!(make(), make());
    let (a, b) = (a.unwrap(), b.unwrap());
    let (alpha, beta) = (identity("a"), identity("b"));
    let (a, b) = tokio::join!(a.fetch(&alpha), b.fetch(&beta));
    assert_eq!(a.unwrap().roots(), b.unwrap().roots());
}

#[tokio::test]
async fn a_second_root_reaches_held_certificates_without_a_renewal() {
    let authority = Authority::new();
    let first = authority.cert("web").await;
    let next = tempfile::tempdir().unwrap();
    DirCa::open(next.path()).unwrap();
    let bundle = authority.dir.path().join("root-cert.pem");
    let mut text = std::fs::read_to_string(&bundle).unwrap();
    text.push_str(&std::fs::read_to_string(next.path().join("root-cert.pem")).unwrap());
    std::fs::write(&bundle, text).unwrap();
    authority.manager.refresh_roots().await;
    let second = authority.manager.current(&identity("web")).unwrap();
    assert_eq!((second.roots().len(), &second.serial), (2, &first.serial));

    std::fs::write(&bundle, "broken").unwrap();
    authority.manager.refresh_roots().await;
    assert_eq!(authority.manager.current(&identity("web")).unwrap().roots().len(), 2);
}

#[tokio::test]
async fn a_bundle_with_too_many_roots_is_counted_and_the_last_one_stays() {
    let authority = Authority::new();
    authority.cert("web").await;
    let bundle = authority.dir.path().join("root-cert.pem");
    let one = std::fs::read_to_string(&bundle).unwrap();
    std::fs::write(&bundle, one.repeat(crate::identity::BUNDLE_MAX_CERTS + 1)).unwrap();
    authority.manager.refresh_roots().await;
    assert_eq!(authority.manager.shared.settings.hits.count(Limit::Roots), 1);
    assert_eq!(authority.manager.current(&identity("web")).unwrap().roots().len(), 1);
}

#[tokio::test]
async fn the_number_of_identities_is_limited() {
    let authority = Authority::new();
    {
        let mut state = authority.manager.shared.state.lock();
        for index in 0..IDENTITIES_MAX {
            let _entry = state.entry(&identity(&format!("sa-{index}")));
        }
    }
    let refused = authority.manager.fetch(&identity("one-more")).await;
    assert!(matches!(refused, Err(CertError::TooMany { limit: IDENTITIES_MAX, .. })));
    assert_eq!(authority.manager.shared.settings.hits.count(Limit::Identities), 1);
}
