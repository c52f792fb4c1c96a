//! Faults on purpose, and the time a request may take.
use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_tests::guide;

use crate::routing::myapp;

/// The guide's faults: half of the requests wait 5 s, a tenth ends with 500, independently of each other.
#[test]
fn half_wait_and_a_tenth_fails() -> Result<()> {
    const CALLS: usize = 200;
    let (shop, service) = myapp("faults")?;
    shop.apply("virtualservice", guide::VIRTUALSERVICE_FAULT_INJECTION)?;
    let mut calls = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let waiting: Vec<_> = (0..CALLS)
            .map(|_| {
                scope.spawn(|| -> Result<(u16, Duration)> {
                    let mut session = shop.session(&service)?.patient(Duration::from_secs(30))?;
                    let since = Instant::now();
                    Ok((session.get("/")?.status, since.elapsed()))
                })
            })
            .collect();
        for call in waiting {
            calls.push(call.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))??);
        }
        Ok(())
    })?;
    let slow = calls.iter().filter(|(_, took)| *took >= Duration::from_secs(5)).count();
    let failed = calls.iter().filter(|(status, _)| *status == 500).count();
    let well = calls.iter().filter(|(status, _)| *status == 200).count();
    assert_eq!(failed + well, CALLS);
    // Five standard deviations: sqrt(200 * 0.5 * 0.5) = 7.1, sqrt(200 * 0.1 * 0.9) = 4.2.
    assert!(slow.abs_diff(100) <= 35, "{slow} of {CALLS} waited");
    assert!((2..=41).contains(&failed), "{failed} of {CALLS} failed");
    let reached: u64 = shop.servers.iter().map(|server| server.app.stats().requests()).sum();
    assert_eq!(reached, well as u64, "an aborted request reaches nobody");
    Ok(())
}

/// The guide's timeout: an answer that takes longer than 10 s is a 504 then; what is in time is untouched.
#[test]
fn an_answer_has_ten_seconds() -> Result<()> {
    let (shop, service) = myapp("timeout")?;
    shop.apply("virtualservice", guide::VIRTUALSERVICE_TIMEOUT_POLICY)?;
    std::thread::scope(|scope| -> Result<()> {
        let slow = scope.spawn(|| -> Result<()> {
            let since = Instant::now();
            let mut session = shop.session(&service)?.patient(Duration::from_secs(20))?;
            let reply = session.get("/?delay=14000")?;
            assert_eq!((reply.status, reply.text().as_str()), (504, "upstream request timeout"));
            let took = since.elapsed();
            assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(13), "{took:?}");
            // The connection is as good as before.
            assert_eq!(session.get("/")?.status, 200);
            Ok(())
        });
        let mut session = shop.session(&service)?.patient(Duration::from_secs(20))?;
        assert_eq!(session.get("/?delay=6000")?.status, 200);
        slow.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))?
    })?;
    Ok(())
}
