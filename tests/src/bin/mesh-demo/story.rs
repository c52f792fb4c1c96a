//! The story, step by step. Each step does something, shows what came of it, and fails with what it expected and what
//! it saw when that is not what it tells.
mod cut;
mod live;

use anyhow::{Result, bail};
use mesh_tests::eventually;
use mesh_tests::sniff::{Seen, Sniffer};
use nix::sys::signal::Signal;

use self::live::Live;
use crate::shop::{BACKEND_PORT, BACKEND_VIP, FOLLOWS, NAMESPACE, REVIEWS_PORT, REVIEWS_VIP, Said, Shop};
use crate::stop::Stop;
use crate::terminal::Terminal;

const BACKEND_ONLY_REVIEWS: &str =
    include_str!("../../../../deploy/examples/policies/backend-only-reviews.yaml");

/// What must not be readable between the nodes.
const SECRET: &str = "card=4111-1111-1111-1111";
/// Calls of a Service until both of two endpoints must have answered; one in a billion says no by chance.
const CALLS: usize = 30;
const HBONE_PORT: u16 = 15008;

pub(crate) fn tell(shop: &mut Shop, terminal: &Terminal, stop: &Stop) -> Result<()> {
    let steps: [fn(&mut Shop, &Terminal) -> Result<()>; 6] =
        [plaintext, enrolled, service, bypass, denied, cut::tell];
    for step in steps {
        stop.check()?;
        step(shop, terminal)?;
    }
    Ok(())
}

/// Fails with both sides of the difference.
fn expect(held: bool, expected: &str, seen: impl std::fmt::Display) -> Result<()> {
    if !held {
        bail!("expected {expected}; saw: {seen}");
    }
    Ok(())
}

fn expect_answer(said: &Said, from: &str, caller: std::net::IpAddr) -> Result<()> {
    let wanted = format!("this is {from}, called by {caller}");
    expect(said.code == 0 && said.text.trim() == wanted, &format!("the answer `{wanted}`"), said.text.trim())
}

/// Lines of HTTP that anybody on the link can read.
fn readable(seen: &Seen) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for frame in seen.frames() {
        let text = String::from_utf8_lossy(frame);
        if let Some(at) = text.find("GET /")
            && let Some(line) = text[at..].lines().next()
            && !lines.iter().any(|other| other == line)
        {
            lines.push(line.to_owned());
        }
    }
    lines
}

fn plaintext(shop: &mut Shop, terminal: &Terminal) -> Result<()> {
    terminal.step(
        "Without the mesh",
        "The agents run, but no namespace is enrolled: who listens on the link between the nodes can read everything.",
    );
    let url = format!("http://{}/{SECRET}", shop.reviews_v2.v4(REVIEWS_PORT));
    let sniffer = Sniffer::on_link(shop.lab())?;
    let said = shop.curl(terminal, &shop.frontend, &url)?;
    let seen = sniffer.stop()?;
    expect_answer(&said, "reviews-v2", shop.frontend.ips()[0])?;
    expect(seen.saw(SECRET.as_bytes()), "the card number in the capture of the link", format!("{seen:?}"))?;
    terminal.say("a packet capture on the link, meanwhile, reads:");
    terminal.output(&readable(&seen).join("\n"));
    terminal.proven("the card number crossed the link in plaintext");
    Ok(())
}

fn enrolled(shop: &mut Shop, terminal: &Terminal) -> Result<()> {
    terminal.step(
        "Enrolled by one label: mutual TLS",
        "`nodemesh.io/mesh: enabled` on the namespace; no pod is changed or restarted, no connection is cut.",
    );
    let mut old = Live::open(&shop.frontend, shop.reviews_v2.v4(REVIEWS_PORT))?;
    old.ask("reviews-v2")?;
    shop.apply(terminal, "shop/namespace.yaml", NAMESPACE)?;
    for node in ["node-a", "node-b"] {
        shop.until(&format!("the pods of {node} to be captured"), node, &["workloads"], |all| {
            let local = all.as_array().map(|all| all.iter().filter(|one| one["local"] == true).collect());
            local.is_some_and(|local: Vec<_>| {
                local.len() == 2 && local.iter().all(|one| one["enrolment"] == "captured")
            })
        })?;
        shop.until(&format!("certificates on {node}"), node, &["certs"], |all| {
            all.as_array()
                .is_some_and(|all| !all.is_empty() && all.iter().all(|cert| cert["state"] == "valid"))
        })?;
    }
    shop.cli(terminal, "node-a", &["workloads"])?;
    let url = format!("http://{}/{SECRET}", shop.reviews_v2.v4(REVIEWS_PORT));
    let sniffer = Sniffer::on_link(shop.lab())?;
    let said = shop.curl(terminal, &shop.frontend, &url)?;
    let seen = sniffer.stop()?;
    expect_answer(&said, "reviews-v2", shop.frontend.ips()[0])?;
    expect(!seen.saw(SECRET.as_bytes()), "no card number in the capture of the link", format!("{seen:?}"))?;
    expect(seen.tcp_to(HBONE_PORT), "the request inside HBONE, to port 15008", format!("{seen:?}"))?;
    expect(!seen.tcp_to(REVIEWS_PORT), "no connection to port 9080 on the link", format!("{seen:?}"))?;
    terminal.say("the packet capture on the link reads nothing now: it saw TLS to port 15008 and no HTTP");
    terminal.proven(
        "same answer, the same caller's address seen by the application, and no readable byte on the link",
    );
    old.ask("reviews-v2")?;
    terminal.proven("a connection from before the label still works");
    identities(shop, terminal)
}

/// Who each side proved to be, as the agent of the server's node knows it.
fn identities(shop: &Shop, terminal: &Terminal) -> Result<()> {
    let mut live = Live::open(&shop.frontend, shop.reviews_v2.v4(REVIEWS_PORT))?;
    live.ask("reviews-v2")?;
    shop.cli(terminal, "node-b", &["connections"])?;
    let all = shop.agent("node-b")?.ask(&["connections"])?;
    let conn = all.as_array().into_iter().flatten().find(|conn| conn["path"] == "hbone");
    let identity = |side: &str| {
        conn.and_then(|conn| conn[side]["identity"].as_str()).unwrap_or("no identity").to_owned()
    };
    let (source, destination) = (identity("source"), identity("destination"));
    let wanted =
        [shop.frontend.spiffe("cluster.local"), shop.reviews_v2.spiffe("cluster.local")].join(" -> ");
    let seen = format!("{source} -> {destination}");
    expect(seen == wanted, &format!("an HBONE connection {wanted}"), &seen)?;
    terminal.proven(&format!("proven by their certificates: {seen}"));
    Ok(())
}

fn service(shop: &mut Shop, terminal: &Terminal) -> Result<()> {
    terminal.step(
        "A Service over both nodes",
        "Nobody but the mesh knows the address 10.96.0.20: the agent picks an endpoint for each connection.",
    );
    let url = format!("http://{REVIEWS_VIP}:{REVIEWS_PORT}/");
    terminal.command(&format!("frontend: curl {url}   (until both versions have answered)"));
    let mut answers: Vec<String> = Vec::new();
    for _ in 0..CALLS {
        let said = shop.curl_quietly(&shop.frontend, &url)?;
        expect(said.code == 0, "an answer from the reviews", said.text.trim())?;
        if !answers.contains(&said.text) {
            answers.push(said.text);
        }
        if answers.len() == 2 {
            break;
        }
    }
    answers.sort();
    terminal.output(&answers.concat());
    expect(answers.len() == 2, "answers of reviews-v1 and reviews-v2", answers.concat().trim())?;
    shop.cli(terminal, "node-a", &["services"])?;
    terminal.proven("reviews-v1 (same node) and reviews-v2 (other node) both answer");
    Ok(())
}

fn bypass(shop: &mut Shop, terminal: &Terminal) -> Result<()> {
    terminal.step(
        "Same node: the agent is not in the way",
        "Between two pods of a node the kernel knows the verdict; the bytes never leave it, so they cost what they cost \
         without a mesh.",
    );
    let near = shop.reviews_v1.v4(REVIEWS_PORT);
    shop.until(
        "the kernel's verdict for frontend to reviews-v1",
        "node-a",
        &["explain", "shop/frontend", &near.to_string()],
        |story| story["route"]["path"] == "bypass",
    )?;
    let mut direct = Live::bypassed(shop, &shop.frontend, near)?;
    direct.ask("reviews-v1")?;
    let mut relayed = Live::open(&shop.frontend, shop.reviews_v2.v4(REVIEWS_PORT))?;
    relayed.ask("reviews-v2")?;
    shop.cli(terminal, "node-a", &["connections"])?;
    terminal.say("now the proof: freeze the agent of node-a (SIGSTOP) and ask on both connections");
    let pid = shop.agent("node-a")?.pid();
    signal(pid, Signal::SIGSTOP)?;
    let frozen = eventually("every thread of the agent to stop", FOLLOWS, || all_stopped(pid));
    let asked = direct.ask("reviews-v1");
    let silent = relayed.is_silent();
    // Before anything may fail: a frozen agent would not end with the demo.
    signal(pid, Signal::SIGCONT)?;
    frozen?;
    let answer = asked?;
    terminal.output(&format!(
        "bypass, agent frozen: {answer}\nhbone,  agent frozen: {}",
        match &silent {
            Ok(true) => "no answer".to_owned(),
            Ok(false) => "an answer".to_owned(),
            Err(error) => format!("{error:#}"),
        }
    ));
    expect(silent?, "no answer on the relayed connection while the agent is frozen", "one")?;
    let late = relayed.answer("reviews-v2")?;
    terminal.say(&format!("the agent goes on (SIGCONT), and so does the relayed connection: {late}"));
    terminal.proven("the bypassed connection does not pass the agent; the relayed one does");
    Ok(())
}

fn signal(pid: i32, signal: Signal) -> Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)?)
}

/// A stop signal takes its time to reach threads that run on other processors.
fn all_stopped(pid: i32) -> Result<bool> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = std::fs::read_to_string(task?.path().join("stat"))?;
        // The state follows the name, which stands in parentheses and may hold anything.
        if stat.rsplit_once(") ").is_none_or(|(_, after)| !after.starts_with('T')) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn denied(shop: &mut Shop, terminal: &Terminal) -> Result<()> {
    terminal.step(
        "An AuthorizationPolicy: only the reviews may call the backend",
        "Istio's own resource. The backend's node judges it by the identity in the certificate, not by an address.",
    );
    shop.apply(terminal, "policies/backend-only-reviews.yaml", BACKEND_ONLY_REVIEWS)?;
    for node in ["node-a", "node-b"] {
        shop.until("the policy to be in force", node, &["policies"], |all| {
            all.as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "backend-only-reviews"))
        })?;
    }
    let url = format!("http://{BACKEND_VIP}:{BACKEND_PORT}/");
    let said = shop.curl(terminal, &shop.reviews_v1, &url)?;
    expect_answer(&said, "backend", shop.reviews_v1.ips()[0])?;
    let said = shop.curl(terminal, &shop.frontend, &url)?;
    expect(said.code != 0, "the frontend's call to the backend refused", said.text.trim())?;
    let story = shop.cli(terminal, "node-a", &["explain", "shop/frontend", "backend:7000"])?;
    expect(story.code == 1, "exit code 1 of `explain` (the answer is no)", story.code)?;
    let named = story.stdout.contains("AuthorizationPolicy shop/backend-only-reviews")
        && story.stdout.contains("policy_not_allowed");
    expect(named, "`explain` saying that no rule of backend-only-reviews allows it", &story.stdout)?;
    let allowed = shop.agent("node-a")?.cli(&["explain", "shop/reviews-v1", "backend:7000"])?;
    expect(allowed.code == 0, "`explain` allowing reviews-v1", &allowed.stdout)?;
    terminal.proven(
        "the reviews are served, the frontend is refused, and `explain` shows which policy leaves it out",
    );
    Ok(())
}

/// Waits until the frontend's curl to the reviews ends as wanted; what it said last.
fn curl_until(shop: &Shop, url: &str, what: &str, wanted: impl Fn(&Said) -> bool) -> Result<Said> {
    let mut last = Said { code: -1, text: String::new() };
    eventually(what, FOLLOWS, || {
        last = shop.curl_quietly(&shop.frontend, url)?;
        Ok(wanted(&last))
    })
    .map_err(|error| error.context(format!("the last curl said: {}", last.text.trim())))?;
    Ok(last)
}
