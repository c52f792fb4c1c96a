//! The last step: a policy change ends connections that are open, on both paths, and giving the right back mends it.
use std::time::Instant;

use anyhow::{Context, Result};
use mesh_tests::eventually;

use super::live::Live;
use super::{curl_until, expect};
use crate::shop::{FOLLOWS, REVIEWS_PORT, Shop};
use crate::terminal::Terminal;

const DENY_FRONTEND: &str = include_str!("../../../../../deploy/examples/policies/deny-frontend.yaml");
const FILE: &str = "policies/deny-frontend.yaml";
/// curl: the connection could not be made (refused).
const CURL_REFUSED: i32 = 7;

pub(super) fn tell(shop: &mut Shop, terminal: &Terminal) -> Result<()> {
    terminal.step(
        "A policy change cuts live connections",
        "Policy holds for what is open, too: on the relayed path the agent ends it, on the bypassed path the kernel does.",
    );
    let mut relayed = Live::open(&shop.frontend, shop.reviews_v2.v4(REVIEWS_PORT))?;
    let mut bypassed = Live::bypassed(shop, &shop.frontend, shop.reviews_v1.v4(REVIEWS_PORT))?;
    relayed.ask("reviews-v2")?;
    bypassed.ask("reviews-v1")?;
    shop.cli(terminal, "node-a", &["connections"])?;
    shop.apply(terminal, FILE, DENY_FRONTEND)?;
    let start = Instant::now();
    let (first, second) = (relayed.ended()?, bypassed.ended()?);
    terminal.output(&format!(
        "hbone  connection: {first}\nbypass connection: {second}\n(both within {} ms of the change)",
        start.elapsed().as_millis()
    ));
    terminal.say("and the agents say why:");
    for (node, path) in [("node-b", "hbone"), ("node-a", "bypass")] {
        reason(shop, terminal, node, path)?;
    }
    let near = format!("http://{}/", shop.reviews_v1.v4(REVIEWS_PORT));
    let refused =
        curl_until(shop, &near, "a new connection refused by the kernel", |said| said.code == CURL_REFUSED)?;
    terminal.command(&format!("frontend: curl {near}"));
    terminal.output(&refused.text);
    let story = shop.cli(terminal, "node-a", &["explain", "shop/frontend", "reviews:9080"])?;
    let named = story.code == 1 && story.stdout.contains("DENIED by AuthorizationPolicy shop/deny-frontend");
    expect(named, "`explain` naming deny-frontend", &story.stdout)?;
    terminal.proven("both were cut with the reason policy_changed; new ones are refused");
    shop.remove(terminal, FILE)?;
    for to in [shop.reviews_v1.v4(REVIEWS_PORT), shop.reviews_v2.v4(REVIEWS_PORT)] {
        curl_until(shop, &format!("http://{to}/"), "the reviews to answer again", |said| said.code == 0)?;
    }
    terminal.proven("the policy is gone, both reviews answer again");
    Ok(())
}

/// Shows the line of the access log that tells of the cut.
fn reason(shop: &Shop, terminal: &Terminal, node: &str, path: &str) -> Result<()> {
    let agent = shop.agent(node)?;
    let path = format!("path=\"{path}\"");
    let mut line = None;
    eventually(&format!("the access log of {node} to say policy_changed for {path}"), FOLLOWS, || {
        let log = agent.log();
        line = log
            .lines()
            .rev()
            .find(|line| line.contains("reason=\"policy_changed\"") && line.contains(&path))
            .map(str::to_owned);
        Ok(line.is_some())
    })?;
    let line = line.context("the access log")?;
    let field = |name: &str| {
        let start = line.find(&format!(" {name}=")).map(|at| at + 1);
        start.and_then(|at| line[at..].split(' ').next()).unwrap_or_default()
    };
    let fields = ["src.workload", "dst.workload", "path", "bytes_recv", "reason"].map(field);
    terminal.output(&format!("{node}: connection failed {}", fields.join(" ")));
    Ok(())
}
