//! The plugin's files stay in place while the node's network plugin writes its own anew.

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::*;
use crate::cni::PLUGIN;

const LIST: &str = "{\"name\":\"net\",\"plugins\":[{\"type\":\"bridge\"}]}";
const PATIENCE: Duration = Duration::from_secs(5);

fn eventually(what: &str, good: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !good() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn has_entry(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.contains(PLUGIN))
}

/// Installed before there is a network, put in when it comes, put back when it is written anew, and left at the end.
#[test]
fn the_entry_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (bin_dir, conf_dir) = (dir.path().join("bin"), dir.path().join("net.d"));
    fs::create_dir_all(&bin_dir).unwrap();
    fs::create_dir_all(&conf_dir).unwrap();
    let program = dir.path().join("program");
    fs::write(&program, "a program").unwrap();
    let config = conf_dir.join("10-net.conflist");
    let socket = PathBuf::from("/run/nodemesh/cni.sock");
    let kept = Kept { bin_dir: bin_dir.clone(), conf_dir, program, socket };
    let keeper = Keeper::start(kept).unwrap();
    eventually("the program", || bin_dir.join(PLUGIN).exists());
    for _round in 0..3 {
        fs::write(&config, LIST).unwrap();
        eventually("the entry", || has_entry(&config));
    }
    drop(keeper);
    assert!(has_entry(&config) && bin_dir.join(PLUGIN).exists(), "an agent that ends leaves its plugin");
    fs::write(&config, LIST).unwrap();
    std::thread::sleep(2 * LOOK_MIN);
    assert!(!has_entry(&config), "the thread has not ended");
}
