//! dnsmasq in a pod: a name server that nobody here wrote.
use std::fs;
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::lab::{Lab, Pod};
use crate::process::Process;
use crate::wait::eventually;

const START_DEADLINE: Duration = Duration::from_secs(5);
const PROGRAM: &str = "/usr/sbin/dnsmasq";
/// The zone it answers for; every other name it refuses.
pub const ZONE: &str = "example.test";

/// A running dnsmasq, whose answers may be kept for a second.
#[derive(Debug)]
pub struct NameServer {
    process: Process,
    hosts: PathBuf,
    resolv_conf: PathBuf,
}

impl NameServer {
    pub fn start(lab: &Lab, pod: &Pod, names: &[(&str, IpAddr)]) -> Result<Self> {
        if !Path::new(PROGRAM).exists() {
            bail!("dnsmasq is missing; run `cargo xtask setup`");
        }
        let dir = lab.dir().join(format!("dnsmasq-{}-{}", pod.namespace(), pod.name()));
        fs::create_dir_all(&dir).context("cannot create dnsmasq's folder")?;
        let [config, hosts, resolv_conf] =
            ["dnsmasq.conf", "hosts", "resolv.conf"].map(|name| dir.join(name));
        fs::write(&config, "").context("cannot write dnsmasq's configuration")?;
        fs::write(&resolv_conf, format!("nameserver {}\noptions timeout:1 attempts:1\n", pod.ips()[0]))
            .context("cannot write a resolv.conf")?;
        write(&hosts, names)?;
        let mut command = Command::new(PROGRAM);
        command.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=root", "--group=root"]);
        command.args(["--pid-file=", "--log-facility=-", "--log-queries", "--local-ttl=1", "--neg-ttl=1"]);
        command.arg(format!("--local=/{ZONE}/"));
        command.arg(format!("--conf-file={}", config.display()));
        command.arg(format!("--addn-hosts={}", hosts.display()));
        let mut process = lab.spawn(pod.netns(), &format!("dnsmasq-{}", pod.name()), command)?;
        eventually("dnsmasq to listen", START_DEADLINE, || {
            process.check_alive()?;
            pod.run(|| Ok(TcpStream::connect(("127.0.0.1", 53)).is_ok()))
        })?;
        Ok(Self { process, hosts, resolv_conf })
    }

    /// Names it to an agent.
    pub fn resolv_conf(&self) -> &Path {
        &self.resolv_conf
    }

    /// Other answers from now on.
    pub fn set(&self, names: &[(&str, IpAddr)]) -> Result<()> {
        write(&self.hosts, names)?;
        self.process.signal(Signal::SIGHUP)
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn write(path: &Path, names: &[(&str, IpAddr)]) -> Result<()> {
    let lines: String = names.iter().map(|(name, address)| format!("{address} {name}.{ZONE}\n")).collect();
    fs::write(path, lines).context("cannot write dnsmasq's names")
}
