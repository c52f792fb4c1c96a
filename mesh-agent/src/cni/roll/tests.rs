//! What the plugin goes by while no agent answers.

use super::*;

/// Only what an agent has written down as outside is outside: a missing, cut or foreign file means nobody.
#[test]
fn who_is_not_on_the_roll_is_in_the_mesh() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("cni.sock");
    assert!(!is_outside(&socket, "default"));
    let mut writer = Writer::new(&socket);
    writer.write(["default", "kube-system"].into_iter()).unwrap();
    assert!(is_outside(&socket, "default") && is_outside(&socket, "kube-system"));
    assert!(!is_outside(&socket, "shop"));
    writer.write(["default"].into_iter()).unwrap();
    assert!(!is_outside(&socket, "kube-system"), "enrolled since");
    let file = path(&socket);
    assert_eq!(file, dir.path().join("cni.namespaces"));
    for broken in ["", "{\"outside\":[\"default\"", "[\"default\"]", "{\"outside\":\"default\"}"] {
        fs::write(&file, broken).unwrap();
        assert!(!is_outside(&socket, "default"), "{broken}");
    }
}

/// The file is the agent's alone, appears whole, and is not written again without need.
#[test]
fn the_roll_is_written_in_one_step() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("cni.sock");
    let mut writer = Writer::new(&socket);
    writer.write(["default"].into_iter()).unwrap();
    let first = fs::metadata(path(&socket)).unwrap();
    assert_eq!(first.permissions().mode() & 0o777, 0o600);
    writer.write(["default"].into_iter()).unwrap();
    assert_eq!(fs::metadata(path(&socket)).unwrap().ino(), first.ino());
    writer.write(["default", "other"].into_iter()).unwrap();
    assert_ne!(fs::metadata(path(&socket)).unwrap().ino(), first.ino());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no half-written file stays");
}
