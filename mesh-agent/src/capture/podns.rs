//! Where a pod's network namespace is, found through the node's processes on any container runtime. Owns: which
//! namespace belongs to which pod, and how often the processes are looked through. Never: enrols. Called by `agent`.
//!
//! A process belongs to a pod by its cgroup, whose outer names only the kubelet and the runtime write. Its namespace
//! is the pod's if it is not the node's own and holds every address that the API server gives the pod: a process may
//! have made itself another one.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::WorkloadId;
use crate::net::netns::NetNs;

mod addresses;
mod cgroup;

use cgroup::Owner;

/// Shortest time between two looks through the processes.
const SCAN_MIN: Duration = Duration::from_millis(200);
/// Longest pause before a pod that was not found is looked for again; the pause doubles from [`SCAN_MIN`].
const SCAN_MAX: Duration = Duration::from_secs(5);
/// How often it is checked that a found namespace still is the pod's: its sandbox may have been made again.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Processes that are looked at in one scan; more than any kernel's default `pid_max` for one pod each.
const PROCESSES_MAX: usize = 1 << 20;

/// Which file names a pod's network namespace.
#[derive(Clone, Debug)]
pub enum Namespace {
    /// A file that stays, such as `/run/netns/NAME`.
    Path(PathBuf),
    /// Held open: a process's own file means another namespace once its number is used again.
    Open(Arc<NetNs>),
}

impl Namespace {
    pub fn open(&self) -> io::Result<Arc<NetNs>> {
        match self {
            Self::Path(path) => NetNs::open(path).map(Arc::new),
            Self::Open(netns) => Ok(Arc::clone(netns)),
        }
    }

    /// For messages.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Open(netns) => format!("net:[cookie {}]", netns.cookie()).into(),
        }
    }
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Path(a), Self::Path(b)) => a == b,
            (Self::Open(a), Self::Open(b)) => a.cookie() == b.cookie(),
            (Self::Path(_), Self::Open(_)) | (Self::Open(_), Self::Path(_)) => false,
        }
    }
}

impl From<PathBuf> for Namespace {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

/// A pod whose namespace is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub id: &'a WorkloadId,
    pub uid: &'a str,
    pub containers: &'a [Arc<str>],
    pub addresses: &'a [IpAddr],
}

/// A namespace that was found.
#[derive(Debug)]
struct Found {
    netns: Arc<NetNs>,
    /// What `/proc/PID/ns/net` leads to: device and inode.
    file: (u64, u64),
    /// A process in it, by which it is seen whether it still is the pod's; none where somebody told of it, who will
    /// tell of the next one too.
    process: Option<u32>,
    /// What it was found by, or what was told.
    addresses: Vec<IpAddr>,
}

impl Found {
    /// It is the namespace of a pod with these addresses, which may not be known yet.
    fn fits(&self, addresses: &[IpAddr]) -> bool {
        addresses.iter().all(|address| self.addresses.contains(address))
    }
}

/// A process, and what names its namespace: device and inode.
type Place = (u32, (u64, u64));

/// The known namespaces of this node's pods.
#[derive(Debug)]
pub struct PodNamespaces {
    proc_dir: PathBuf,
    found: HashMap<WorkloadId, Found>,
    /// Pods that were looked for in vain: when next, and the pause after that.
    missing: HashMap<WorkloadId, (Instant, Duration)>,
    next_scan: Option<Instant>,
    next_check: Option<Instant>,
    /// Grows whenever a namespace is found or told.
    changes: u64,
    /// Why nothing can be found.
    problem: Option<String>,
}

impl PodNamespaces {
    /// `proc_dir` shows the node's processes.
    pub fn new(proc_dir: PathBuf) -> Self {
        Self {
            proc_dir,
            found: HashMap::new(),
            missing: HashMap::new(),
            next_scan: None,
            next_check: None,
            changes: 0,
            problem: None,
        }
    }

    /// One that knows nothing yet, over the same processes.
    pub fn another(&self) -> Self {
        Self::new(self.proc_dir.clone())
    }

    /// The namespace of the pod with these addresses, and the addresses that it holds for it, if it is known.
    pub fn get(&self, id: &WorkloadId, addresses: &[IpAddr]) -> Option<(Namespace, Vec<IpAddr>)> {
        let found = self.found.get(id).filter(|found| found.fits(addresses))?;
        Some((Namespace::Open(Arc::clone(&found.netns)), found.addresses.clone()))
    }

    /// Some pod is looked for and not found yet.
    pub fn is_missing(&self, id: &WorkloadId) -> bool {
        self.missing.contains_key(id)
    }

    /// The pods that are looked for and of which no namespace is known, each with why.
    pub fn lost(&self) -> impl Iterator<Item = (&WorkloadId, String)> {
        let lost = self.missing.keys().filter(|id| !self.found.contains_key(*id));
        lost.map(|id| {
            let unseen =
                || format!("no process of it with its address is found in {} yet", self.proc_dir.display());
            (id, self.problem.clone().unwrap_or_else(unseen))
        })
    }

    /// A number that is another one whenever a namespace was found or told since.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether [`PodNamespaces::update`] has something to do at this time.
    pub fn is_due(&self, now: Instant) -> bool {
        let check = !self.found.is_empty() && self.next_check.is_none_or(|at| now >= at);
        check || self.missing.values().any(|(at, _)| now >= *at)
    }

    /// Takes the word of whoever made the namespace, the CNI plugin. Holds for a pod that the next
    /// [`PodNamespaces::update`] wants, even if its addresses are not known elsewhere yet.
    pub fn told(&mut self, id: &WorkloadId, addresses: Vec<IpAddr>, netns: Arc<NetNs>) -> io::Result<()> {
        let file = netns.file()?;
        self.missing.remove(id);
        self.found.insert(id.clone(), Found { netns, file, process: None, addresses });
        self.changes += 1;
        Ok(())
    }

    /// Lets go of a pod's namespace: held open, it would never end.
    pub fn forget(&mut self, id: &WorkloadId) {
        self.found.remove(id);
        self.missing.remove(id);
    }

    /// Lets go of the namespaces of pods that are no more.
    pub fn retain(&mut self, is_wanted: impl Fn(&WorkloadId) -> bool) {
        self.found.retain(|id, _| is_wanted(id));
    }

    /// Looks for the wanted pods that are not known, forgets those that are not wanted, and looks again for those
    /// whose namespace is another by now. Costs nothing while all are known and sound.
    pub fn update(&mut self, wanted: &[Wanted<'_>], now: Instant) {
        let by_id: HashMap<&WorkloadId, &Wanted<'_>> = wanted.iter().map(|one| (one.id, one)).collect();
        // What was told is kept until its teller or `retain` lets go of it: nobody could find it again at once.
        self.found.retain(|id, found| found.process.is_none() || by_id.contains_key(id));
        self.missing.retain(|id, _| by_id.contains_key(id));
        let check = self.is_due(now);
        if check {
            self.next_check = Some(now + CHECK_EVERY);
        }
        let mut search: Vec<&Wanted<'_>> = Vec::new();
        for one in wanted {
            let sound = self
                .found
                .get(one.id)
                .is_some_and(|found| found.fits(one.addresses) && (!check || self.still_there(found)));
            // Without an address nothing could be told apart.
            if sound || one.addresses.is_empty() {
                continue;
            }
            let (due, _) = *self.missing.entry(one.id.clone()).or_insert((now, SCAN_MIN));
            if now >= due {
                search.push(one);
            }
        }
        if search.is_empty() || self.next_scan.is_some_and(|at| now < at) {
            return;
        }
        self.next_scan = Some(now + SCAN_MIN);
        let (results, denied) = self.scan(&search);
        let problem = denied.map(|process| {
            format!(
                "the namespace of process {process} may not be read; the agent needs the capability SYS_PTRACE"
            )
        });
        if problem.is_some() != self.problem.is_some() {
            problem.iter().for_each(|problem| tracing::warn!("{problem}"));
        }
        self.problem = problem;
        for one in search {
            match results.get(one.id) {
                Some((process, file)) => self.take(one, *process, *file),
                None => {
                    // A namespace that was known stays: its pod may be between two sandboxes, or gone.
                    if let Some((due, pause)) = self.missing.get_mut(one.id) {
                        *due = now + *pause;
                        *pause = (*pause * 2).min(SCAN_MAX);
                    }
                }
            }
        }
    }

    fn still_there(&self, found: &Found) -> bool {
        found.process.is_none_or(|process| {
            namespace_file(&self.proc_dir, process).is_ok_and(|(_, file)| file == found.file)
        })
    }

    fn take(&mut self, one: &Wanted<'_>, process: u32, file: (u64, u64)) {
        let (path, _) = match namespace_file(&self.proc_dir, process) {
            // The process has gone, or left, meanwhile: the next scan finds another.
            Ok((path, now)) if now == file => (path, now),
            Ok(_) | Err(_) => return,
        };
        let Ok(netns) = NetNs::open(&path) else { return };
        // Between the look and the opening the number may have gone to another process.
        if netns.file().ok() != Some(file) {
            return;
        }
        let same = self.found.get(one.id).is_some_and(|found| found.netns.cookie() == netns.cookie());
        if !same {
            tracing::debug!(pod = %one.id, process, cookie = netns.cookie(), "network namespace found");
        }
        let addresses = one.addresses.to_vec();
        self.missing.remove(one.id);
        let found = Found { netns: Arc::new(netns), file, process: Some(process), addresses };
        self.found.insert(one.id.clone(), found);
        self.changes += 1;
    }

    /// Looks through all processes once. Returns process and namespace of each pod that was found, and a process of
    /// one of the others whose namespace may not be read.
    fn scan(&self, search: &[&Wanted<'_>]) -> (HashMap<WorkloadId, Place>, Option<u32>) {
        let (mut results, mut denied) = (HashMap::new(), None);
        // The agent lives in the node's network; the first process does too, where it may be looked at.
        let own = fs::metadata("/proc/thread-self/ns/net").map(|found| (found.dev(), found.ino()));
        let first = namespace_file(&self.proc_dir, 1).map(|(_, file)| file);
        let host: Vec<(u64, u64)> = own.into_iter().chain(first).collect();
        let pods: HashMap<&str, &Wanted<'_>> = search.iter().map(|one| (one.uid, *one)).collect();
        let containers: HashMap<&str, &Wanted<'_>> =
            search.iter().flat_map(|one| one.containers.iter().map(move |id| (&**id, *one))).collect();
        // Namespaces that were looked at: most of a pod's processes share one.
        let mut judged: HashMap<(&WorkloadId, (u64, u64)), bool> = HashMap::new();
        for process in processes(&self.proc_dir) {
            let root = self.proc_dir.join(process.to_string());
            let Ok(text) = fs::read_to_string(root.join("cgroup")) else { continue };
            let one = match cgroup::owner(&text) {
                Some(Owner::Pod(uid)) => pods.get(uid.as_str()),
                Some(Owner::Container(id)) => containers.get(id.as_str()),
                None => None,
            };
            let Some(one) = one.filter(|one| !results.contains_key(one.id)) else { continue };
            let file = match namespace_file(&self.proc_dir, process) {
                Ok((_, file)) => file,
                Err(error) => {
                    if error.kind() == io::ErrorKind::PermissionDenied {
                        denied = Some(process);
                    }
                    continue;
                }
            };
            let good = *judged
                .entry((one.id, file))
                .or_insert_with(|| !host.contains(&file) && addresses::holds(&root, one.addresses));
            if good {
                results.insert(one.id.clone(), (process, file));
            }
        }
        (results, denied)
    }
}

/// The processes' numbers, lowest first: a sandbox's own process is the oldest of its pod and lives longest.
fn processes(proc_dir: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(proc_dir) else { return Vec::new() };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut numbers: Vec<u32> = numbers.take(PROCESSES_MAX).collect();
    numbers.sort_unstable();
    numbers
}

/// A process's namespace: its path, and what names it among all namespaces.
fn namespace_file(proc_dir: &Path, process: u32) -> io::Result<(PathBuf, (u64, u64))> {
    let path = proc_dir.join(process.to_string()).join("ns/net");
    let found = fs::metadata(&path)?;
    Ok((path, (found.dev(), found.ino())))
}
