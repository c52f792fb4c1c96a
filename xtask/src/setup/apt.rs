//! Debian packages: installed only when missing, without recommendations, and without starting a service.
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// One package and why it is wanted.
pub(crate) struct Package {
    pub(crate) name: &'static str,
    pub(crate) why: &'static str,
}

/// Installs the packages; the caller has found that they are missing.
pub(crate) fn install_missing(packages: &[Package]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    let list = names.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("missing: {list}; this machine has no apt-get, install them with its own package manager");
    }
    if !super::machine::is_root() {
        bail!(
            "missing: {list}; run `apt-get install --no-install-recommends {list}` as root, or this as root"
        );
    }
    for package in packages {
        println!("setup: installing {} ({})", package.name, package.why);
    }
    let _quiet = NoServices::new()?;
    // A source of somebody else's may be unreachable; whether that matters shows at the install.
    if let Err(error) = command::run(apt().arg("update")) {
        println!("setup: {error:#}; trying with the package lists that are there");
    }
    command::run(apt().args(["install", "--no-install-recommends", "--yes"]).args(&names))
        .with_context(|| format!("cannot install {list}; check the sources in /etc/apt and the network"))?;
    for (package, owner, service) in SERVICES {
        if names.contains(&package) {
            // The package enables its service for the next boot; the lab starts its own.
            // The helper wants to know for which package it acts; it works without a running systemd too.
            let mut helper = Command::new("deb-systemd-helper");
            helper.env("DPKG_MAINTSCRIPT_PACKAGE", owner).args(["disable", service]);
            command::run(&mut helper)?;
        }
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("/usr/bin/apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["--quiet", "--option", "DPkg::Lock::Timeout=300", "--option", "Dpkg::Use-Pty=0"]);
    command
}

/// Packages that come with a service, the package that owns it, and its name.
const SERVICES: [(&str, &str, &str); 4] = [
    ("nginx", "nginx-common", "nginx.service"),
    ("haproxy", "haproxy", "haproxy.service"),
    ("etcd-server", "etcd-server", "etcd.service"),
    ("containerd", "containerd", "containerd.service"),
];

const POLICY: &str = "/usr/sbin/policy-rc.d";
const SAVED: &str = "/usr/sbin/policy-rc.d.before-nodemesh";

/// While it lives, Debian's maintainer scripts may start no service (invoke-rc.d asks policy-rc.d; 101 is "no").
struct NoServices {
    policy: PathBuf,
    saved: PathBuf,
}

impl NoServices {
    fn new() -> Result<Self> {
        let this = Self { policy: PathBuf::from(POLICY), saved: PathBuf::from(SAVED) };
        if this.policy.exists() && !this.saved.exists() {
            fs::rename(&this.policy, &this.saved).context("cannot set the machine's policy-rc.d aside")?;
        }
        fs::write(&this.policy, "#!/bin/sh\nexit 101\n").context("cannot write policy-rc.d")?;
        fs::set_permissions(&this.policy, fs::Permissions::from_mode(0o755))
            .context("cannot enable policy-rc.d")?;
        Ok(this)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        let undone = if self.saved.exists() {
            fs::rename(&self.saved, &self.policy)
        } else {
            fs::remove_file(&self.policy)
        };
        if let Err(error) = undone {
            eprintln!("setup: {POLICY} could not be put back ({error}); remove it by hand");
        }
    }
}
