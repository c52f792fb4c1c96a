//! The ends of HTTP connections: old clients, an agent that leaves, and what is told of requests.
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_tests::client::Ask;
use mesh_tests::eventually;

use crate::routing::myapp;
use crate::shop::SOON;

/// HTTP/1.0: one request without a Host, one answer, and the end.
#[test]
fn an_old_client_is_served() -> Result<()> {
    let (shop, service) = myapp("http/1.0")?;
    let mut stream = shop.connect(service.at(0))?;
    stream.write_all(b"GET /old HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    assert!(text.starts_with("HTTP/1.0 200") || text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(text.contains(r#""path":"/old""#) && !text.contains("transfer-encoding"), "{text}");
    Ok(())
}

/// Each request has its line in the access log and its place in the metrics, with who called whom and how it went.
#[test]
fn requests_are_told() -> Result<()> {
    let (shop, service) = myapp("told")?;
    let mut session = shop.session(&service)?;
    session.ask(&Ask::get("/told?status=404").headers(&[("x-request-id", "of-this-test")]))?;
    let agent = shop.agent("node-a")?;
    let parts =
        ["request complete", "of-this-test", "response_code=404", "method=\"GET\"", "/told?status=404"];
    eventually("the line to be written", SOON, || {
        Ok(agent.log().lines().any(|line| parts.iter().all(|part| line.contains(part))))
    })?;
    let labels = [
        ("reporter", "source"),
        ("source_workload", "client"),
        ("destination_service_name", "myapp"),
        ("response_code", "404"),
        ("request_protocol", "http"),
    ];
    for metric in
        ["istio_requests_total", "istio_request_duration_milliseconds_count", "istio_response_bytes_count"]
    {
        assert!((agent.metric(metric, &labels)? - 1.0).abs() < f64::EPSILON, "{metric}");
    }
    let connections = agent.ask(&["connections"])?;
    assert_eq!(
        connections.as_array().map(Vec::len),
        Some(1),
        "one entry for the client's connection: {connections}"
    );
    Ok(())
}

/// An agent that leaves answers what was asked, closes what is idle, and does not wait for its own idle connections.
#[test]
fn an_agent_that_leaves_finishes_requests() -> Result<()> {
    let (mut shop, service) = myapp("leaving")?;
    let mut idle = shop.session(&service)?;
    assert_eq!(idle.get("/")?.status, 200);
    let place = shop.agents.iter().position(|agent| agent.node() == "node-a").unwrap_or_default();
    let agent = shop.agents.swap_remove(place);
    std::thread::scope(|scope| -> Result<()> {
        let slow = scope.spawn(|| shop.session(&service)?.get("/?delay=2000").map(|reply| reply.status));
        std::thread::sleep(Duration::from_millis(500));
        let since = Instant::now();
        assert!(agent.stop()?.success());
        let took = since.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_eq!(slow.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))??, 200);
        Ok(())
    })?;
    let mut rest = Vec::new();
    let ended = idle.into_stream().read_to_end(&mut rest);
    assert!(ended.is_ok() && rest.is_empty(), "closed in order: {ended:?}");
    Ok(())
}
