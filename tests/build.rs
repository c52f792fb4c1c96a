//! Builds `nodemesh-test-app` once more, static: it is all that is in an image of the test cluster, where there is no C
//! library to load. Cargo cannot link one program of a package statically and leave the others alone; rustc can, and
//! the program uses nothing but the standard library.
use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

const SOURCE: &str = "src/bin/nodemesh-test-app";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    let variable = |name: &str| env::var_os(name).unwrap_or_default();
    let app = PathBuf::from(variable("OUT_DIR")).join("nodemesh-test-app");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.arg(format!("{SOURCE}/main.rs")).arg("-o").arg(&app).arg("--target").arg(variable("TARGET"));
    rustc.args(["--edition=2024", "--crate-name=nodemesh_test_app", "-Copt-level=2", "-Cstrip=symbols"]);
    rustc.args(["-Ctarget-feature=+crt-static", "-Cpanic=abort"]);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut flag = std::ffi::OsString::from("-Clinker=");
        flag.push(linker);
        rustc.arg(flag);
    }
    match rustc.status() {
        Ok(status) if status.success() => {}
        Ok(status) => {
            eprintln!("rustc ended with {status}; a static program needs libc.a (Debian: libc6-dev)");
            exit(1);
        }
        Err(error) => {
            eprintln!("cannot start rustc: {error}");
            exit(1);
        }
    }
    println!("cargo::rustc-env=NODEMESH_TEST_APP={}", app.display());
}
