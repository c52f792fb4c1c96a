//! HTTP clients that nobody here wrote: curl, nghttp, h2load.
use std::net::SocketAddr;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use mesh_tests::Pod;
use serde_json::Value;

use crate::shop::{Pair, Service};

/// What a program says, run in a pod to its end.
fn run(pod: &Pod, command: &mut Command) -> Result<(String, String)> {
    let Output { status, stdout, stderr } = pod.run(|| {
        let output = command.output();
        output.with_context(|| {
            format!("{} cannot be run; `cargo xtask setup` installs it", command.get_program().display())
        })
    })?;
    let (out, err) =
        (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned());
    ensure!(status.success(), "{command:?}: {status}\n{out}\n{err}");
    Ok((out, err))
}

/// curl with these arguments: the answer's body, and what it says of the way there (`-v`).
fn curl(pair: &Pair, service: &Service, arguments: &[&str], path: &str) -> Result<(String, String)> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--verbose", "--max-time", "20", "--noproxy", "*", "--disable"]);
    command.args(arguments).arg("--connect-to").arg(format!("::{}", service.at(0)));
    command.arg(format!("http://{}{path}", service.name));
    run(&pair.shop.client, &mut command)
}

/// Every version and way of sending a body that curl knows.
#[test]
fn curl_gets_what_it_asks_for() -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), vec![b'c'; 300_000])?;
    let upload = format!("@{}", file.path().display());
    let expect = ["--http1.1", "-H", "Expect: 100-continue", "--data-binary", upload.as_str()];
    let chunked = ["--http1.1", "-H", "Transfer-Encoding: chunked", "--data-binary", upload.as_str()];
    let h2_body = ["--http2-prior-knowledge", "--data-binary", upload.as_str()];
    // Arguments, the version that the server sees, bytes of body that it gets, and a line that curl must have told.
    let cases: [(&[&str], &str, u64, &str); 10] = [
        (&["--http1.0"], "HTTP/1.1", 0, "> GET / HTTP/1.0"),
        (&["--http1.1"], "HTTP/1.1", 0, "< HTTP/1.1 200 OK"),
        (&["--http1.1", "--head"], "", 0, "< HTTP/1.1 200 OK"),
        (&["--http2-prior-knowledge"], "HTTP/2.0", 0, "< HTTP/2 200"),
        // It asks to switch, is answered 101, and gets its answer in HTTP/2; with a body, in HTTP/1.1.
        (&["--http2"], "HTTP/2.0", 0, "< HTTP/2 200"),
        (
            &["--http2", "-H", "Expect:", "--data-binary", upload.as_str()],
            "HTTP/1.1",
            300_000,
            "< HTTP/1.1 200 OK",
        ),
        (&expect, "HTTP/1.1", 300_000, "< HTTP/1.1 100 Continue"),
        (&chunked, "HTTP/1.1", 300_000, "< HTTP/1.1 200 OK"),
        (&h2_body, "HTTP/2.0", 300_000, "< HTTP/2 200"),
        (
            &["--http1.1", "--request", "PUT", "--upload-file", file.path().to_str().unwrap_or_default()],
            "HTTP/1.1",
            300_000,
            "< HTTP/1.1 200 OK",
        ),
    ];
    let pair = Pair::new("curl", Some("http"))?;
    pair.each(|pair, service| {
        for (arguments, version, bytes, line) in cases {
            let (body, told) = curl(pair, service, arguments, "/")?;
            ensure!(told.lines().any(|one| one.trim_end() == line), "{arguments:?}: no `{line}` in\n{told}");
            if version.is_empty() {
                continue;
            }
            let said: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
            ensure!(said["protocol"] == version, "{arguments:?}: {said}");
            ensure!(said["body_bytes"] == bytes, "{arguments:?}: {said}");
        }
        Ok(())
    })
}

/// Trailers come after the body, in both versions.
#[test]
fn curl_is_told_trailers() -> Result<()> {
    let pair = Pair::new("curl trailers", Some("http"))?;
    pair.each(|pair, service| {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let asked = [version, "--data-binary", "words", "-H", "TE: trailers", "-H", "x-grpc-status: 5"];
            let (said, told) =
                curl(pair, service, &[&asked[..], &["--dump-header", "-"]].concat(), "/lab.Echo/Words")?;
            let (head, rest) =
                said.split_once("words").with_context(|| format!("{version}: {said}\n{told}"))?;
            ensure!(!head.contains("grpc-status: 5"), "{version}: not after the body: {said}");
            ensure!(rest.contains("grpc-status: 5"), "{version}: {said}\n{told}");
        }
        Ok(())
    })
}

/// Several connections reused for many requests, as a program that uses libcurl has it.
#[test]
fn curl_uses_its_connection_again() -> Result<()> {
    let pair = Pair::new("curl again", Some("http"))?;
    for service in &pair.services {
        let mut command = Command::new("curl");
        command.args(["--silent", "--verbose", "--max-time", "20", "--noproxy", "*", "--disable"]);
        command.arg("--connect-to").arg(format!("::{}", service.at(0)));
        command.arg(format!("http://{}/turn/[1-50]", service.name));
        let (bodies, told) = run(&pair.shop.client, &mut command)?;
        ensure!(bodies.matches("\"path\":\"/turn/").count() == 50, "{bodies}");
        ensure!(told.matches("Connected to").count() == 1, "{told}");
    }
    Ok(())
}

/// nghttp checks every frame it gets; it asks for three at once, with a body and with priorities, and begins in HTTP/2 or
/// has its connection switched.
#[test]
fn nghttp_finds_no_fault() -> Result<()> {
    let body = tempfile::NamedTempFile::new()?;
    std::fs::write(body.path(), vec![b'n'; 100_000])?;
    let data = format!("--data={}", body.path().display());
    let pair = Pair::new("nghttp", Some("http"))?;
    pair.each(|pair, service| {
        let at = service.at(0);
        for arguments in [
            &["--weight=200"][..],
            &["--window-bits=10"],
            &["--trailer=x-end: 1", data.as_str()],
            &["--upgrade"],
            &["--upgrade", data.as_str()],
        ] {
            let mut command = Command::new("nghttp");
            command.args(["--verbose", "--null-out", "--timeout=20", "--header=:authority: myapp"]);
            command.args(arguments);
            command.args(["one", "two?size=300000", "three"].map(|path| format!("http://{at}/{path}")));
            let (told, _) = run(&pair.shop.client, &mut command)?;
            ensure!(told.matches(":status: 200").count() >= 3, "{arguments:?}: {told}");
            let faults = told.replace("NO_ERROR", "");
            ensure!(!faults.contains("RST_STREAM") && !faults.contains("ERROR"), "{arguments:?}: {told}");
        }
        Ok(())
    })
}

/// h2load: many streams over few connections, in both versions, with bodies both ways; not one request fails.
#[test]
fn h2load_loses_nothing() -> Result<()> {
    let body = tempfile::NamedTempFile::new()?;
    std::fs::write(body.path(), vec![b'h'; 20_000])?;
    let data = format!("--data={}", body.path().display());
    let pair = Pair::new("h2load", Some("http"))?;
    pair.each(|pair, service| {
        for (arguments, path) in [
            (&["-m100"][..], "/"),
            (&["-m10", data.as_str()], "/"),
            (&["-m20", "-w12", "-W14"], "/?size=70000"),
            (&["--h1"], "/"),
        ] {
            let told = load(&pair.shop.client, service.at(0), arguments, path)?;
            let wanted = "requests: 1000 total, 1000 started, 1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout";
            ensure!(told.contains(wanted), "{arguments:?}: {told}");
            ensure!(told.contains("status codes: 1000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{arguments:?}: {told}");
        }
        Ok(())
    })
}

fn load(pod: &Pod, to: SocketAddr, arguments: &[&str], path: &str) -> Result<String> {
    let mut command = Command::new("h2load");
    command.args(["-n1000", "-c5", "-t1", "--no-tls-proto=h2c", "--connection-active-timeout=60"]);
    command.args(arguments).arg(format!("http://{to}{path}"));
    Ok(run(pod, &mut command)?.0)
}
