//! The plugin's files: put into what network plugins write, byte by byte, and taken away again.

use std::collections::BTreeMap;

use super::*;

const ENTRY: &str = r#"{"socket":"/run/nodemesh/cni.sock","type":"nodemesh-cni"}"#;
const FLANNEL: &str = include_str!("configs/10-flannel.conflist");
const CALICO: &str = include_str!("configs/10-calico.conflist");
const CILIUM: &str = include_str!("configs/05-cilium.conflist");
const BRIDGE: &str = include_str!("configs/10-bridge.conf");

/// Two folders of a node, with configurations.
struct Node {
    _dir: tempfile::TempDir,
    bin: PathBuf,
    conf: PathBuf,
}

impl Node {
    fn new(configs: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (bin, conf) = (dir.path().join("bin"), dir.path().join("net.d"));
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(&conf).unwrap();
        for (name, text) in configs {
            fs::write(conf.join(name), text).unwrap();
        }
        Self { _dir: dir, bin, conf }
    }

    fn put(&self) -> Placed {
        put_entry(&self.conf, ENTRY).unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.conf.join(name)).unwrap()
    }

    fn all(&self) -> BTreeMap<String, String> {
        let entries = fs::read_dir(&self.conf).unwrap().map(|entry| entry.unwrap().file_name());
        entries.map(|name| name.into_string().unwrap()).map(|name| (name.clone(), self.read(&name))).collect()
    }
}

fn plugins(text: &str) -> Vec<serde_json::Value> {
    let list: serde_json::Value = serde_json::from_str(text).unwrap();
    list["plugins"].as_array().unwrap().clone()
}

/// The entry is the same whatever the machine; what it says is what the plugin reads.
#[test]
fn the_entry_names_the_type_and_the_socket() {
    assert_eq!(entry(Path::new("/run/nodemesh/cni.sock")), ENTRY);
}

/// Behind the last plugin, laid out like the first, and nothing else moves.
#[test]
fn the_entry_goes_to_the_end_of_the_list() {
    let text = text::with_entry(FLANNEL, ENTRY).unwrap();
    let expected = FLANNEL.replace(
        "        \"portMappings\": true\n      }\n    }\n",
        &format!("        \"portMappings\": true\n      }}\n    }},\n    {ENTRY}\n"),
    );
    assert_eq!(text, expected);
    let text = text::with_entry(CALICO, ENTRY).unwrap();
    assert_eq!(
        text,
        CALICO.replace("\"type\":\"portmap\"}]}", &format!("\"type\":\"portmap\"}},{ENTRY}]}}"))
    );
    let text = text::with_entry(CILIUM, ENTRY).unwrap();
    assert_eq!(text, CILIUM.replace("    }\n  ]", &format!("    }},\n    {ENTRY}\n  ]")));
}

/// Put once, put again, taken away: the files of each network plugin come back byte by byte.
#[test]
fn what_was_put_comes_away_without_a_trace() {
    for (name, text, list) in [
        ("10-flannel.conflist", FLANNEL, "10-flannel.conflist"),
        ("10-calico.conflist", CALICO, "10-calico.conflist"),
        ("05-cilium.conflist", CILIUM, "05-cilium.conflist"),
        ("10-bridge.conf", BRIDGE, "10-bridge.conflist"),
    ] {
        let node = Node::new(&[(name, text), ("calico-kubeconfig", "apiVersion: v1\n")]);
        let before = node.all();
        let path = node.conf.join(list);
        assert_eq!(node.put(), Placed::Now(path.clone()), "{name}");
        let put = node.all();
        assert_eq!(put.len(), 2, "{name}: {put:?}");
        assert_eq!(plugins(&put[list]).last().unwrap()["type"], PLUGIN);
        assert_eq!(node.put(), Placed::Already(path), "{name}");
        assert_eq!(node.all(), put, "{name}: put twice");
        assert!(remove(&node.bin, &node.conf).unwrap());
        assert_eq!(node.all(), before, "{name}");
        assert!(!remove(&node.bin, &node.conf).unwrap(), "{name}: nothing is left to take away");
    }
}

/// A single configuration becomes a list that runtimes take for the same network.
#[test]
fn a_single_configuration_becomes_a_list() {
    let node = Node::new(&[("10-bridge.conf", BRIDGE)]);
    node.put();
    let list: serde_json::Value = serde_json::from_str(&node.read("10-bridge.conflist")).unwrap();
    let single: serde_json::Value = serde_json::from_str(BRIDGE).unwrap();
    assert_eq!((&list["name"], &list["cniVersion"]), (&single["name"], &single["cniVersion"]));
    assert_eq!(list["plugins"][0], single);
    assert_eq!(list["plugins"].as_array().unwrap().len(), 2);
}

/// A list that somebody has changed since keeps the change, whichever side of the entry it is on.
#[test]
fn changes_of_others_survive_the_removal() {
    let node = Node::new(&[("10-flannel.conflist", FLANNEL)]);
    node.put();
    let tuned = "{\"type\":\"tuning\"}";
    let changed = node.read("10-flannel.conflist").replace(ENTRY, &format!("{ENTRY},\n    {tuned}"));
    fs::write(node.conf.join("10-flannel.conflist"), &changed).unwrap();
    remove(&node.bin, &node.conf).unwrap();
    let kinds: Vec<_> =
        plugins(&node.read("10-flannel.conflist")).iter().map(|it| it["type"].clone()).collect();
    assert_eq!(kinds, ["flannel", "portmap", "tuning"]);

    let node = Node::new(&[("10-bridge.conf", BRIDGE)]);
    node.put();
    let newer = BRIDGE.replace("cni0", "cni1");
    fs::write(node.conf.join("10-bridge.conf"), &newer).unwrap();
    assert_eq!(
        node.put(),
        Placed::Now(node.conf.join("10-bridge.conflist")),
        "written anew by its installer"
    );
    remove(&node.bin, &node.conf).unwrap();
    assert_eq!(node.all(), BTreeMap::from([("10-bridge.conf".to_owned(), newer)]));
}

/// Another socket, or an entry that stands before the end: there is one entry afterwards, and it is last.
#[test]
fn there_is_one_entry_and_it_is_last() {
    let other = "{\"type\":\"nodemesh-cni\",\"socket\":\"/old.sock\"}";
    for text in [
        format!("{{\"plugins\":[{other},{{\"type\":\"bridge\"}}]}}"),
        format!("{{\"plugins\":[{{\"type\":\"bridge\"}},{other}]}}"),
        format!("{{\"plugins\":[{other},{{\"type\":\"bridge\"}},{ENTRY}]}}"),
    ] {
        let put = text::with_entry(&text, ENTRY).unwrap();
        assert_eq!(put, format!("{{\"plugins\":[{{\"type\":\"bridge\"}},{ENTRY}]}}"), "{text}");
    }
}

/// The first configuration that a runtime would take is the one; an entry in another does not stay.
#[test]
fn only_the_first_usable_configuration_is_touched() {
    let node = Node::new(&[
        ("00-broken.conflist", "{\"plugins\": ["),
        ("01-empty.conflist", "{\"name\":\"x\",\"plugins\":[]}"),
        ("02-ours-alone.conflist", &format!("{{\"plugins\":[{ENTRY}]}}")),
        ("10-flannel.conflist", FLANNEL),
        ("20-bridge.conf", BRIDGE),
        ("README", "{\"plugins\":[]}"),
    ]);
    let before = node.all();
    assert_eq!(node.put(), Placed::Now(node.conf.join("10-flannel.conflist")));
    fs::write(node.conf.join("05-cilium.conflist"), CILIUM).unwrap();
    assert_eq!(node.put(), Placed::Now(node.conf.join("05-cilium.conflist")));
    let mut after = node.all();
    assert!(after.remove("05-cilium.conflist").unwrap().contains(PLUGIN));
    assert_eq!(after, before);
}

/// A node without a network plugin yet, and one whose folder is not there.
#[test]
fn a_node_without_network_has_no_place() {
    assert_eq!(Node::new(&[]).put(), Placed::Nowhere);
    let error = put_entry(Path::new("/nonexistent/net.d"), ENTRY).unwrap_err().to_string();
    assert!(error.contains("cni-conf-dir") && error.contains("/nonexistent/net.d"), "{error}");
}

/// A list whose note of the single file is a path is no list of ours: nothing is written outside the folder.
#[test]
fn the_name_of_a_single_file_is_no_path() {
    let list =
        format!("{{\"nodemesh.io/single\":\"../x.conf\",\"plugins\":[{{\"type\":\"bridge\"}},{ENTRY}]}}");
    let node = Node::new(&[("10-x.conflist", &list)]);
    assert!(remove(&node.bin, &node.conf).unwrap());
    assert!(!node.conf.join("../x.conf").exists());
    assert_eq!(plugins(&node.read("10-x.conflist")).len(), 1);
}

/// Mode and owner of the configuration stay: it may hold what only root may read.
#[test]
fn the_mode_of_a_configuration_stays() {
    let node = Node::new(&[("10-calico.conflist", CALICO)]);
    let path = node.conf.join("10-calico.conflist");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    node.put();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

/// More files than a configuration folder has are named as what they are, and none is touched.
#[test]
fn a_folder_of_other_things_is_left_alone() {
    let node = Node::new(&[]);
    for number in 0..=CONFIGS_MAX {
        fs::write(node.conf.join(format!("{number:04}.conflist")), FLANNEL).unwrap();
    }
    assert!(matches!(put_entry(&node.conf, ENTRY), Err(FilesError::TooMany { .. })));
    assert_eq!(node.read("0000.conflist"), FLANNEL);
}

/// The program appears whole and can be run; an equal one is left, another one replaced, and it goes with the rest.
#[test]
fn the_program_is_put_and_taken_away() {
    let node = Node::new(&[]);
    let program = node.conf.join("program");
    fs::write(&program, "one").unwrap();
    assert!(put_program(&node.bin, &program).unwrap());
    let target = node.bin.join(PLUGIN);
    let first = fs::metadata(&target).unwrap();
    assert_eq!(first.permissions().mode() & 0o777, 0o755);
    assert!(!put_program(&node.bin, &program).unwrap());
    assert_eq!(fs::metadata(&target).unwrap().ino(), first.ino());
    fs::write(&program, "two").unwrap();
    assert!(put_program(&node.bin, &program).unwrap());
    assert_eq!(fs::read(&target).unwrap(), b"two");
    assert_eq!(fs::read_dir(&node.bin).unwrap().count(), 1, "no half-written program stays");
    assert!(remove(&node.bin, &node.conf).unwrap());
    assert!(!target.exists());
}
