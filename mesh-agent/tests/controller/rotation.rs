//! Keys and API servers that change under a running CA.
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_tests::eventually;

use crate::stage::{SOON, Stage};

/// A Secret that is replaced (here: deleted, so that a new root is made) publishes both roots at once, signs with the
/// old key until the new root has spread, and with the new one then; who starts afresh agrees.
#[test]
fn a_new_root_is_published_before_it_signs() -> Result<()> {
    let stage = Stage::open()?;
    let controller = stage.controller("one", &["--root-spread=15s"])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let token = stage.token("nodemesh-agent", Some("agent-1"), "istio-ca")?;
    let agent = stage.agent(&controller, &token)?;
    let issuer = || -> Result<String> {
        let web = "spiffe://cluster.local/ns/shop/sa/web".parse()?;
        let cert = runtime.block_on(async { anyhow::Ok(agent.manager()?.fetch(&web).await?) })?;
        let leaf = cert.chain().first().context("no leaf")?;
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf)?;
        Ok(parsed.issuer().to_string())
    };
    let old = issuer()?;
    stage.server.kubectl(&["delete", "secret", "nodemesh-ca", "-n", "nodemesh-system"])?;
    eventually("both roots to be published", SOON, || Ok(stage.bundle()?.matches("BEGIN").count() == 2))?;
    ensure!(issuer()? == old, "the new key signs before its root has spread");
    fs::write(agent.dir.path().join("root.pem"), stage.bundle()?)?;
    eventually("the new key to sign", SOON, || Ok(issuer()? != old))?;
    ensure!(stage.bundle()?.matches("BEGIN").count() == 2, "the old root went before its certificates");
    let second = stage.controller("two", &["--root-spread=15s"])?;
    let other = stage.agent(&second, &token)?;
    runtime.block_on(other.ask("web")).map_err(anyhow::Error::msg)?;
    Ok(())
}

/// While the API server is gone the CA says so and lives on, and signs again when it is back.
#[test]
fn an_api_server_that_is_gone_stops_issuance_and_nothing_else() -> Result<()> {
    let stage = Stage::open()?;
    let mut controller = stage.controller("one", &[])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let token = stage.token("nodemesh-agent", Some("agent-1"), "istio-ca")?;
    let agent = stage.agent(&controller, &token)?;
    runtime.block_on(agent.ask("web")).map_err(anyhow::Error::msg)?;
    stage.server.kill()?;
    let said = runtime.block_on(agent.ask("web")).err().context("issued without a token review")?;
    ensure!(said.contains("does not answer"), "{said}");
    // Longer than the lease's deadline: a leader that cannot renew stops leading.
    eventually("the leader to give up", SOON, || Ok(!controller.leads()?))?;
    controller.check_alive()?;
    ensure!(
        controller.get("readiness", "/healthz/ready")?.0,
        "it can sign as soon as tokens can be reviewed"
    );
    stage.server.boot()?;
    eventually("certificates again", Duration::from_secs(60), || {
        Ok(runtime.block_on(agent.ask("web")).is_ok())
    })?;
    eventually("a leader again", SOON, || controller.leads())?;
    Ok(())
}
