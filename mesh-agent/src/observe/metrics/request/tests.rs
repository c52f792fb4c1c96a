use super::*;
use crate::observe::Path;
use crate::observe::fixtures::meta;

fn outcome(status: u16) -> Outcome {
    Outcome { grpc: false, status, grpc_status: None, flag: "-" }
}

const EFFORT: Effort = Effort { duration: Duration::from_millis(7), request_bytes: 50, response_bytes: 2000 };

/// Requests of one pair are told by status; the histograms hold each exactly once.
#[test]
fn requests_are_counted_by_their_outcome() {
    let metrics = Metrics::new();
    let handles = RequestHandles::new(&metrics, &meta(Direction::Outbound, Path::Hbone));
    for status in [200, 200, 503] {
        handles.count(outcome(status), &EFFORT);
    }
    handles.count(Outcome { grpc: true, status: 200, grpc_status: Some(14), flag: "UF" }, &EFFORT);
    assert_eq!((metrics.requests_with_status(200), metrics.requests_with_status(503)), (3, 1));
    let text = metrics.encode().unwrap();
    let line = |name: &str, parts: &[&str]| {
        let found =
            text.lines().find(|line| line.starts_with(name) && parts.iter().all(|part| line.contains(part)));
        found.map(|line| line.rsplit(' ').next().unwrap_or_default().to_owned())
    };
    let plain = [r#"response_code="200""#, r#"request_protocol="http""#];
    assert_eq!(line("istio_requests_total{", &plain).as_deref(), Some("2"), "{text}");
    let grpc = [r#"grpc_response_status="14""#, r#"request_protocol="grpc""#, r#"response_flags="UF""#];
    assert_eq!(line("istio_requests_total{", &grpc).as_deref(), Some("1"), "{text}");
    let bucket = |le: &str| [plain[0], plain[1], le].map(str::to_owned);
    for (le, count) in [(r#"le="5.0""#, "0"), (r#"le="10.0""#, "2"), (r#"le="+Inf""#, "2")] {
        let parts = bucket(le);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        assert_eq!(
            line("istio_request_duration_milliseconds_bucket{", &parts).as_deref(),
            Some(count),
            "{le}"
        );
    }
    assert_eq!(line("istio_response_bytes_sum{", &plain).as_deref(), Some("4000.0"), "{text}");
}

/// A pair on one node is told by both reporters, and a series beyond the cap goes to the overflow.
#[test]
fn series_have_a_cap() {
    let metrics = Metrics::with_label_sets_max(3);
    let handles = RequestHandles::new(&metrics, &meta(Direction::Local, Path::Local));
    for status in [200, 404, 500, 503] {
        handles.count(outcome(status), &EFFORT);
    }
    assert_eq!(metrics.requests_with_status(503), 2);
    assert!(metrics.limit_count(Limit::MetricSeries) > 0);
    assert!(metrics.encode().unwrap().contains(r#"source_workload="overflow""#));
}
