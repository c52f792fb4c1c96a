use std::fs;

use super::*;
use crate::compile::MeshSettings;
use crate::model::{Limit, Reason};
use crate::world::World;

const NAMESPACE: &str =
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {nodemesh.io/mesh: enabled}}\n";

fn pod(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{nodeName: n1, containers: []}}\nstatus: {{podIPs: [{{ip: {address}}}]}}\n"
    )
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

struct Setup {
    folder: tempfile::TempDir,
    store: Arc<WorldStore>,
    handle: DirHandle,
    hits: Hits,
}

impl Setup {
    fn new(files: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self::on(folder)
    }

    fn on(folder: tempfile::TempDir) -> Self {
        let store = Arc::new(WorldStore::new(World::new(MeshSettings::default())));
        let hits = Hits::default();
        let settings = DirSettings { hits: hits.clone(), ..DirSettings::default() };
        let handle = DirSource::start(folder.path(), settings, Arc::clone(&store)).unwrap();
        Self { folder, store, handle, hits }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// Waits until it holds; the promise is one second, the rest is for a busy machine.
    fn until(&self, what: &str, holds: impl Fn(&World, &DirStatus) -> bool) {
        let start = Instant::now();
        while !holds(&self.store.load(), &self.handle.status()) {
            assert!(start.elapsed() < Duration::from_secs(5), "{what}: {:?}", self.handle.status());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn has(&self, name: &str) -> bool {
        self.store.load().pod("shop", name).is_some()
    }

    fn errors(&self) -> Vec<String> {
        self.handle.status().errors.iter().map(ToString::to_string).collect()
    }
}

fn verdict(world: &World) -> Option<Reason> {
    let dst = world.pod("shop", "a").unwrap();
    let facts = crate::decide::inbound::ConnFacts {
        peer: None,
        source_ip: [10, 0, 0, 9].into(),
        destination: ([10, 0, 0, 1], 80).into(),
    };
    crate::decide::inbound::judge(world, dst, &facts).reason
}

#[test]
fn the_first_load_is_done_when_start_returns_and_hidden_and_other_files_are_left_alone() {
    let setup = Setup::new(&[
        (
            "shop.yaml",
            format!("{NAMESPACE}---\n{}---\n# nothing\n---\n{}", pod("a", "10.0.0.1"), pod("b", "10.0.0.2")),
        ),
        (".hidden.yaml", pod("c", "10.0.0.3")),
        ("notes.txt", pod("d", "10.0.0.4")),
        ("more.yml", pod("e", "10.0.0.5")),
    ]);
    let world = setup.store.load();
    assert_eq!((world.version, world.workloads().count()), (1, 3));
    assert!(world.pod("shop", "a").unwrap().enrolled);
    let status = setup.handle.status();
    assert_eq!((status.files, status.objects, status.errors.len(), status.stale_since), (2, 4, 0, None));
}

#[test]
fn a_folder_that_does_not_exist_is_named() {
    let store = Arc::new(WorldStore::new(World::new(MeshSettings::default())));
    let error = DirSource::start(Path::new("/nonexistent/x"), DirSettings::default(), store).err().unwrap();
    assert!(error.to_string().contains("/nonexistent/x"), "{error}");
}

#[test]
fn changes_new_files_and_removed_files_are_seen() {
    let setup = Setup::new(&[("a.yaml", pod("a", "10.0.0.1"))]);
    setup.write("b.yaml", &pod("b", "10.0.0.2"));
    setup.until("new file", |world, _| world.pod("shop", "b").is_some());
    setup.write("a.yaml", &pod("a", "10.0.0.77"));
    setup.until("change", |world, _| world.workload_at([10, 0, 0, 77].into()).is_some());
    fs::remove_file(setup.folder.path().join("a.yaml")).unwrap();
    setup.until("removal", |world, _| world.pod("shop", "a").is_none());
    assert!(setup.has("b"));
}

#[test]
fn a_broken_change_leaves_the_files_last_good_state_and_says_so() {
    let setup = Setup::new(&[(
        "a.yaml",
        format!("{}---\n{}", pod("a", "10.0.0.1"), policy("{action: DENY, rules: [{}]}")),
    )]);
    assert_eq!(verdict(&setup.store.load()), Some(Reason::PolicyDenied));
    setup
        .write("a.yaml", &format!("{}---\n{}", pod("b", "10.0.0.2"), policy("{action: DENIE, rules: [{}]}")));
    setup.until("refused", |_, status| status.stale_since.is_some());
    assert!(setup.has("a") && !setup.has("b"), "the whole file as it was");
    assert_eq!(verdict(&setup.store.load()), Some(Reason::PolicyDenied));
    let errors = setup.errors();
    assert!(
        errors[0].starts_with("error: a.yaml:2: AuthorizationPolicy shop/p: spec.action: ")
            && errors[0].contains("last good version stays in force"),
        "{errors:?}"
    );
    setup.write("a.yaml", &format!("{}---\n{}", pod("a", "10.0.0.1"), policy("{rules: [{}]}")));
    setup.until("mended", |world, status| status.stale_since.is_none() && verdict(world).is_none());
    setup.write("a.yaml", "kind: [\n");
    setup.until("not YAML", |_, status| status.stale_since.is_some());
    assert!(setup.has("a"));
    assert!(
        setup.errors()[0].contains("a.yaml:1") && setup.errors()[0].contains("line "),
        "{:?}",
        setup.errors()
    );
}

#[test]
fn a_policy_that_is_broken_from_the_start_denies_and_one_that_is_not_yaml_too() {
    let setup = Setup::new(&[("a.yaml", pod("a", "10.0.0.1")), ("p.yaml", policy("{bad: 1}"))]);
    assert_eq!(verdict(&setup.store.load()), Some(Reason::PolicyInvalid));
    setup.write("p.yaml", &policy("{rules: [{}]}"));
    setup.until("mended", |world, _| verdict(world).is_none());
    let setup =
        Setup::new(&[("a.yaml", pod("a", "10.0.0.1")), ("p.yaml", format!("{}\n  x: [", policy("{}")))]);
    assert_eq!(verdict(&setup.store.load()), Some(Reason::PolicyInvalid));
    setup.write("p.yaml", &policy("{rules: [{}]}"));
    setup.until("mended", |world, _| verdict(world).is_none());
}

#[test]
fn two_definitions_of_one_object_are_an_error_that_names_both_files() {
    let setup = Setup::new(&[("b.yaml", pod("a", "10.0.0.1"))]);
    setup.write("a.yaml", &pod("a", "10.0.0.2"));
    setup.until("duplicate", |_, status| !status.errors.is_empty());
    assert!(setup.errors()[0].contains("is defined in b.yaml:1 and a.yaml:1"), "{:?}", setup.errors());
    assert!(setup.store.load().workload_at([10, 0, 0, 1].into()).is_some(), "the one that was there stays");
    fs::remove_file(setup.folder.path().join("b.yaml")).unwrap();
    setup.until("other file takes over", |world, status| {
        status.errors.is_empty() && world.workload_at([10, 0, 0, 2].into()).is_some()
    });
}

#[test]
fn two_policies_that_differ_at_the_start_fail_closed() {
    let setup = Setup::new(&[
        ("a.yaml", pod("a", "10.0.0.1")),
        ("p.yaml", policy("{rules: [{}]}")),
        ("q.yaml", policy("{action: DENY, rules: [{}]}")),
    ]);
    assert_eq!(verdict(&setup.store.load()), Some(Reason::PolicyInvalid));
    fs::remove_file(setup.folder.path().join("q.yaml")).unwrap();
    setup.until("resolved", |world, _| verdict(world).is_none());
}

#[test]
fn a_file_half_written_or_emptied_is_no_deletion() {
    use std::io::Write;
    let whole = format!("{}---\n{}", pod("a", "10.0.0.1"), pod("b", "10.0.0.2"));
    let setup = Setup::new(&[("a.yaml", whole.clone())]);
    // A slow writer: emptied, a first part, and the rest; it has the file open all the time.
    let mut file = fs::File::create(setup.folder.path().join("a.yaml")).unwrap();
    for (part, pause) in [("", 700), (pod("a", "10.0.0.1").as_str(), 900)] {
        file.write_all(part.as_bytes()).unwrap();
        let until = Instant::now() + Duration::from_millis(pause);
        while Instant::now() < until {
            assert!(setup.has("a") && setup.has("b"), "lost an object while the file was written");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    file.write_all(format!("---\n{}", pod("c", "10.0.0.3")).as_bytes()).unwrap();
    drop(file);
    setup.until("complete", |world, _| world.pod("shop", "c").is_some() && world.pod("shop", "b").is_none());
    setup.write("a.yaml", "");
    setup.until("empty is refused", |_, status| status.stale_since.is_some());
    assert!(setup.has("a") && setup.errors()[0].contains("is empty"), "{:?}", setup.errors());
}

#[test]
fn a_swapped_link_changes_all_files_at_once() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    for (generation, last) in [("..1", 1), ("..2", 2)] {
        fs::create_dir(path.join(generation)).unwrap();
        for name in ["a", "b"] {
            fs::write(
                path.join(generation).join(format!("{name}.yaml")),
                pod(name, &format!("10.{last}.0.{}", name.len())),
            )
            .unwrap();
        }
    }
    // As the kubelet mounts a ConfigMap: files link through `..data`, which is swapped by a rename.
    symlink("..1", path.join("..data")).unwrap();
    symlink("..data/a.yaml", path.join("a.yaml")).unwrap();
    symlink("..data/b.yaml", path.join("b.yaml")).unwrap();
    let setup = Setup::on(folder);
    let version = setup.store.load().version;
    symlink("..2", path.join("..tmp")).unwrap();
    fs::rename(path.join("..tmp"), path.join("..data")).unwrap();
    setup.until("swap", |world, _| world.workload_at([10, 2, 0, 1].into()).is_some());
    assert!(setup.store.load().workload_at([10, 1, 0, 1].into()).is_none());
    assert_eq!(setup.store.load().version, version + 1, "one world for both files");
    fs::remove_dir_all(path.join("..2")).unwrap();
    setup.until("links to nowhere", |_, status| status.errors.len() == 2);
    assert!(setup.has("a") && setup.has("b"), "a link to nowhere is no deletion");
}

#[test]
fn a_folder_that_goes_away_deletes_nothing_and_its_successor_is_followed() {
    let outer = tempfile::tempdir().unwrap();
    let path = outer.path().join("manifests");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), pod("a", "10.0.0.1")).unwrap();
    let store = Arc::new(WorldStore::new(World::new(MeshSettings::default())));
    let handle = DirSource::start(&path, DirSettings::default(), Arc::clone(&store)).unwrap();
    let setup = Setup { folder: outer, store, handle, hits: Hits::default() };
    fs::rename(&path, setup.folder.path().join("old")).unwrap();
    setup.until("gone", |_, status| status.last_error.is_some());
    assert!(setup.has("a"));
    fs::create_dir(&path).unwrap();
    fs::write(path.join("b.yaml"), pod("b", "10.0.0.2")).unwrap();
    setup.until("successor", |world, _| world.pod("shop", "b").is_some());
    assert!(setup.handle.status().last_error.is_none());
}

/// A pod's manifest, made longer by a comment until the file has so many bytes.
fn padded(text: &str, bytes: u64) -> String {
    let missing = usize::try_from(bytes).unwrap() - text.len();
    format!("{text}#{}\n", "x".repeat(missing - 2))
}

#[test]
fn a_file_of_the_largest_size_is_read_and_one_byte_more_leaves_its_last_good_state() {
    let setup = Setup::new(&[("a.yaml", pod("a", "10.0.0.1"))]);
    setup.write("a.yaml", &padded(&pod("a", "10.0.0.2"), FILE_MAX_BYTES));
    setup.until("the largest", |world, _| world.workload_at([10, 0, 0, 2].into()).is_some());
    assert_eq!(setup.hits.count(Limit::ManifestBytes), 0);
    setup.write("a.yaml", &padded(&pod("a", "10.0.0.3"), FILE_MAX_BYTES + 1));
    setup.until("too large", |_, status| status.stale_since.is_some());
    assert!(setup.store.load().workload_at([10, 0, 0, 2].into()).is_some(), "the last good state stays");
    let errors = setup.errors();
    assert!(
        errors[0].contains("a.yaml") && errors[0].contains("larger than 16777216 bytes; split"),
        "{errors:?}"
    );
    assert_eq!(setup.hits.count(Limit::ManifestBytes), 1, "once for each content that is refused");
    setup.write("a.yaml", &pod("a", "10.0.0.4"));
    setup.until("mended", |world, status| {
        world.workload_at([10, 0, 0, 4].into()).is_some() && status.stale_since.is_none()
    });
}

#[test]
fn as_many_files_as_the_limit_are_read_and_one_more_leaves_the_last_good_state() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("0.yaml"), pod("a", "10.0.0.1")).unwrap();
    for number in 1..FILES_MAX {
        fs::write(folder.path().join(format!("{number}.yaml")), "# nothing\n").unwrap();
    }
    let setup = Setup::on(folder);
    assert_eq!((setup.handle.status().files, setup.hits.count(Limit::ManifestFiles)), (FILES_MAX, 0));
    setup.write("one-more.yaml", &pod("b", "10.0.0.2"));
    setup.until("too many", |_, status| {
        status.last_error.as_ref().is_some_and(|error| error.contains("more than 10000 manifest files; put"))
    });
    assert!(setup.has("a") && !setup.has("b"));
    assert_eq!(setup.hits.count(Limit::ManifestFiles), 1);
    // An agent that starts on such a folder does not start at all.
    let store = Arc::new(WorldStore::new(World::new(MeshSettings::default())));
    let settings = DirSettings { hits: setup.hits.clone(), ..DirSettings::default() };
    let error = DirSource::start(setup.folder.path(), settings, store).err().unwrap().to_string();
    assert!(error.contains("more than 10000 manifest files"), "{error}");
    assert_eq!(setup.hits.count(Limit::ManifestFiles), 2);
    fs::remove_file(setup.folder.path().join("1.yaml")).unwrap();
    setup
        .until("room again", |world, status| world.pod("shop", "b").is_some() && status.last_error.is_none());
}

#[test]
fn a_lost_event_is_made_up_for_by_the_rescan() {
    let setup = Setup::new(&[("a.yaml", pod("a", "10.0.0.1"))]);
    let watch = Watch::new(setup.folder.path(), sync_channel(1).0);
    assert!(watch.error.is_none());
    // A follower without a watcher: only its rescan can see the change.
    let store = Arc::new(WorldStore::new(World::new(MeshSettings::default())));
    let mut loader = Loader::new(setup.folder.path().to_owned(), Hits::default());
    let mesh = MeshSettings::default();
    let mut world = (*store.load()).clone();
    loader.start(&mesh).unwrap().into_iter().for_each(|change| {
        world.apply(change);
    });
    setup.write("a.yaml", &pod("a", "10.0.0.88"));
    let start = Instant::now();
    let mut now = start;
    while world.workload_at([10, 0, 0, 88].into()).is_none() {
        now += Duration::from_millis(100);
        assert!(now - start < Duration::from_millis(500), "not seen by looking alone");
        loader.refresh(&mesh, now, &|_| false).changes.into_iter().for_each(|change| {
            world.apply(change);
        });
    }
}
