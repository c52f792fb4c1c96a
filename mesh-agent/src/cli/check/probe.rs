//! What the machine must have, read from procfs and sysfs and judged apart from the reading.
//! Owns: the requirements that can be seen without loading a program (`capture` owns the others).

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use crate::admin::Check;
use crate::config::{DEFAULT_METRICS, DEFAULT_READINESS};

/// Oldest kernel with all that the programs need (`bpf_get_netns_cookie` in sock_addr, sk_lookup, cgroup links).
pub(in crate::cli) const KERNEL_MIN: (u32, u32) = (5, 15);

const MACHINE: &str = "machine";
/// Numbers of `capabilities(7)`.
const CAPABILITIES: [(&str, u32, &str); 2] = [
    ("CAP_NET_ADMIN", 12, "transparent sockets and routes"),
    // It implies CAP_BPF and CAP_PERFMON.
    ("CAP_SYS_ADMIN", 21, "loading the kernel programs and entering the pods' network namespaces"),
];

/// What was read. `None`: could not be read.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) release: Option<String>,
    /// `CapEff` of `/proc/self/status`.
    pub(super) capabilities: Option<u64>,
    /// `/proc/self/mounts`.
    pub(super) mounts: String,
    pub(super) btf: bool,
}

impl Facts {
    pub(super) fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let capabilities = read("/proc/self/status").and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        });
        Self {
            release: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            capabilities,
            mounts: read("/proc/self/mounts").unwrap_or_default(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        }
    }
}

/// Every requirement, judged.
pub(super) fn machine(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![kernel(facts)];
    checks.extend(CAPABILITIES.iter().map(|row| capability(facts, row)));
    checks.push(btf(facts));
    checks.push(cgroup(facts));
    checks.push(bpffs(facts));
    checks
}

/// The agent's own default ports in the namespace of the node.
pub(super) fn ports() -> Vec<Check> {
    [("metrics", DEFAULT_METRICS), ("readiness", DEFAULT_READINESS)].into_iter().map(port).collect()
}

fn kernel(facts: &Facts) -> Check {
    let (major, minor) = KERNEL_MIN;
    let Some(release) = &facts.release else {
        return Check::fail(MACHINE, "kernel", "the version cannot be read", "mount procfs at /proc");
    };
    match version(release) {
        Some(found) if found >= KERNEL_MIN => Check::pass(MACHINE, "kernel", release),
        Some(_) => {
            let detail = format!("{release} is older than {major}.{minor}");
            Check::fail(MACHINE, "kernel", detail, "boot a kernel of 5.15 or newer")
        }
        None => Check::warn(
            MACHINE,
            "kernel",
            format!("`{release}` is no version"),
            "make sure that it is 5.15 or newer",
        ),
    }
}

pub(in crate::cli) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn capability(facts: &Facts, (name, bit, purpose): &(&str, u32, &str)) -> Check {
    let held = facts.capabilities.is_some_and(|set| set & (1 << bit) != 0);
    if held {
        return Check::pass(MACHINE, name, format!("for {purpose}"));
    }
    Check::fail(
        MACHINE,
        name,
        format!("missing, for {purpose}"),
        "run as root, or give the container this capability",
    )
}

fn btf(facts: &Facts) -> Check {
    if facts.btf {
        return Check::pass(MACHINE, "BTF", "/sys/kernel/btf/vmlinux");
    }
    let remedy = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, and mount sysfs at /sys";
    Check::fail(MACHINE, "BTF", "/sys/kernel/btf/vmlinux is missing", remedy)
}

fn cgroup(facts: &Facts) -> Check {
    match mount(&facts.mounts, "cgroup2") {
        Some(path) => Check::pass(MACHINE, "cgroup v2", path),
        None => Check::fail(
            MACHINE,
            "cgroup v2",
            "not mounted",
            "boot with systemd.unified_cgroup_hierarchy=1, or: mount -t cgroup2 none /sys/fs/cgroup",
        ),
    }
}

fn bpffs(facts: &Facts) -> Check {
    match mount(&facts.mounts, "bpf") {
        Some(path) => Check::pass(MACHINE, "bpffs", path),
        None => Check::warn(
            MACHINE,
            "bpffs",
            "not mounted; the agent will mount it",
            "in a container, mount /sys/fs/bpf from the host, or restarts lose what is pinned",
        ),
    }
}

/// Where the first file system of a kind is mounted; spaces are written `\040` in that file and left so.
fn mount<'a>(mounts: &'a str, kind: &str) -> Option<&'a str> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, found) = (words.next()?, words.next()?);
        (found == kind).then_some(path)
    })
}

fn port((name, address): (&str, &str)) -> Check {
    let name = format!("{name} port");
    let bound = address.parse::<SocketAddr>().map_err(|error| error.to_string());
    match bound.and_then(|address| TcpListener::bind(address).map_err(|error| error.to_string())) {
        Ok(_free) => Check::pass(MACHINE, &name, format!("{address} is free")),
        Err(error) => Check::fail(
            MACHINE,
            &name,
            format!("{address}: {error}"),
            "stop what listens there, or give the agent another address",
        ),
    }
}
