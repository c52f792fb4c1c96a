//! Who is taken for the kubelet.

use std::process::{Child, Command};

use super::*;

/// A process of this test under a program's name.
struct Running(Child, #[expect(dead_code, reason = "holds the program's folder")] tempfile::TempDir);

impl Running {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(name);
        fs::copy("/bin/sleep", &program).unwrap();
        Self(Command::new(program).arg("60").spawn().unwrap(), dir)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It ends anyway, a minute later.
        let _killed = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn found(processes: &Processes) -> Vec<u32> {
    processes.kubelets().unwrap().iter().map(|kubelet| kubelet.pid).collect()
}

/// The first 15 bytes of a name are all that the kernel shows, and the name in `stat` may hold anything.
#[test]
fn a_start_time_is_read_behind_any_name() {
    let fields = "S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
    assert_eq!(start_time(&format!("17 (kube) let) {fields}")), Some(4711));
    assert_eq!(start_time("17 (kubelet) S 1"), None);
    assert!(start_time(&fs::read_to_string("/proc/self/stat").unwrap()).is_some());
}

/// A process of the node under the kubelet's name is one, and is seen to end; under another name it is none.
#[test]
fn a_kubelet_is_known_by_its_program() {
    let processes = Processes::new(Path::new("/proc"), true).unwrap();
    let (mut kubelet, other) = (Running::new("kubelet"), Running::new("kubelet-proxy"));
    let seen = processes.kubelets().unwrap();
    let seen = seen.iter().find(|found| found.pid == kubelet.pid()).unwrap();
    assert!(is_alive(seen.handle.as_fd()) && !found(&processes).contains(&other.pid()));
    kubelet.0.kill().unwrap();
    kubelet.0.wait().unwrap();
    assert!(!is_alive(seen.handle.as_fd()));
    assert!(!found(&processes).contains(&kubelet.pid()));
}

/// A folder that shows no processes, and a kernel that cannot number them below the initial namespace, are named.
#[test]
fn what_cannot_be_recognised_is_said() {
    let empty = tempfile::tempdir().unwrap();
    let error = Processes::new(empty.path(), true).unwrap_err().to_string();
    assert!(error.contains("proc-dir") && error.contains("hostPID"), "{error}");
    let old = Processes::new(Path::new("/proc"), false);
    let initial = fs::metadata("/proc/self/ns/pid").unwrap().st_ino() == INITIAL_PIDNS_INODE;
    assert_eq!(old.is_ok(), initial);
}
