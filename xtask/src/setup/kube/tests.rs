use super::*;

#[test]
fn each_module_pins_its_version_and_the_checksums_of_it() {
    for module in MODULES.iter().chain(&CONFORMANCE) {
        let version = module.version().unwrap();
        let sums = fs::read_to_string(module.source().join("go.sum")).unwrap();
        let line = format!("{} {version} h1:", module.path);
        assert!(sums.contains(&line), "go.sum lacks {line}");
    }
}

#[test]
fn a_version_is_stamped_in_whole_and_in_parts() {
    let flags = link_flags("v1.36.3");
    for part in ["version.gitVersion=v1.36.3", "version.gitMajor=1 ", "version.gitMinor=36"] {
        assert!(flags.contains(part), "{flags}");
    }
}
