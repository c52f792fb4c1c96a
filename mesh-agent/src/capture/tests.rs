use std::os::fd::AsRawFd;

use super::*;

/// A cgroup and a folder of pins of the test's own, gone with it.
struct Place {
    cgroup: PathBuf,
    pins: PathBuf,
    _lock: Flock<File>,
}

impl Place {
    fn new(name: &str) -> Self {
        let name = format!("nodemesh-{name}-{}", std::process::id());
        let cgroup = host::cgroup_root(None).unwrap().join(&name);
        fs::create_dir(&cgroup).unwrap();
        let pins = PathBuf::from("/sys/fs/bpf").join(name);
        let lock = host::bpf_dir(&pins).unwrap();
        Self { cgroup, pins, _lock: lock }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.pins).into_iter().flatten().flatten() {
            drop(fs::remove_file(entry.path()));
        }
        drop(fs::remove_dir(&self.pins));
        drop(fs::remove_dir(&self.cgroup));
    }
}

/// Attaches as older tools do: without a link, and so that nobody else can (`BPF_PROG_ATTACH` without flags).
fn attach_exclusively(program: &aya::programs::ProgramFd, cgroup: &Path, kind: bpf::AttachType) {
    const PROG_ATTACH: u32 = 8;
    let target = File::open(cgroup).unwrap();
    let attr: [u32; 4] =
        [target.as_raw_fd().cast_unsigned(), program.as_fd().as_raw_fd().cast_unsigned(), kind as u32, 0];
    // SAFETY: the attribute is live, of the length given, and has no pointers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, attr.as_ptr(), size_of_val(&attr)) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_foreign_program_that_allows_no_other_beside_it_is_a_conflict_with_its_place_and_remedy() {
    let kernel = host::check().unwrap();
    let (place, foreign) = (Place::new("conflict"), Place::new("foreign"));
    let mut other = object::load(&foreign.pins, kernel, 0).unwrap();
    let (name, _, kind) = object::CGROUP_PROGRAMS[0];
    let program = object::load_program(&mut other, name).unwrap();
    attach_exclusively(&program, &place.cgroup, kind);

    let mut own = object::load(&place.pins, kernel, 0).unwrap();
    let error = attach(&mut own, &place.cgroup, &place.pins).unwrap_err();
    assert!(
        matches!(&error, CaptureError::ConflictCgroup { target, .. } if *target == place.cgroup),
        "{error}"
    );
    let said = error.to_string();
    assert!(
        said.contains(&place.cgroup.display().to_string()) && said.contains("bpftool cgroup tree"),
        "{said}"
    );
}

#[test]
fn programs_that_allow_others_are_no_conflict() {
    let kernel = host::check().unwrap();
    let (place, second) = (Place::new("beside"), Place::new("beside-2"));
    for pins in [&place.pins, &second.pins] {
        let mut object = object::load(pins, kernel, 0).unwrap();
        attach(&mut object, &place.cgroup, pins).unwrap();
    }
    let target = File::open(&place.cgroup).unwrap();
    assert_eq!(bpf::attached(target.as_fd(), bpf::AttachType::Connect4).unwrap().len(), 2);
}
