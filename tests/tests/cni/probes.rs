//! The kubelet's connections into pods under STRICT: known by its process, and nobody else's pass for them.
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{App, Lab, Node, Pod, PodSpec, eventually};

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to where it is told, says a line and waits for it to come back.
const SCRIPT: &str = r#"
[ -z "$COMM" ] || printf %s "$COMM" > /proc/self/comm
echo ready
while read -r host port; do
  said=
  if { exec 3<>"/dev/tcp/$host/$port"; } 2>/dev/null; then
    { echo probe >&3 && read -r -t 2 said <&3; } 2>/dev/null
    exec 3>&-
  fi
  if [ "$said" = probe ]; then echo passed; else echo refused; fi
done
"#;

/// A process that probes on demand.
struct Prober {
    child: Child,
    ask: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Prober {
    /// Starts `command`, which ends in a shell's name, in a node's namespace.
    fn start(lab: &Lab, node: &Node, mut command: Command) -> Result<Self> {
        command.args(["-c", SCRIPT]).env("NODEMESH_LAB", lab.name());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = node.run(|| command.spawn().context("cannot start a prober"))?;
        let ask = child.stdin.take().context("no standard input")?;
        let said = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut prober = Self { child, ask, said };
        ensure!(prober.line()? == "ready", "the prober did not start");
        Ok(prober)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Whether a probe gets through to the application.
    fn passes(&mut self, to: SocketAddr) -> Result<bool> {
        writeln!(self.ask, "{} {}", to.ip(), to.port())?;
        match self.line()?.as_str() {
            "passed" => Ok(true),
            "refused" => Ok(false),
            other => anyhow::bail!("the prober said `{other}`"),
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A STRICT pod with an echo on node-a, and a shell under the kubelet's name.
struct Stage {
    lab: Lab,
    pod: Pod,
    echo: App,
    kubelet: PathBuf,
}

impl Stage {
    fn new(scenario: &str) -> Result<Self> {
        let lab = Lab::two_nodes(scenario)?;
        lab.manifests().namespace("shop", true)?;
        lab.manifests().mtls("shop", "STRICT")?;
        let pod = lab.pod(PodSpec::new("shop", "probed", "node-a"))?;
        let echo = App::echo(&pod, PORT)?;
        let kubelet = lab.dir().join("kubelet");
        std::fs::copy("/bin/bash", &kubelet).context("cannot copy a shell")?;
        Ok(Self { lab, pod, echo, kubelet })
    }

    fn prober(&self, node: &str, program: &Path) -> Result<Prober> {
        Prober::start(&self.lab, self.lab.node(node)?, Command::new(program))
    }

    fn wait_known(&self, kubelet: &mut Prober) -> Result<()> {
        eventually("the kubelet to be known", PATIENCE, || kubelet.passes(self.pod.v4(PORT)))?;
        Ok(())
    }
}

/// The kubelet's probes reach a STRICT pod in both families and show the node's own address, and those of a kubelet
/// that was restarted as well; without the kubelet nothing on the node gets in.
#[test]
fn the_kubelet_probes_a_strict_pod() -> Result<()> {
    let stage = Stage::new("kubelet probes")?;
    let agent = stage.lab.agent("node-a")?;
    for _life in 0..2 {
        let mut kubelet = stage.prober("node-a", &stage.kubelet)?;
        stage.wait_known(&mut kubelet)?;
        for to in stage.pod.both(PORT) {
            ensure!(kubelet.passes(to)?, "the kubelet was refused at {to}");
        }
        ensure!(!kubelet.passes(stage.pod.v4(PORT + 1))?, "nobody listens there");
        for port in [15001, 15006, 15008] {
            ensure!(!kubelet.passes(stage.pod.v4(port))?, "a probe got into the mesh's own port {port}");
        }
    }
    ensure!(agent.metric("nodemesh_kernel_events_total", &[("event", "probes")])? >= 4.0, "not counted");
    let mut other = stage.prober("node-a", Path::new("/bin/bash"))?;
    let before = stage.echo.stats().received();
    for to in stage.pod.both(PORT) {
        ensure!(!other.passes(to)?, "a process of the node got into a STRICT pod at {to}");
    }
    ensure!(stage.echo.stats().received() == before, "its bytes arrived");
    Ok(())
}

/// Who looks like the kubelet and is not: a container with host network that runs a program of its name, a process that
/// only calls itself so, the kubelet of another node. All are refused while the real one passes.
#[test]
fn an_imposter_is_refused() -> Result<()> {
    let stage = Stage::new("imposters")?;
    let _agent = stage.lab.agent("node-a")?;
    let mut kubelet = stage.prober("node-a", &stage.kubelet)?;
    stage.wait_known(&mut kubelet)?;
    drop(kubelet);
    let node = stage.lab.node("node-a")?;
    let mut contained = Command::new("unshare");
    contained.arg("--mount").arg(&stage.kubelet);
    let mut renamed = Command::new("/bin/bash");
    renamed.env("COMM", "kubelet");
    let imposters = [
        ("a container", Prober::start(&stage.lab, node, contained)?),
        ("a process that calls itself so", Prober::start(&stage.lab, node, renamed)?),
        ("another node's kubelet", stage.prober("node-b", &stage.kubelet)?),
    ];
    let mut kubelet = stage.prober("node-a", &stage.kubelet)?;
    stage.wait_known(&mut kubelet)?;
    for (who, mut imposter) in imposters {
        for to in stage.pod.both(PORT) {
            ensure!(!imposter.passes(to)?, "{who} got into a STRICT pod at {to}");
        }
    }
    ensure!(kubelet.passes(stage.pod.v4(PORT))?, "the kubelet itself");
    Ok(())
}

/// A node with a PID namespace of its own, as in a cluster on one machine: the agent and the kubelet count processes
/// otherwise than the kernel does at large, and a process outside with the kubelet's number is not taken for it.
#[test]
fn a_node_may_have_its_own_pid_namespace() -> Result<()> {
    let stage = Stage::new("nested PID namespace")?;
    let (lab, node) = (&stage.lab, stage.lab.node("node-a")?);
    let mut init = Command::new("unshare");
    init.args(["--mount", "--pid", "--fork", "--mount-proc", "sleep", "600"]);
    let outer = lab.spawn(node.netns(), "init", init)?;
    let children = format!("/proc/{0}/task/{0}/children", outer.pid());
    let mut pid = String::new();
    eventually("the node's first process", PATIENCE, || {
        std::fs::read_to_string(&children)?.trim().clone_into(&mut pid);
        Ok(!pid.is_empty() && std::fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() == "sleep")
    })?;
    let inside = || {
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--mount", "--pid"]);
        command
    };
    let mut agent = inside();
    agent.arg(mesh_tests::agent::binary()?).args(["run", "--node", "node-a", "--metrics", "127.0.0.1:15020"]);
    agent.arg("--manifests").arg(lab.manifests().dir()).arg("--ca-dir").arg(lab.ca_dir());
    agent
        .arg("--admin-socket")
        .arg(lab.dir().join("node-a.sock"))
        .arg("--bpf-dir")
        .arg(lab.bpf_dir("node-a"));
    let agent = lab.spawn(node.netns(), "agent-node-a", agent)?;
    let mut kubelet = inside();
    kubelet.arg(&stage.kubelet);
    let mut kubelet = Prober::start(lab, node, kubelet)?;
    eventually("the agent to know the kubelet", PATIENCE, || Ok(agent.log().contains("untouched")))?;
    let mut outside = stage.prober("node-a", &stage.kubelet)?;
    eventually("the pod to be captured", PATIENCE, || Ok(!outside.passes(stage.pod.v4(PORT))?))?;
    for to in stage.pod.both(PORT) {
        ensure!(kubelet.passes(to)?, "the kubelet was refused at {to}");
        ensure!(!outside.passes(to)?, "a process of another PID namespace got in at {to}");
    }
    Ok(())
}

/// A node that restarts its agent, or loses it, keeps its pods probed: the kernel knows the kubelet.
#[test]
fn probes_pass_while_the_agent_is_dead() -> Result<()> {
    let stage = Stage::new("probes without an agent")?;
    let mut agent = stage.lab.agent("node-a")?;
    let mut kubelet = stage.prober("node-a", &stage.kubelet)?;
    stage.wait_known(&mut kubelet)?;
    agent.kill()?;
    for to in stage.pod.both(PORT) {
        ensure!(kubelet.passes(to)?, "refused at {to} while the agent is dead");
    }
    let _next = stage.lab.agent("node-a")?;
    ensure!(kubelet.passes(stage.pod.v4(PORT))?, "refused by the next agent");
    Ok(())
}
