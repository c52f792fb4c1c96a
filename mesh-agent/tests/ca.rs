//! `mesh-agent controller` as a process without Kubernetes: the development CA behind the real service, asked by the
//! agents' own client.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_agent::identity::{Ca, CaService, CertManager, CertSettings, DirCa, ServiceSettings, SystemClock};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A process that is killed with its test.
struct Controller {
    child: Child,
    log: PathBuf,
}

impl Controller {
    fn start(dir: &Path, more: &[&str]) -> io::Result<Self> {
        let log = dir.join("log");
        let out = File::create(&log)?;
        let child = Command::new(env!("CARGO_BIN_EXE_mesh-agent"))
            .args([
                "controller",
                "--ca-listen=127.0.0.1:0",
                "--metrics=127.0.0.1:0",
                "--readiness=127.0.0.1:0",
            ])
            .arg("--server-names=localhost")
            .args(more)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        Ok(Self { child, log })
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A port, as the line of the start tells it.
    fn port(&self, what: &str) -> Option<u16> {
        let log = self.log();
        let line = log.lines().find(|line| line.contains("controller started"))?;
        let line: Value = serde_json::from_str(line).ok()?;
        let address = line[what].as_str()?.to_owned();
        address.rsplit_once(':')?.1.parse().ok()
    }

    fn get(&self, what: &str, path: &str) -> Option<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port(what)?)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn until_ready(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        while !self.get("readiness", "/healthz/ready").is_some_and(|text| text.starts_with("HTTP/1.1 200")) {
            assert!(Instant::now() < end, "not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM. Yields meanwhile: a client of this runtime has to see the server say good-bye.
    async fn end(&mut self) -> io::Result<ExitStatus> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let end = Instant::now() + Duration::from_secs(15);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            assert!(Instant::now() < end, "does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn a_controller_without_a_cluster_signs_for_whoever_has_the_static_token_and_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    DirCa::open(&path("ca")).unwrap();
    fs::write(path("token"), "lab\n").unwrap();
    let (ca, token) = (path("ca"), path("token"));
    let more = ["--ca-dir", ca.to_str().unwrap(), "--static-token", token.to_str().unwrap()];
    let mut controller = Controller::start(dir.path(), &more).unwrap();
    controller.until_ready();
    let clock = Arc::new(SystemClock);
    let ask = async |token: &Path| {
        let settings = ServiceSettings {
            address: format!("https://localhost:{}", controller.port("ca").unwrap()).parse().unwrap(),
            root: path("ca/root-cert.pem"),
            token: token.to_owned(),
            cluster_id: "Kubernetes".to_owned(),
        };
        let service = CaService::new(settings, Arc::clone(&clock) as _).unwrap();
        let manager = CertManager::new(
            Ca::Service(Arc::new(service)),
            Arc::clone(&clock) as _,
            CertSettings::default(),
        );
        let web = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        manager.fetch(&web).await.map(|cert| cert.serial.clone())
    };
    let serial = ask(&path("token")).await.unwrap();
    fs::write(path("stolen"), "other").unwrap();
    assert!(ask(&path("stolen")).await.unwrap_err().to_string().contains("refuses"));

    let page = controller.get("metrics", "/metrics").unwrap();
    for line in [r#"nodemesh_ca_requests_total{result="issued"} 1"#, r#"{result="unauthenticated"} 1"#] {
        assert!(page.contains(line), "{line}:\n{page}");
    }
    assert!(controller.end().await.unwrap().success(), "{}", controller.log());
    let log = controller.log();
    let audit: Vec<&str> = log.lines().filter(|line| line.contains(r#""target":"audit""#)).collect();
    assert!(audit.iter().any(|line| line.contains(&serial) && line.contains("sa/web")), "{log}");
    assert!(audit.iter().any(|line| line.contains("certificate refused")), "{log}");
    assert!(!log.contains("they are cut"), "idle connections were waited for:\n{log}");
    assert!(!log.contains("lab\""), "the token is in the log");
}

#[test]
fn a_ca_folder_without_a_token_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(dir.path(), &["--ca-dir", dir.path().to_str().unwrap()]).unwrap();
    let status = controller.child.wait().unwrap();
    assert_eq!(status.code(), Some(2), "{}", controller.log());
    assert!(controller.log().contains("--static-token"), "{}", controller.log());
}
