use super::*;
use std::io::Write;
use std::process::{Command, Stdio};

/// What an archive holds, as tar itself reads it.
#[test]
fn tar_reads_what_is_written() {
    let file = ImageFile { path: "usr/bin/app".to_owned(), content: vec![7; 1000], executable: true };
    let archive = archive("example/app:1", &[file], &["/usr/bin/app"]).unwrap();
    let mut tar =
        Command::new("tar").arg("tvf").arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    tar.stdin.take().unwrap().write_all(&archive).unwrap();
    let out = tar.wait_with_output().unwrap();
    let listing = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{listing}");
    let names: Vec<&str> = listing.lines().filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!((names[0], names[2]), ("manifest.json", "layer.tar"));
}

#[test]
fn sha256_is_that_of_the_standard() {
    let wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(sha256(b"abc").unwrap(), wanted);
}
