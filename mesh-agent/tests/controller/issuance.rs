//! Who gets which certificate.
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use mesh_tests::eventually;
use serde_json::json;

use crate::stage::{SOON, Stage, pod};

/// An agent's real token gets what runs on its node; another node's pod, a wrong audience, an expired token, one bound
/// to no pod, a stranger's, one of a deleted pod, an ended pod, a denied identity and no token get nothing, and the
/// audit log has a line of each.
#[test]
fn a_bound_token_gets_the_identities_of_its_own_node_and_nothing_else_does() -> Result<()> {
    let stage = Stage::open()?;
    let controller = stage.controller("one", &[])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let good = stage.token("nodemesh-agent", Some("agent-1"), "istio-ca")?;
    let agent = stage.agent(&controller, &good)?;
    let ask = |token: &str, account: &str| -> Result<Result<String, String>> {
        fs::write(agent.dir.path().join("token"), token)?;
        Ok(runtime.block_on(agent.ask(account)))
    };
    let serial = ask(&good, "web")?.map_err(anyhow::Error::msg)?;

    let refused = |token: &str, account: &str, words: &str| -> Result<()> {
        match ask(token, account)? {
            Ok(serial) => bail!("{account} was issued, serial {serial}; expected: {words}"),
            Err(said) => ensure!(said.contains(words), "refused for another reason than `{words}`: {said}"),
        }
        Ok(())
    };
    refused(&good, "api", "no live pod with this identity runs on node `n1`")?;
    refused(&stage.token("nodemesh-agent", Some("agent-1"), "elsewhere")?, "web", "the token is refused")?;
    refused(&stage.token("nodemesh-agent", None, "istio-ca")?, "web", "bound to no pod")?;
    refused("not.a.token", "web", "the token is refused")?;
    refused(&expired(&stage, "agent-1")?, "web", "the token is refused")?;
    stage.server.apply(&pod("nodemesh-system", "stranger-1", "stranger", "n1"))?;
    let stranger = stage.token("stranger", Some("stranger-1"), "istio-ca")?;
    refused(&stranger, "web", "not among --trusted-accounts")?;

    // The kubelet's word that the pod has ended.
    stage.server.kubectl(&[
        "patch",
        "pod",
        "web-1",
        "-n",
        "shop",
        "--subresource=status",
        "-p",
        r#"{"status":{"phase":"Failed"}}"#,
    ])?;
    eventually("the ended pod to count no more", SOON, || Ok(ask(&good, "web")?.is_err()))?;
    // A new pod is served without waiting for a retry, whoever hears of it first.
    stage.server.apply(&pod("shop", "web-2", "web", "n1"))?;
    ask(&good, "web")?.map_err(anyhow::Error::msg)?;

    stage.server.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "nodemesh", "namespace": "nodemesh-system"},
        "data": {"denied-identities": "# stolen\nspiffe://cluster.local/ns/shop/sa/web\n"},
    }).to_string())?;
    eventually("the deny list to hold", SOON, || {
        Ok(ask(&good, "web")?.is_err_and(|said| said.contains("deny list")))
    })?;
    stage.server.kubectl(&[
        "delete",
        "pod",
        "agent-1",
        "-n",
        "nodemesh-system",
        "--grace-period=0",
        "--force",
    ])?;
    // The API server may remember a token for some seconds; the pod that it is bound to is gone all the same.
    let said = ask(&good, "api")?.err().context("issued to a pod that is gone")?;
    ensure!(said.contains("agent-1 is not known") || said.contains("the token is refused"), "{said}");

    let log = controller.log();
    let audit: Vec<&str> = log.lines().filter(|line| line.contains("\"audit\"")).collect();
    let issued = audit.iter().find(|line| line.contains(&serial)).context("no line of the issuance")?;
    for words in ["issued", "nodemesh-system/nodemesh-agent", "agent-1", "n1", "ns/shop/sa/web", "not_after"]
    {
        ensure!(issued.contains(words), "the line does not say `{words}`: {issued}");
    }
    for result in ["not_allowed", "unauthenticated", "denied"] {
        ensure!(audit.iter().any(|line| line.contains(result)), "no line says {result}");
    }
    ensure!(!log.contains(&good), "a token is in the log");
    // The agent asks again by itself: between two looks there may be one more of either.
    eventually("every answer to be counted and to have its line", SOON, || {
        let (log, (_, page)) = (controller.log(), controller.get("metrics", "/metrics")?);
        for result in ["issued", "not_allowed", "unauthenticated", "denied"] {
            let start = format!(r#"nodemesh_ca_requests_total{{result="{result}"}} "#);
            let count = page.lines().find_map(|line| line.strip_prefix(&start)?.parse::<usize>().ok());
            let lines = log
                .lines()
                .filter(|line| {
                    line.contains("\"audit\"") && line.contains(&format!(r#""result":"{result}""#))
                })
                .count();
            ensure!(lines > 0 && count == Some(lines), "{result}: {lines} lines, counted {count:?}\n{page}");
        }
        Ok(true)
    })?;
    controller.terminate()
}

/// A token as the API server would have made it an hour ago, signed with its own key: it makes none that live for less
/// than ten minutes.
fn expired(stage: &Stage, pod: &str) -> Result<String> {
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let fresh = stage.token("nodemesh-agent", Some(pod), "istio-ca")?;
    let mut parts = fresh.split('.');
    let (head, body) = (parts.next().context("no head")?, parts.next().context("no body")?);
    let mut claims: serde_json::Value = serde_json::from_slice(&base64.decode(body)?)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for (claim, time) in [("iat", now - 7200), ("nbf", now - 7200), ("exp", now - 3600)] {
        claims[claim] = json!(time);
    }
    let signed = format!("{head}.{}", base64.encode(serde_json::to_vec(&claims)?));
    let key = fs::read_to_string(stage.server.dir().join("pki/service-accounts.key"))?;
    let key = rcgen::KeyPair::from_pem(&key)?;
    let der = rcgen::SigningKey::sign(&key, signed.as_bytes())?;
    Ok(format!("{signed}.{}", base64.encode(fixed(&der)?)))
}

/// An ECDSA signature as JWS writes it (RFC 7518, 3.4): two numbers of 32 bytes, not ASN.1.
fn fixed(der: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = der.get(2..).context("a short signature")?;
    for _ in 0..2 {
        let length = usize::from(*rest.get(1).context("a short number")?);
        let number = rest.get(2..2 + length).context("a short number")?;
        let number = &number[number.len().saturating_sub(32)..];
        out.extend(std::iter::repeat_n(0, 32 - number.len()));
        out.extend(number);
        rest = &rest[2 + length..];
    }
    Ok(out)
}
