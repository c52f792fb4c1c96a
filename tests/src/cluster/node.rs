//! A node: namespaces of its own with kubelet, kube-proxy and containerd inside. It can be killed and booted again.
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;

use super::node_files::{CONTAINERD_SOCKET, START};
use super::{binary, components};
use crate::cgroups;
use crate::ip;
use crate::netns::{self, NetNs};
use crate::process::{self, LAB_VARIABLE, Process};
use crate::wait::eventually;

const INIT_DEADLINE: Duration = Duration::from_secs(30);
const CONTAINERD_DEADLINE: Duration = Duration::from_secs(60);
const LOG_LINES: usize = 25;

/// Joins the folders of cgroups up to `--`, then becomes what follows.
const JOIN: &str = r#"while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || { echo "cannot join $1" >&2; exit 1; }; shift; done; shift; exec "$@""#;

/// Who and where a node is.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) index: u8,
    pub(super) address: Ipv4Addr,
    /// The range of its pods.
    pub(super) pods: String,
}

pub struct Node {
    lab: String,
    plan: Plan,
    state: PathBuf,
    /// The namespace of the bridge, where the node's cable ends.
    link: NetNs,
    running: Mutex<Option<Running>>,
}

struct Running {
    netns: NetNs,
    /// `unshare`, which lives as long as the node.
    process: Process,
    /// The node's process 1, as the machine numbers it.
    init: i32,
    since: SystemTime,
    cgroups: Vec<PathBuf>,
}

impl Node {
    pub(super) fn new(lab: &str, plan: Plan, bulk: &Path, link: &NetNs) -> Result<Self> {
        let state = bulk.join(&plan.name);
        fs::create_dir_all(state.join("logs")).context("cannot create a node's folder")?;
        Ok(Self { lab: lab.to_owned(), plan, state, link: link.try_clone()?, running: Mutex::new(None) })
    }

    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Its address on the link between nodes.
    pub fn ip(&self) -> Ipv4Addr {
        self.plan.address
    }

    /// What the machine sees as the node's own folder; the node sees it at `/run/nodemesh-node`.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Its network namespace; another one after each boot.
    pub fn netns(&self) -> Result<NetNs> {
        self.with(|running| running.netns.try_clone())
    }

    /// The node's process 1 as the machine numbers it: `/proc/PID/root` is what the node sees.
    pub fn init_pid(&self) -> Result<i32> {
        self.with(|running| Ok(running.init))
    }

    /// When it was booted last; the future when it is not running.
    pub(super) fn booted(&self) -> SystemTime {
        self.with(|running| Ok(running.since))
            .unwrap_or_else(|_| SystemTime::now() + Duration::from_secs(3600))
    }

    fn with<T>(&self, work: impl FnOnce(&Running) -> Result<T>) -> Result<T> {
        let running = self.running.lock();
        work(running.as_ref().with_context(|| format!("{} is not running", self.plan.name))?)
    }

    /// Starts it with everything it had on its disk. Does not wait until it is Ready: `Cluster::wait_nodes` does.
    pub fn boot(&self) -> Result<()> {
        let mut slot = self.running.lock();
        if slot.is_some() {
            bail!("{} is running already", self.plan.name);
        }
        let since = SystemTime::now();
        let netns = NetNs::create(&format!("{}-{}", self.lab, self.plan.name), || {
            ip::sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/disable_ipv6", "0")])
        })?;
        self.connect(&netns)?;
        let groups = cgroups::create(&self.lab, &self.plan.name)?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", JOIN, "join"]).args(&groups).arg("--");
        // Their end is one: `unshare` passes a kill on to process 1, and whoever kills that ends the node.
        command.args(["unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child"]);
        command.args(["--propagation", "private"]).arg(binary()?).arg("node-init").arg(&self.plan.name);
        command.arg(&self.state).env("PATH", components::path()?);
        let mut process = Process::start(&netns, &self.lab, command, &self.log("init"))?;
        let mut init = 0;
        eventually(&format!("the first process of {}", self.plan.name), INIT_DEADLINE, || {
            process.check_alive()?;
            let pid = process.pid();
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            init = children.split_whitespace().next().and_then(|child| child.parse().ok()).unwrap_or(0);
            Ok(init > 0)
        })?;
        *slot = Some(Running { netns, process, init, since, cgroups: groups });
        Ok(())
    }

    /// As a power failure: every process of the node ends at once, its network and all it had in memory are gone.
    pub fn kill(&self) -> Result<()> {
        let mut running =
            self.running.lock().take().with_context(|| format!("{} is not running", self.plan.name))?;
        // The init first: when its end is reported, the kernel has ended all the others.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.init), nix::sys::signal::Signal::SIGKILL)
            .with_context(|| format!("cannot kill {}", self.plan.name))?;
        running.process.wait(INIT_DEADLINE)?;
        for dir in &running.cgroups {
            cgroups::remove(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        self.link.run(|| ip::batch(&format!("link del n{}\n", self.plan.index)))?;
        netns::remove(running.netns.name()).context("cannot remove a node's namespace")
    }

    /// The cable to the bridge, and the ways to the other nodes' pods.
    fn connect(&self, netns: &NetNs) -> Result<()> {
        let (cable, name) = (format!("n{}", self.plan.index), netns.name());
        // A machine keeps its card over a boot. With another one the neighbours would go on sending to the old address
        // until their ARP entries are in doubt, which takes up to 45 s.
        let mac = format!("02:00:0a:c8:00:{:02x}", self.plan.index);
        self.link.run(|| {
            ip::batch(&format!(
                "link add {cable} type veth peer name eth0 address {mac} netns {name}\nlink set {cable} master br0 up\n"
            ))
        })?;
        let mut lines = format!(
            "link set lo up\naddress add {}/24 dev eth0\nlink set eth0 up\nroute add default via {}\n",
            self.plan.address,
            super::LINK_ADDRESS
        );
        for (range, via) in super::ways(self.plan.index) {
            lines.push_str(&format!("route add {range} via {via}\n"));
        }
        netns.run(|| ip::batch(&lines))
    }

    /// A program on the node, in all its namespaces and cgroups, as if somebody were logged in there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        self.with(|running| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", JOIN, "join"]).args(&running.cgroups).arg("--");
            command.args(["nsenter", "--target", &running.init.to_string()]);
            command.args(["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--"]).arg(program);
            command.env("PATH", components::path()?).env(LAB_VARIABLE, &self.lab);
            Ok(command)
        })
    }

    /// Runs a command line on the node and gives its standard output.
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().context("an empty command")?;
        let mut command = self.command(program)?;
        command.args(arguments);
        let out = command.stdin(Stdio::null()).output().context("cannot start nsenter")?;
        self.checked(words, out)
    }

    fn exec_with_input(&self, words: &[&str], input: &[u8]) -> Result<String> {
        let (program, arguments) = words.split_first().context("an empty command")?;
        let mut command = self.command(program)?;
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start nsenter")?;
        let stdin = child.stdin.take();
        let out = thread::scope(|scope| {
            // One that does not read to the end says why by itself.
            scope.spawn(|| stdin.map(|mut pipe| pipe.write_all(input)));
            child.wait_with_output()
        });
        self.checked(words, out.context("waiting for a program on a node")?)
    }

    fn checked(&self, words: &[&str], out: Output) -> Result<String> {
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!("`{}` on {} ended with {}: {}", words.join(" "), self.plan.name, out.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Puts the images of an archive into the node's containerd.
    pub fn load_image(&self, archive: &[u8]) -> Result<()> {
        let ctr = components::system("ctr", "containerd")?;
        let ctr = ctr.to_str().context("a path that is no text")?;
        self.exec_with_input(&[ctr, "--namespace", "k8s.io", "images", "import", "-"], archive).map(drop)
    }

    pub(super) fn wait_containerd(&self) -> Result<()> {
        let root = format!("/proc/{}/root", self.init_pid()?);
        let socket = PathBuf::from(format!("{root}{CONTAINERD_SOCKET}"));
        let done = eventually(&format!("containerd on {}", self.plan.name), CONTAINERD_DEADLINE, || {
            self.check_alive()?;
            // The node's own /run, as long as the link of a process leads there.
            Ok(socket.exists())
        });
        done.map(drop).with_context(|| self.last_words())
    }

    /// Lets kubelet and kube-proxy start.
    pub(super) fn release(&self) -> Result<()> {
        fs::write(self.state.join(START), "").context("cannot start a node's kubelet")
    }

    pub fn check_alive(&self) -> Result<()> {
        let mut running = self.running.lock();
        running.as_mut().with_context(|| format!("{} is not running", self.plan.name))?.process.check_alive()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.state.join("logs").join(format!("{name}.log"))
    }

    /// The ends of its programs' logs, for a failure's message.
    pub fn last_words(&self) -> String {
        let mut text = format!("what {} said last:", self.plan.name);
        for name in ["init", "containerd", "kubelet", "kube-proxy"] {
            if let Ok(log) = fs::read_to_string(self.log(name)) {
                text.push_str(&format!(
                    "\n---- {} {name}\n{}",
                    self.plan.name,
                    process::tail(&log, LOG_LINES)
                ));
            }
        }
        text
    }
}
