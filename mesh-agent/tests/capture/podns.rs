//! Pods' namespaces found through the node's processes: real namespaces, real processes in real cgroups.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mesh_agent::capture::{Namespace, PodNamespaces, Wanted};
use mesh_agent::model::WorkloadId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Node, Pod, Space, eventually};

/// A cgroup of a pod, with the processes that were put into it; both go with it.
struct Group {
    path: PathBuf,
    root: PathBuf,
    processes: Vec<i32>,
}

impl Group {
    /// `below` is what the kubelet or a runtime would call it.
    fn new(below: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let v2 = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let v2 = v2.expect("no cgroup v2 hierarchy is mounted").split(' ').nth(1).unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(v2).join(format!("nodemesh-podns-{}-{number}", std::process::id()));
        let path = root.join(below);
        fs::create_dir_all(&path).unwrap();
        Self { path, root, processes: Vec::new() }
    }

    fn sleeper(&mut self, space: &Space) -> i32 {
        let process = space.sleeper();
        self.processes.push(process);
        fs::write(self.path.join("cgroup.procs"), process.to_string()).unwrap();
        process
    }

    fn end(&mut self, process: i32) {
        kill(Pid::from_raw(process), Signal::SIGKILL).unwrap();
        self.processes.retain(|other| *other != process);
        eventually("the process is gone", || !PathBuf::from(format!("/proc/{process}/ns/net")).exists());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for process in &self.processes {
            let _gone = kill(Pid::from_raw(*process), Signal::SIGKILL);
        }
        let until = Instant::now() + Duration::from_secs(5);
        let mut path = self.path.clone();
        while path.starts_with(&self.root) {
            while fs::remove_dir(&path).is_err() && path.exists() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            path.pop();
        }
    }
}

const UID: &str = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";
const CONTAINER: &str = "7e0a6a2f8b9b6f0d3c5a1e2d4f60718293a4b5c6d7e8f90112233445566778aa";

/// A UID that no other test, running now, uses.
fn uid() -> String {
    format!("{:08x}{}", fastrand::u32(..), &UID[8..])
}

struct Sought {
    id: WorkloadId,
    uid: String,
    containers: Vec<Arc<str>>,
    addresses: Vec<IpAddr>,
}

impl Sought {
    fn new(pod: &Pod) -> Self {
        Self { id: pod.id.clone(), uid: uid(), containers: Vec::new(), addresses: vec![pod.v4, pod.v6] }
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted { id: &self.id, uid: &self.uid, containers: &self.containers, addresses: &self.addresses }
    }

    /// The cookie of the namespace that is found at this time.
    fn found(&self, namespaces: &mut PodNamespaces, now: Instant) -> Option<u64> {
        namespaces.update(&[self.wanted()], now);
        let (netns, addresses) = namespaces.get(&self.id, &self.addresses)?;
        assert_eq!(addresses, self.addresses);
        assert!(matches!(netns, Namespace::Open(_)), "a path could mean another namespace later");
        Some(netns.open().unwrap().cookie())
    }
}

fn namespaces() -> PodNamespaces {
    PodNamespaces::new("/proc".into())
}

#[test]
fn a_pods_namespace_is_found_by_the_uid_in_its_processes_cgroup() {
    let node = Node::new();
    let (pod, other) = (node.pod("a"), node.pod("b"));
    let (sought, neighbour) = (Sought::new(&pod), Sought::new(&other));
    let under = neighbour.uid.replace('-', "_");
    let mut group = Group::new(&format!("kubepods/burstable/pod{}/{CONTAINER}", sought.uid));
    let mut slice = Group::new(&format!("kubepods.slice/kubepods-pod{under}.slice/cri-containerd-x.scope"));
    group.sleeper(&pod.space);
    slice.sleeper(&other.space);
    let now = Instant::now();
    let mut namespaces = namespaces();
    namespaces.update(&[sought.wanted(), neighbour.wanted()], now);
    let cookie = |sought: &Sought| {
        let (netns, _) = namespaces.get(&sought.id, &sought.addresses).expect("not found");
        netns.open().unwrap().cookie()
    };
    assert_eq!(cookie(&sought), pod.cookie());
    assert_eq!(cookie(&neighbour), other.cookie());
    namespaces.update(&[neighbour.wanted()], now);
    assert!(namespaces.get(&sought.id, &sought.addresses).is_none(), "a pod that is not wanted is forgotten");
}

#[test]
fn a_container_id_leads_to_the_pod_where_the_kubelet_makes_no_groups() {
    let node = Node::new();
    let pod = node.pod("a");
    let container = format!("{:016x}{}", fastrand::u64(..), &CONTAINER[16..]);
    let mut group = Group::new(&format!("k8s.io/{container}"));
    group.sleeper(&pod.space);
    let mut sought = Sought::new(&pod);
    let (mut namespaces, now) = (namespaces(), Instant::now());
    assert_eq!(sought.found(&mut namespaces, now), None, "nobody has said whose container it is");
    sought.containers.push(container.into());
    let later = now + Duration::from_secs(10);
    assert_eq!(sought.found(&mut namespaces, later), Some(pod.cookie()));
}

#[test]
fn neither_the_nodes_namespace_nor_one_without_the_pods_addresses_is_taken() {
    let node = Node::new();
    let (pod, elsewhere) = (node.pod("a"), node.pod("elsewhere"));
    let sought = Sought::new(&pod);
    let mut group = Group::new(&format!("kubepods/pod{}", sought.uid));
    // The pod's own process in a namespace that it has made itself, and one in the namespace of the node.
    group.sleeper(&elsewhere.space);
    let mut command = std::process::Command::new("sleep");
    let mut host = command.arg("600").spawn().unwrap();
    fs::write(group.path.join("cgroup.procs"), host.id().to_string()).unwrap();
    let (mut namespaces, now) = (namespaces(), Instant::now());
    let before = sought.found(&mut namespaces, now);
    host.kill().unwrap();
    host.wait().unwrap();
    assert_eq!(before, None);
    assert!(namespaces.is_missing(&sought.id));
    group.sleeper(&pod.space);
    assert_eq!(sought.found(&mut namespaces, now), None, "a pod that was missing is not looked for at once");
    let later = now + Duration::from_secs(10);
    assert!(namespaces.is_due(later));
    assert_eq!(sought.found(&mut namespaces, later), Some(pod.cookie()));
    assert!(!namespaces.is_missing(&sought.id));
}

#[test]
fn a_sandbox_that_was_made_again_is_found_and_until_then_the_old_one_stays() {
    let node = Node::new();
    let pod = node.pod("a");
    let sought = Sought::new(&pod);
    let mut group = Group::new(&format!("kubepods/pod{}", sought.uid));
    let process = group.sleeper(&pod.space);
    let (mut namespaces, start) = (namespaces(), Instant::now());
    assert_eq!(sought.found(&mut namespaces, start), Some(pod.cookie()));
    group.end(process);
    let after = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(
        sought.found(&mut namespaces, after(2)),
        Some(pod.cookie()),
        "the pod may be between two sandboxes"
    );
    // The same address again, on another node's network so that the two do not meet.
    let second = Node::new();
    let again = second.pod("a");
    assert_eq!(again.v4, pod.v4);
    group.sleeper(&again.space);
    assert_eq!(sought.found(&mut namespaces, after(10)), Some(again.cookie()));
}

#[test]
fn what_the_maker_of_a_namespace_tells_holds_before_the_addresses_are_known_elsewhere() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut sought = Sought::new(&pod);
    let told = sought.addresses.clone();
    sought.addresses.clear();
    let mut namespaces = namespaces();
    let netns = Namespace::Path(pod.space.path()).open().unwrap();
    namespaces.told(&sought.id, told.clone(), netns).unwrap();
    namespaces.update(&[sought.wanted()], Instant::now());
    let (netns, addresses) = namespaces.get(&sought.id, &[]).expect("the word was forgotten");
    assert_eq!((netns.open().unwrap().cookie(), addresses), (pod.cookie(), told));
    let moved: [IpAddr; 1] = ["10.99.0.99".parse().unwrap()];
    assert!(namespaces.get(&sought.id, &moved).is_none(), "the pod has another address: another namespace");
}
