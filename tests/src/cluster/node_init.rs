//! The first process of a node: makes the node's own view of the file system, starts its programs and reaps what is
//! left behind. Runs as process 1 of a PID namespace, with mounts, host name and cgroups of its own: when it ends, the
//! kernel ends everything on the node, as a power failure would.
//!
//! What a node writes stays the node's: `/run` is new, `/etc` and `/opt` are layers over the machine's, `/var/lib` and
//! `/var/log` are folders of the cluster's. The machine itself gets no file, mount, address or kernel setting.
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::{WaitStatus, wait};

use super::components;
use super::node_files::{CNI_BIN, CONTAINERD_SOCKET, HERE, START};
use crate::cgroups::{self, Hierarchy};
use crate::wait::eventually;

/// Debian's CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// Also on a machine that compiles something else at the same time.
const CONTAINERD_DEADLINE: Duration = Duration::from_secs(60);
/// The control plane comes first; it says itself when it does not.
const START_DEADLINE: Duration = Duration::from_secs(300);

/// How often a program of the node that fails is started again, as systemd would: a kubelet that comes before containerd
/// has everything loaded gives up.
const STARTS_MAX: u32 = 10;
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Kernel settings that are the whole machine's and that kubelet insists on: it finds them so, and the machine's own
/// stay as they are.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Never returns but by an error: a node lives until it is killed.
pub fn node_init(name: &str, state: &Path) -> Result<()> {
    let containerd = components::system("containerd", "containerd")?;
    let kubelet = components::kubernetes("kubelet")?;
    let proxy = components::kubernetes("kube-proxy")?;
    let hierarchies = cgroups::hierarchies()?;
    fs::write("/proc/sys/kernel/hostname", name).context("cannot set the node's name")?;
    mount_all(state, &hierarchies)?;

    let mut containerd = Command::new(containerd);
    containerd.args(["--config", &here("containerd.toml")]);
    let mut own = vec![Program::start("containerd", containerd)?];
    eventually("containerd to listen", CONTAINERD_DEADLINE, || Ok(Path::new(CONTAINERD_SOCKET).exists()))?;
    eventually("the control plane", START_DEADLINE, || Ok(Path::new(&here(START)).exists()))?;
    let address = fs::read_to_string(here("address")).context("cannot read the node's address")?;
    let mut kubelet = Command::new(kubelet);
    kubelet.args([
        format!("--config={}", here("kubelet.json")),
        format!("--kubeconfig={}", here("kubelet.kubeconfig")),
        format!("--hostname-override={name}"),
        format!("--node-ip={address}"),
    ]);
    own.push(Program::start("kubelet", kubelet)?);
    let mut proxy = Command::new(proxy);
    proxy.args([
        format!("--kubeconfig={}", here("kube-proxy.kubeconfig")),
        format!("--hostname-override={name}"),
        format!("--bind-address={address}"),
        format!("--cluster-cidr={}", super::PODS),
        "--proxy-mode=nftables".to_owned(),
        // The table's size and time-outs are the machine's.
        "--conntrack-max-per-core=0".to_owned(),
        "--conntrack-tcp-timeout-established=0".to_owned(),
        "--conntrack-tcp-timeout-close-wait=0".to_owned(),
        "--oom-score-adj=0".to_owned(),
        "--healthz-bind-address=127.0.0.1:10256".to_owned(),
        "--metrics-bind-address=127.0.0.1:10249".to_owned(),
    ]);
    own.push(Program::start("kube-proxy", proxy)?);
    reap(own)
}

/// One of the node's own.
struct Program {
    name: &'static str,
    command: Command,
    child: Child,
    starts: u32,
}

impl Program {
    fn start(name: &'static str, mut command: Command) -> Result<Self> {
        let child = start(&mut command)?;
        Ok(Self { name, command, child, starts: 1 })
    }
}

fn here(file: &str) -> String {
    format!("{HERE}/{file}")
}

fn start(command: &mut Command) -> Result<Child> {
    let program = PathBuf::from(command.get_program());
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let log = File::options()
        .create(true)
        .append(true)
        .open(here(&format!("logs/{name}.log")))
        .with_context(|| format!("cannot open the log of {name}"))?;
    let err = log.try_clone().context("cannot duplicate a log")?;
    command.env("PATH", components::path()?).stdin(Stdio::null()).stdout(log).stderr(err);
    command.spawn().with_context(|| format!("cannot start {name}"))
}

/// Shims and what they leave become children of process 1.
fn reap(mut own: Vec<Program>) -> Result<()> {
    loop {
        let ended = match wait() {
            Ok(status) => status,
            Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(error).context("a node without processes"),
        };
        let Some(pid) = ended.pid() else { continue };
        if !matches!(ended, WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {
            continue;
        }
        let is_it = |program: &&mut Program| program.child.id().cast_signed() == pid.as_raw();
        let Some(program) = own.iter_mut().find(is_it) else { continue };
        eprintln!("{} ended with {ended:?} (start {})", program.name, program.starts);
        if program.starts == STARTS_MAX {
            bail!("{} ended with {ended:?}, and the node with it", program.name);
        }
        thread::sleep(RESTART_PAUSE);
        program.child = start(&mut program.command)?;
        program.starts += 1;
    }
}

fn mount_all(state: &Path, hierarchies: &[Hierarchy]) -> Result<()> {
    fs_mount("proc", Path::new("/proc"), "")?;
    fs_mount("tmpfs", Path::new("/run"), "mode=755")?;
    let here = Path::new(HERE);
    make(here)?;
    bind(state, here)?;
    for (from, to) in [("var-lib", "/var/lib"), ("var-log", "/var/log")] {
        bind(&here.join(from), Path::new(to))?;
    }
    for dir in ["etc", "opt"] {
        let (upper, work) = (here.join("layers").join(dir), here.join("layers").join(format!("{dir}-work")));
        make(&upper)?;
        make(&work)?;
        let options = format!("lowerdir=/{dir},upperdir={},workdir={}", upper.display(), work.display());
        fs_mount("overlay", &Path::new("/").join(dir), &options)?;
    }
    mount_sys(hierarchies)?;
    for (setting, value) in TUNABLES {
        let (file, real) =
            (here.join("tunables").join(setting.replace('/', "-")), Path::new("/proc/sys").join(setting));
        make(&here.join("tunables"))?;
        fs::write(&file, format!("{value}\n")).with_context(|| format!("cannot write {}", file.display()))?;
        bind(&file, &real)?;
    }
    populate(here)?;
    // What is mounted from now on is seen in pods that ask for it, and the other way round.
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, shared, None::<&str>).context("cannot share the node's mounts")
}

/// A /sys that shows the node's network, and cgroups whose root is the node's own group.
fn mount_sys(hierarchies: &[Hierarchy]) -> Result<()> {
    // Not only covered: what is mounted below it would still be in the list, and runc takes the first cgroups it finds.
    umount2("/sys", MntFlags::MNT_DETACH).context("cannot take the machine's /sys away")?;
    fs_mount("sysfs", Path::new("/sys"), "")?;
    let root = Path::new("/sys/fs/cgroup");
    let only_unified = hierarchies.iter().all(|hierarchy| hierarchy.unified);
    if !only_unified {
        fs_mount("tmpfs", root, "mode=755")?;
    }
    for hierarchy in hierarchies {
        if only_unified {
            fs_mount("cgroup2", root, "")?;
            cgroups::leave_root(root)?;
            continue;
        }
        let name = hierarchy.mount.file_name().unwrap_or_default();
        let dir = root.join(name);
        make(&dir)?;
        fs_mount(if hierarchy.unified { "cgroup2" } else { "cgroup" }, &dir, &hierarchy.controllers)?;
        // Two controllers of one hierarchy are each found by their own name.
        if let Some(several) = name.to_str().filter(|name| name.contains(',')) {
            for one in several.split(',') {
                symlink(several, root.join(one)).with_context(|| format!("cannot name the cgroup {one}"))?;
            }
        }
    }
    // One of its own, or agents of two nodes would share pins.
    fs_mount("bpf", Path::new("/sys/fs/bpf"), "mode=700")
}

/// Folders and files that a node's programs expect.
fn populate(here: &Path) -> Result<()> {
    for dir in
        ["/etc/cni/net.d", CNI_BIN, "/var/lib/kubelet", "/var/lib/containerd", "/var/log/pods", "/run/lock"]
    {
        make(Path::new(dir))?;
    }
    let plugins =
        fs::read_dir(PLUGINS).with_context(|| format!("cannot list {PLUGINS}; run `cargo xtask setup`"))?;
    for plugin in plugins {
        let plugin = plugin.context("cannot list the CNI plugins")?;
        let link = Path::new(CNI_BIN).join(plugin.file_name());
        // There since the node's last start.
        if !link.exists() {
            symlink(plugin.path(), &link).with_context(|| format!("cannot create {}", link.display()))?;
        }
    }
    let network = "/etc/cni/net.d/10-nodemesh-test.conflist";
    if !Path::new(network).exists() {
        fs::copy(here.join("cni.conflist"), network).with_context(|| format!("cannot write {network}"))?;
    }
    Ok(())
}

fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot mount {} on {}", from.display(), to.display()))
}

fn fs_mount(kind: &str, to: &Path, options: &str) -> Result<()> {
    mount(Some(kind), to, Some(kind), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
        .with_context(|| format!("cannot mount {kind} on {}", to.display()))
}
