//! Metrics and logs after real connections.
use std::io::Write;
use std::net::Shutdown;

use anyhow::{Context, Result, ensure};
use mesh_tests::{Agent, AgentSpec, client, eventually};
use serde_json::Value;

use crate::shop::{PATIENCE, PORT, Shop};

const KINDS: [&str; 4] = [
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_sent_bytes_total",
    "istio_tcp_received_bytes_total",
];

type Labels<'a> = Vec<(&'a str, &'a str)>;

/// Waits until the four counters of a series have these values.
fn counted(agent: &Agent, labels: &Labels<'_>, wanted: [f64; 4]) -> Result<()> {
    let mut found = [0.0; 4];
    eventually("the figures", PATIENCE, || {
        for (value, name) in found.iter_mut().zip(KINDS) {
            *value = agent.metric(name, labels)?;
        }
        Ok(found == wanted)
    })
    .with_context(|| format!("{labels:?}: wanted {wanted:?}"))?;
    Ok(())
}

/// Connects, has `bytes` echoed, closes.
fn exchange(shop: &Shop, to: std::net::SocketAddr, bytes: usize) -> Result<()> {
    let mut stream = shop.client.connect(to)?;
    client::echo(&mut stream, &vec![7; bytes])?;
    stream.flush()?;
    stream.shutdown(Shutdown::Write)?;
    ensure!(client::read_all(&mut stream)?.is_empty(), "bytes came after the echo");
    Ok(())
}

/// Istio's TCP counters of both reporters: over HBONE from both nodes, on one node from its agent, with the labels
/// that boards ask for and every byte.
#[test]
fn relayed_connections_are_counted() -> Result<()> {
    let shop = Shop::new("metrics of relayed connections")?;
    let agents = shop.lab.agents()?;
    for _ in 0..3 {
        exchange(&shop, shop.far.v4(PORT), 10_000)?;
    }
    exchange(&shop, shop.vip, 700)?;
    let (from, to) = (shop.client.spiffe("cluster.local"), shop.far.spiffe("cluster.local"));
    let hbone = |reporter| -> Labels<'_> {
        vec![
            ("reporter", reporter),
            ("source_workload", "client"),
            ("source_workload_namespace", "shop"),
            ("source_principal", &from),
            ("source_app", "client"),
            ("destination_workload", "far"),
            ("destination_workload_namespace", "shop"),
            ("destination_principal", &to),
            ("destination_app", "far"),
            ("request_protocol", "tcp"),
            ("response_flags", "-"),
            ("connection_security_policy", "mutual_tls"),
        ]
    };
    counted(&agents[0], &hbone("source"), [3.0, 3.0, 30_000.0, 30_000.0])?;
    counted(&agents[1], &hbone("destination"), [3.0, 3.0, 30_000.0, 30_000.0])?;
    for reporter in ["source", "destination"] {
        let local = vec![
            ("reporter", reporter),
            ("source_workload", "client"),
            ("destination_workload", "near"),
            ("destination_service", "near.shop.svc.cluster.local"),
            ("destination_service_name", "near"),
            ("destination_service_namespace", "shop"),
        ];
        counted(&agents[0], &local, [1.0, 1.0, 700.0, 700.0])?;
    }
    ensure!(agents[1].metric(KINDS[0], &[("reporter", "source")])? == 0.0, "node-b opened nothing");
    let text = agents[0].metrics()?;
    ensure!(text.lines().any(|line| line.starts_with("istio_build{")), "no istio_build");
    ensure!(text.trim_end().ends_with("# EOF") || text.contains("# TYPE istio_tcp_sent_bytes"), "no types");
    Ok(())
}

/// A connection that policy refuses is counted as failed by the reporter that knows why.
#[test]
fn refused_connections_are_counted() -> Result<()> {
    let shop = Shop::new("metrics of refused connections")?;
    shop.lab.manifests().authorization("shop", "nobody", &serde_json::json!({}))?;
    let agents = shop.lab.agents()?;
    let refused =
        shop.client.connect(shop.far.v4(PORT)).and_then(|mut stream| client::echo(&mut stream, b"x"));
    ensure!(refused.is_err(), "nobody is allowed");
    for (agent, reporter) in agents.iter().zip(["source", "destination"]) {
        eventually("the failure to be counted", PATIENCE, || {
            let labels = [("reporter", reporter), ("destination_workload", "far")];
            Ok(agent.metric("istio_tcp_connections_failed_total", &labels)? >= 1.0)
        })
        .with_context(|| format!("by the {reporter}"))?;
    }
    ensure!(shop.client.connect(shop.near.v4(PORT)).is_err(), "nobody is allowed on this node either");
    let accepted = shop.far_echo.stats().accepted() + shop.near_echo.stats().accepted();
    ensure!(accepted == 0, "an application saw a refused connection");
    Ok(())
}

/// A bypassed flow is counted at its end with the bytes that the kernel saw, and logged as such.
#[test]
fn bypassed_flows_are_counted_at_their_end() -> Result<()> {
    let shop = Shop::new("metrics of bypassed flows")?;
    let agent = shop.lab.agent("node-a")?;
    let mut flow = shop.bypassed(&agent)?;
    // What was relayed before the verdict was in force is counted too; from here on it stands still.
    let labels: Labels<'_> =
        vec![("reporter", "source"), ("source_workload", "client"), ("destination_workload", "near")];
    let mut before = 0.0;
    eventually("earlier flows to be counted", PATIENCE, || {
        let last = std::mem::replace(&mut before, agent.metric(KINDS[2], &labels)?);
        std::thread::sleep(std::time::Duration::from_millis(100));
        Ok(last == before)
    })?;
    client::echo(&mut flow, &vec![1; 50_000])?;
    flow.shutdown(Shutdown::Write)?;
    ensure!(client::read_all(&mut flow)?.is_empty(), "bytes came after the echo");
    drop(flow);
    // "first" by which the flow was found, and these.
    let wanted = before + 50_005.0;
    for reporter in ["source", "destination"] {
        let labels =
            [("reporter", reporter), ("source_workload", "client"), ("destination_workload", "near")];
        eventually("the flow's bytes", PATIENCE, || Ok(agent.metric(KINDS[2], &labels)? == wanted))
            .with_context(|| format!("{reporter}: wanted {wanted}"))?;
    }
    eventually("its line in the log", PATIENCE, || {
        Ok(agent
            .log()
            .lines()
            .any(|line| line.contains("path=\"bypass\"") && line.contains("bytes_sent=50005")))
    })?;
    Ok(())
}

/// With `--log-format json` every line is an object, and a connection's line tells who, whom, how and how much.
#[test]
fn json_logs_parse() -> Result<()> {
    let shop = Shop::new("JSON logs")?;
    let spec =
        AgentSpec { arguments: ["--log-format", "json"].map(str::to_owned).to_vec(), ..AgentSpec::default() };
    let near = shop.lab.agent_with("node-a", &spec)?;
    let far = shop.lab.agent_with("node-b", &spec)?;
    exchange(&shop, shop.far.v4(PORT), 123)?;
    let line = |agent: &Agent, direction: &str| -> Result<Value> {
        let mut found = None;
        eventually("the connection's line", PATIENCE, || {
            for line in agent.log().lines() {
                let parsed: Value =
                    serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
                if parsed["message"] == "connection complete" && parsed["direction"] == direction {
                    found = Some(parsed);
                }
            }
            Ok(found.is_some())
        })?;
        found.context("no line")
    };
    let (out, arrived) = (line(&near, "outbound")?, line(&far, "inbound")?);
    for said in [&out, &arrived] {
        ensure!(said["src.workload"] == "client" && said["dst.workload"] == "far", "{said}");
        ensure!(said["src.identity"] == shop.client.spiffe("cluster.local"), "{said}");
        ensure!(said["dst.identity"] == shop.far.spiffe("cluster.local"), "{said}");
        ensure!(said["bytes_sent"] == 123 && said["bytes_recv"] == 123 && said["path"] == "hbone", "{said}");
        ensure!(
            said["level"] == "INFO" && said["timestamp"].is_string() && said["target"] == "access",
            "{said}"
        );
    }
    ensure!(
        out["decision_id"] == arrived["decision_id"] && out["decision_id"].is_string(),
        "{out} {arrived}"
    );
    Ok(())
}

/// Text logs are lines for people: no JSON, no colour in a file.
#[test]
fn text_logs_are_plain() -> Result<()> {
    let shop = Shop::new("text logs")?;
    let agent = shop.lab.agent("node-a")?;
    exchange(&shop, shop.vip, 5)?;
    eventually("the connection's line", PATIENCE, || Ok(agent.log().contains("connection complete")))?;
    let log = agent.log();
    ensure!(!log.contains('\u{1b}') && !log.contains('{'), "{log}");
    ensure!(log.lines().all(|line| line.contains(" INFO ") || line.contains(" WARN ")), "{log}");
    Ok(())
}
