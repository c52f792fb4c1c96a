//! A cluster that outlives the command that brought it up: its holder in the background, and how commands find it.
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_tests::{Cluster, cluster, eventually, process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

/// A folder per cluster; removed with it.
const DIR: &str = "/run/nodemesh-cluster";
const UP_DEADLINE: Duration = Duration::from_secs(600);
const DOWN_DEADLINE: Duration = Duration::from_secs(180);
const STEP: Duration = Duration::from_millis(100);
/// How often the holder looks after its cluster.
const LOOK: Duration = Duration::from_secs(2);

pub(crate) struct Held {
    name: String,
    dir: PathBuf,
}

impl Held {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), dir: Path::new(DIR).join(name) }
    }

    /// What a command line needs to mean this cluster.
    pub(crate) fn option(&self) -> String {
        if self.name == "default" { String::new() } else { format!("--name {} ", self.name) }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Where the logs are, for people.
    pub(crate) fn logs(&self) -> Result<String> {
        fs::read_to_string(self.dir.join("ready")).context("the cluster is not up")
    }

    pub(crate) fn is_up(&self) -> bool {
        self.holder().is_some() && self.dir.join("ready").is_file()
    }

    /// The live process that owns the cluster.
    fn holder(&self) -> Option<i32> {
        let text = fs::read_to_string(self.dir.join("holder")).ok()?;
        let (pid, started) = text.split_once(' ')?;
        let pid = pid.parse().ok()?;
        (process::start_time(pid) == started.parse().ok()).then_some(pid)
    }

    /// Starts a holder and repeats what it says until the cluster is up.
    pub(crate) fn start(&self) -> Result<()> {
        if self.holder().is_some() {
            bail!(
                "it is just coming up, or going down; run `cargo xtask cluster {}down` to end it",
                self.option()
            );
        }
        self.forget()?;
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot create {}; run this as root", self.dir.display()))?;
        let log = self.dir.join("log");
        let out = File::create(&log).context("cannot create the cluster's log")?;
        let err = out.try_clone().context("cannot duplicate a log")?;
        let own = std::env::current_exe().context("cannot find mesh-cluster itself")?;
        // A group of its own: Ctrl-C at this command, and the end of the terminal, are not meant for the cluster.
        let mut holder = Command::new(own)
            .args(["--name", &self.name, "hold"])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .context("cannot start the cluster's holder")?;
        let begin = Instant::now();
        let mut said = 0;
        loop {
            let ended = holder.try_wait().context("waiting for the cluster's holder")?;
            let ready = self.dir.join("ready").is_file();
            let text = fs::read_to_string(&log).unwrap_or_default();
            if let Some(more) = text.get(said..) {
                print!("{more}");
                said = text.len();
            }
            if let Some(status) = ended {
                self.forget()?;
                bail!("the cluster did not come up ({status}); what failed stands above");
            }
            if ready {
                println!("cluster: ready after {:.1} s", begin.elapsed().as_secs_f64());
                return Ok(());
            }
            if begin.elapsed() > UP_DEADLINE {
                bail!("the cluster is not up after {UP_DEADLINE:?}; {} says why", log.display());
            }
            thread::sleep(STEP);
        }
    }

    /// Asks the holder to end and waits for it; cleans up after one that was killed.
    pub(crate) fn end(&self) -> Result<()> {
        let Some(pid) = self.holder() else {
            let was_there = self.dir.exists();
            cluster::sweep()?;
            self.forget()?;
            println!(
                "cluster: {}",
                if was_there { "removed what a killed one had left" } else { "none is up" }
            );
            return Ok(());
        };
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("cannot end the cluster's holder")?;
        eventually("the cluster to be taken down", DOWN_DEADLINE, || Ok(self.holder().is_none()))?;
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        // What could not be removed is said there.
        for line in log.lines().filter(|line| line.contains("stays behind")) {
            println!("{line}");
        }
        self.forget()?;
        println!("cluster: down, every trace removed");
        Ok(())
    }

    fn forget(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.dir.display()))
            }
            _ => {
                // Goes with the last of them, so it may well stay.
                fs::remove_dir(DIR).ok();
                Ok(())
            }
        }
    }

    /// Owns a cluster until it is asked to end.
    pub(crate) fn hold(&self) -> Result<()> {
        let own = std::process::id();
        let started = process::start_time(own.cast_signed()).context("cannot read /proc/self")?;
        fs::write(self.dir.join("holder"), format!("{own} {started}"))
            .context("cannot sign the cluster's folder")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot make a runtime for signals")?;
        // From here on a request to end is kept until somebody looks, also while the cluster comes up.
        let mut asked = runtime.block_on(async {
            let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
            kinds.map(signal).into_iter().collect::<Result<Vec<_>, _>>().context("cannot wait for signals")
        })?;
        let [terminate, interrupt, _hangup] = asked.as_mut_slice() else {
            bail!("three signals were asked for")
        };
        let cluster = Cluster::start_telling(&mut |what| println!("cluster: {what}"))?.quiet();
        fs::copy(cluster.admin_kubeconfig(), self.kubeconfig()).context("cannot copy the kubeconfig")?;
        fs::write(self.dir.join("ready"), cluster.log_dirs()).context("cannot say that the cluster is up")?;
        runtime.block_on(async {
            let mut look = tokio::time::interval(LOOK);
            loop {
                tokio::select! {
                    _ = terminate.recv() => return Ok(()),
                    _ = interrupt.recv() => return Ok(()),
                    _ = look.tick() => cluster.check_alive()?,
                }
            }
        })
    }
}
