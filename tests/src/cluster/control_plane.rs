//! etcd, kube-apiserver and, when asked for, the controller manager and the scheduler, in a namespace of their own.
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;

use super::forward::Forward;
use super::https::Https;
use super::pki::{MASTERS, Pki};
use super::{components, kubectl};
use crate::netns::NetNs;
use crate::process::{self, Process};
use crate::wait::eventually;

/// The port of the API server inside its namespace.
pub(super) const PORT: u16 = 6443;
/// Where Services get their addresses; the first is the API server's own.
pub(super) const SERVICES: &str = "10.96.0.0/16";
const SERVICE_OF_API: &str = "10.96.0.1";

/// Also on a machine that compiles something else at the same time.
const READY_DEADLINE: Duration = Duration::from_secs(90);
const LOG_LINES: usize = 25;

/// What runs beside the API server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Beside {
    pub(super) controllers: bool,
    pub(super) scheduler: bool,
}

/// What a control plane is made of, besides its programs.
pub(super) struct Site<'a> {
    /// The lab's name, by which its processes are known.
    pub(super) lab: &'a str,
    pub(super) dir: &'a Path,
    /// A folder on a disk for etcd.
    pub(super) bulk: &'a Path,
    pub(super) netns: NetNs,
    /// The API server's own address in its namespace, where nodes find it.
    pub(super) address: Ipv4Addr,
}

pub(super) struct ControlPlane {
    lab: String,
    dir: PathBuf,
    bulk: PathBuf,
    netns: NetNs,
    address: Ipv4Addr,
    beside: Beside,
    pki: Pki,
    https: Https,
    running: Mutex<Vec<(&'static str, Process)>>,
    forward: Forward,
}

impl ControlPlane {
    /// Starts etcd and the API server; `wait_ready` says when they answer, and starts the rest.
    pub(super) fn start(site: Site<'_>, beside: Beside) -> Result<Self> {
        let pki = Pki::create(&site.dir.join("pki"))?;
        fs::create_dir_all(site.dir.join("logs")).context("cannot create the cluster's folder for logs")?;
        let forward = Forward::start(&site.netns, SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)))?;
        let token = random_token()?;
        // token,user,uid,group
        let tokens = format!("{token},admin,admin,{MASTERS}\n");
        fs::write(site.dir.join("pki/tokens.csv"), tokens).context("cannot write the API server's tokens")?;
        let this = Self {
            lab: site.lab.to_owned(),
            dir: site.dir.to_path_buf(),
            bulk: site.bulk.to_path_buf(),
            https: Https::new(forward.port(), pki.ca_pem(), &token)?,
            netns: site.netns,
            address: site.address,
            beside,
            pki,
            running: Mutex::new(Vec::new()),
            forward,
        };
        this.write_credentials()?;
        this.run("etcd", this.etcd()?)?;
        this.run("kube-apiserver", this.apiserver()?)?;
        Ok(this)
    }

    fn write_credentials(&self) -> Result<()> {
        let address = self.address.to_string();
        self.pki.server(
            "apiserver",
            &[
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                "localhost",
                "127.0.0.1",
                SERVICE_OF_API,
                &address,
            ],
        )?;
        self.pki.client("apiserver-kubelet", "kube-apiserver-kubelet-client", Some(MASTERS))?;
        self.pki.key("service-accounts")?;
        self.pki.kubeconfig(&self.admin_kubeconfig(), &self.url(), "admin", Some(MASTERS))?;
        for component in ["kube-controller-manager", "kube-scheduler"] {
            self.inner_kubeconfig(component, &format!("system:{component}"), None)?;
        }
        Ok(())
    }

    /// They give up on an API server that is not there within seconds, so they are started after it.
    fn start_beside(&self) -> Result<()> {
        let runs = |name: &str| self.running.lock().iter().any(|(other, _)| *other == name);
        if self.beside.controllers && !runs("kube-controller-manager") {
            self.run("kube-controller-manager", self.controller_manager()?)?;
        }
        if self.beside.scheduler && !runs("kube-scheduler") {
            self.run("kube-scheduler", self.scheduler()?)?;
        }
        Ok(())
    }

    pub(super) fn wait_ready(&self) -> Result<()> {
        self.wait_for("the API server to be ready", || {
            let (status, said) = self.https.get("/readyz")?;
            if status != 200 {
                bail!("it says {status}: {}", said.trim());
            }
            Ok(self.https.object("/api/v1/namespaces/default")?.is_some())
        })?;
        self.start_beside()?;
        if !self.beside.controllers {
            return Ok(());
        }
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        self.wait_for("the default service account", || Ok(self.https.object(account)?.is_some()))
    }

    fn wait_for(&self, what: &str, check: impl Fn() -> Result<bool>) -> Result<()> {
        let mut dead = None;
        let done = eventually(what, READY_DEADLINE, || {
            // Waiting for the dead would only hide what they said.
            dead = self.check_alive().err();
            Ok(dead.is_some() || check()?)
        });
        match dead {
            Some(error) => Err(error),
            None => done.map(drop).with_context(|| self.last_words()),
        }
    }

    /// Fails when one of the programs has ended.
    pub(super) fn check_alive(&self) -> Result<()> {
        self.running.lock().iter_mut().try_for_each(|(_, process)| process.check_alive())
    }

    /// Ends the API server at once, as a crash would; etcd keeps what it has.
    pub(super) fn kill_apiserver(&self) -> Result<()> {
        let mut running = self.running.lock();
        let at = running.iter().position(|(name, _)| *name == "kube-apiserver");
        let (_, mut process) = running.swap_remove(at.context("the API server is not running")?);
        process.kill().map(drop)
    }

    /// Starts the API server again, at the same address, and what ended without it. The controller manager and the
    /// scheduler begin anew: elsewhere they end when they cannot renew their leases. Here, without leases, they would
    /// go on with pauses that have grown, and see new pods only minutes later.
    pub(super) fn boot_apiserver(&self) -> Result<()> {
        self.run("kube-apiserver", self.apiserver()?)?;
        self.running.lock().retain_mut(|(name, process)| {
            !matches!(*name, "kube-controller-manager" | "kube-scheduler") && process.check_alive().is_ok()
        });
        self.wait_ready()
    }

    pub(super) fn netns(&self) -> &NetNs {
        &self.netns
    }

    pub(super) fn pki(&self) -> &Pki {
        &self.pki
    }

    pub(super) fn https(&self) -> &Https {
        &self.https
    }

    /// Where this machine finds the API server.
    pub(super) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.forward.port())
    }

    /// Where nodes find it.
    pub(super) fn inner_url(&self) -> String {
        format!("https://{}:{PORT}", self.address)
    }

    pub(super) fn admin_kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    pub(super) fn kubeconfig_for(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let file: String =
            user.chars().map(|letter| if letter.is_alphanumeric() { letter } else { '-' }).collect();
        let path = self.dir.join(format!("{file}.kubeconfig"));
        self.pki.kubeconfig(&path, &self.url(), user, group)?;
        Ok(path)
    }

    /// A kubeconfig for a program inside the cluster's namespaces.
    pub(super) fn inner_kubeconfig(&self, file: &str, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let path = self.dir.join(format!("pki/{file}.kubeconfig"));
        self.pki.kubeconfig(&path, &self.inner_url(), user, group)?;
        Ok(path)
    }

    pub(super) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        kubectl::run(&self.admin_kubeconfig(), arguments, None)
    }

    pub(super) fn apply(&self, manifests: &str) -> Result<String> {
        kubectl::run(&self.admin_kubeconfig(), &["apply", "--server-side", "-f", "-"], Some(manifests))
    }

    /// The ends of the programs' logs, for a failure's message.
    pub(super) fn last_words(&self) -> String {
        let mut text = String::from("what the control plane said last:");
        for name in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
            if let Ok(log) = fs::read_to_string(self.log(name)) {
                text.push_str(&format!("\n---- {name}\n{}", process::tail(&log, LOG_LINES)));
            }
        }
        text
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    fn run(&self, name: &'static str, mut command: Command) -> Result<()> {
        command.env("PATH", components::path()?).current_dir(&self.dir);
        let process = Process::start(&self.netns, &self.lab, command, &self.log(name))?;
        self.running.lock().push((name, process));
        Ok(())
    }

    fn etcd(&self) -> Result<Command> {
        let mut etcd = Command::new(components::system("etcd", "etcd-server")?);
        etcd.arg("--data-dir").arg(self.bulk.join("etcd"));
        etcd.args(["--listen-client-urls", "http://127.0.0.1:2379"]);
        etcd.args(["--advertise-client-urls", "http://127.0.0.1:2379"]);
        etcd.args(["--listen-peer-urls", "http://127.0.0.1:2380", "--logger", "zap", "--log-level", "warn"]);
        Ok(etcd)
    }

    fn apiserver(&self) -> Result<Command> {
        let pki = self.dir.join("pki");
        let mut server = Command::new(components::kubernetes("kube-apiserver")?);
        server.args(["--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--profiling=false"]);
        server.arg(format!("--secure-port={PORT}")).arg(format!("--advertise-address={}", self.address));
        server.arg(format!("--service-cluster-ip-range={SERVICES}"));
        server.args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"]);
        server.args(["--allow-privileged=true", "--kubelet-preferred-address-types=InternalIP"]);
        server.arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local");
        for (flag, file) in [
            ("client-ca-file", "ca.crt"),
            ("token-auth-file", "tokens.csv"),
            ("tls-cert-file", "apiserver.crt"),
            ("tls-private-key-file", "apiserver.key"),
            ("kubelet-certificate-authority", "ca.crt"),
            ("kubelet-client-certificate", "apiserver-kubelet.crt"),
            ("kubelet-client-key", "apiserver-kubelet.key"),
            ("service-account-key-file", "service-accounts.pub"),
            ("service-account-signing-key-file", "service-accounts.key"),
        ] {
            server.arg(format!("--{flag}={}", pki.join(file).display()));
        }
        Ok(server)
    }

    fn controller_manager(&self) -> Result<Command> {
        let pki = self.dir.join("pki");
        let ca = self.pki.ca();
        let mut manager = Command::new(components::kubernetes("kube-controller-manager")?);
        manager.args([
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--use-service-account-credentials=true",
        ]);
        manager.arg(format!("--kubeconfig={}", pki.join("kube-controller-manager.kubeconfig").display()));
        // What pods verify the API server with.
        manager.arg(format!("--root-ca-file={}", ca.cert.display()));
        manager.arg(format!("--cluster-signing-cert-file={}", ca.cert.display()));
        manager.arg(format!("--cluster-signing-key-file={}", ca.key.display()));
        let key = pki.join("service-accounts.key");
        manager.arg(format!("--service-account-private-key-file={}", key.display()));
        Ok(manager)
    }

    fn scheduler(&self) -> Result<Command> {
        let mut scheduler = Command::new(components::kubernetes("kube-scheduler")?);
        scheduler.args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
        let kubeconfig = self.dir.join("pki/kube-scheduler.kubeconfig");
        scheduler.arg(format!("--kubeconfig={}", kubeconfig.display()));
        Ok(scheduler)
    }
}

fn random_token() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
