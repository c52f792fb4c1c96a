use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use super::super::tests::folder;
use super::super::{Event, HandoverServer, HolderClient, Predecessor, Sets};
use super::*;

#[tokio::test]
async fn the_file_is_private_and_goes_with_the_socket() {
    let (dir, path) = folder();
    let bound = Bound::bind(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the socket");
    drop(bound);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_stale_file_is_replaced_a_live_one_is_not() {
    let (_dir, path) = folder();
    drop(StdListener::bind(&path).unwrap());
    assert!(path.exists());
    let _bound = Bound::bind(&path).unwrap();
    assert!(matches!(Bound::bind(&path), Err(HandoverError::InUse { .. })));
    connect(&path).await.unwrap();
}

#[test]
fn one_at_a_time_holds_the_lock_though_its_file_comes_and_goes() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (dir, path) = folder();
    let inside = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let lock = Lock::take(&path).unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold it");
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(lock);
                }
            });
        }
    });
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_lock_file_that_a_killed_process_left_is_taken_and_removed() {
    let (dir, path) = folder();
    fs::write(path.with_extension("sock.lock"), "").unwrap();
    let bound = Bound::bind(&path).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    drop(bound);
}

#[tokio::test]
async fn a_live_server_with_a_full_backlog_is_not_replaced() {
    let (_dir, path) = folder();
    let server = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    server.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    server.listen(0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        match client.connect(&SockAddr::unix(&path).unwrap()) {
            Ok(()) => waiting.push(client),
            Err(e) => break assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
        }
    }
    assert!(matches!(Bound::bind(&path), Err(HandoverError::InUse { .. })));
}

#[tokio::test]
async fn any_other_file_is_left_alone() {
    let (_dir, path) = folder();
    fs::write(&path, "precious").unwrap();
    assert!(matches!(Bound::bind(&path), Err(HandoverError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn a_file_that_somebody_else_put_there_is_not_removed() {
    let (_dir, path) = folder();
    let bound = Bound::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "another's").unwrap();
    drop(bound);
    assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
}

#[tokio::test]
async fn errors_name_the_path_and_the_remedy() {
    let (dir, path) = folder();
    let error = connect(&path).await.unwrap_err();
    assert!(matches!(error, HandoverError::NobodyThere { .. }));
    assert!(error.to_string().contains("mesh.sock: nobody answers; start"), "{error}");
    let error = Bound::bind(&dir.path().join("x".repeat(120))).unwrap_err();
    assert!(
        matches!(error, HandoverError::Bind { .. }) && error.to_string().contains("108 bytes"),
        "{error}"
    );
}

const NOBODY: libc::uid_t = 65534;

/// Runs in a thread with another uid. Needs root: fails without.
pub(in super::super) fn as_nobody<T: Send + 'static>(
    what: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    std::thread::spawn(move || {
        // SAFETY: the bare system call takes plain numbers and changes this thread only (the libc function
        // would change the whole process).
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(changed, 0, "this test must run as root");
        what()
    })
}

/// Opens the socket to everybody: the file's mode already keeps others out, the tests are about the check
/// behind it.
pub(in super::super) fn open_to_all(path: &Path) {
    fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
    if path.exists() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    }
}

fn assert_nobody(error: &HandoverError) {
    let own = nix::unistd::geteuid().as_raw();
    assert!(
        matches!(error, HandoverError::PeerUid { uid: NOBODY, expected } if *expected == own),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_client_of_another_uid_is_refused() {
    let (_dir, path) = folder();
    let mut server = HandoverServer::bind(&path).unwrap();
    open_to_all(&path);
    let client = as_nobody(move || std::os::unix::net::UnixStream::connect(path).unwrap());
    let event = server.serve(Sets::new).await.unwrap();
    let Event::SuccessorFailed { error } = event else { panic!("{event:?}") };
    assert_nobody(&error);
    // Not a word was said to it.
    assert_eq!(client.join().unwrap().read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn a_server_of_another_uid_is_refused() {
    let (_dir, path) = folder();
    open_to_all(&path);
    let at = path.clone();
    let _server = as_nobody(move || StdListener::bind(at).unwrap()).join().unwrap();
    assert_nobody(&Predecessor::connect(&path).await.unwrap_err());
    assert_nobody(&HolderClient::connect(&path).await.unwrap_err());
}
