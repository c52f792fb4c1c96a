//! RBAC of the controller. For each verb of each resource a controller runs against the real API server without just that
//! one. Each has a namespace of its own for its Secret, its ConfigMaps and its lease; what they write statuses on is one
//! set of objects, which is changed again and again: whoever may not write one is refused before it is told that another
//! was first.
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::agent;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::capabilities::NS as TENANT;
use super::{REFUSED, Right, all_rights, refusals, user};
use crate::authority;
use crate::mesh::{Mesh, SYSTEM, namespace};

/// Controllers at once: each takes a processor for a moment when it starts.
const AT_ONCE: usize = 5;
const PATIENCE: Duration = Duration::from_secs(25);
/// Of what breaks, in characters.
const SHOWN: usize = 120;
/// Between two changes of an object.
const PACE: Duration = Duration::from_millis(400);
/// What statuses are written on.
const NS: &str = "ruled";

/// One object of each kind that gets a status: its kind, its path in the API, and its spec, another one each round.
fn ruled(round: u32) -> Vec<(&'static str, String, Value)> {
    let host = format!("host-{round}.example.com");
    let route = json!({"parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "hostnames": [host]});
    let bad = json!([{"from": [{"source": {"ipBlocks": [format!("not-an-address-{round}")]}}]}]);
    let mode = if round.is_multiple_of(2) { "STRICT" } else { "PERMISSIVE" };
    [
        ("PeerAuthentication", "security.istio.io/v1", "peerauthentications", json!({"mtls": {"mode": mode}})),
        // What is wrong with it is told by an Event.
        (
            "AuthorizationPolicy",
            "security.istio.io/v1",
            "authorizationpolicies",
            json!({"action": "DENY", "rules": bad}),
        ),
        (
            "VirtualService",
            "networking.istio.io/v1",
            "virtualservices",
            json!({"hosts": [host], "http": [{"route": [{"destination": {"host": "web"}}]}]}),
        ),
        ("DestinationRule", "networking.istio.io/v1", "destinationrules", json!({"host": host})),
        (
            "ServiceEntry",
            "networking.istio.io/v1",
            "serviceentries",
            json!({"hosts": [host], "resolution": "DNS", "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]}),
        ),
        (
            "WorkloadEntry",
            "networking.istio.io/v1",
            "workloadentries",
            json!({"address": format!("192.0.2.{}", 1 + round % 200)}),
        ),
        ("HTTPRoute", "gateway.networking.k8s.io/v1", "httproutes", route.clone()),
        ("GRPCRoute", "gateway.networking.k8s.io/v1", "grpcroutes", route.clone()),
        ("TCPRoute", "gateway.networking.k8s.io/v1alpha2", "tcproutes", route.clone()),
        ("TLSRoute", "gateway.networking.k8s.io/v1alpha2", "tlsroutes", route),
    ]
    .map(|(kind, version, plural, spec)| {
        let object = json!({
            "apiVersion": version, "kind": kind, "metadata": {"name": "one", "namespace": NS}, "spec": spec,
        });
        (plural, format!("/apis/{version}/namespaces/{NS}/{plural}/one"), object)
    })
    .to_vec()
}

pub(crate) fn each_is_needed(mesh: &Mesh) -> Result<()> {
    let all = all_rights(mesh, "nodemesh-controller")?;
    let cases: Vec<Case> =
        [None].into_iter().chain((0..all.len()).map(Some)).map(|without| Case::new(&all, without)).collect();
    prepare(mesh, &all, &cases)?;
    // An Event is told by whoever wrote the status.
    let (alone, together): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| case.is_alone());
    let batches = alone.chunks(1).chain(together.chunks(AT_ONCE));
    let mut unneeded = Vec::new();
    for some in batches {
        let seen = thread::scope(|scope| {
            let running: Vec<_> = some.iter().map(|case| scope.spawn(|| case.observe(mesh))).collect();
            running
                .into_iter()
                .map(|one| one.join().unwrap_or_else(|_| bail!("an observer panicked")))
                .collect::<Vec<_>>()
        });
        for (case, seen) in some.iter().zip(seen) {
            let broken = seen.with_context(|| format!("{}: {:?}", case.name, case.right))?;
            match (case.right, broken) {
                (None, Some(how)) => bail!("with all rights a controller is not whole: {how}"),
                (Some(right), None) => unneeded.push(format!("{right:?}")),
                (Some(right), Some(how)) => {
                    let (verb, resource) = (&right.verb, &right.resource);
                    println!(
                        "        without {verb} {resource}: {}",
                        how.chars().take(SHOWN).collect::<String>()
                    );
                }
                (None, None) => {}
            }
        }
    }
    ensure!(unneeded.is_empty(), "without these nothing breaks:\n{}", unneeded.join("\n"));
    println!("        {} rights of the controller, each of them needed", all.len());
    Ok(())
}

/// No shipped controller, which would write every status first; then users, namespaces, and what statuses are written on.
fn prepare(mesh: &Mesh, all: &[Right], cases: &[Case]) -> Result<()> {
    mesh.kubectl(&format!("scale deployment nodemesh-controller -n {SYSTEM} --replicas=0"))?;
    let port = json!([{"name": "http", "port": 80}]);
    let web = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": NS}, "spec": {"ports": port},
    });
    let mut text = format!("{}---\n{web}\n", namespace(NS, false, &[]));
    for case in cases {
        text.push_str(&case.before()?);
        text.push_str(&user(&case.name, &case.name, all, case.without));
    }
    mesh.cluster.apply(&text)?;
    mesh.cluster.wait_ready(SYSTEM, "app=nodemesh-controller", 0)?;
    let ruled: String = ruled(0).iter().map(|(_, _, object)| format!("---\n{object}\n")).collect();
    mesh.cluster.apply(&ruled).map(drop)
}

/// A controller that lacks one right, or none.
struct Case<'a> {
    /// Of its user and of its namespace.
    name: String,
    without: Option<usize>,
    right: Option<&'a Right>,
}

impl<'a> Case<'a> {
    fn new(all: &'a [Right], without: Option<usize>) -> Self {
        let name = without.map_or("controller-all".to_owned(), |at| format!("controller-{at}"));
        Self { name, without, right: without.and_then(|at| all.get(at)) }
    }

    fn is(&self, verb: &str, resource: &str) -> bool {
        self.right.is_some_and(|right| right.verb == verb && right.resource == resource)
    }

    fn is_alone(&self) -> bool {
        self.right.is_none_or(|right| right.resource == "events")
    }

    /// Its namespace, and in it what is replaced by a controller that may: a root that ends soon, and an empty bundle.
    fn before(&self) -> Result<String> {
        let mut text = namespace(&self.name, false, &[]);
        let mut add = |object: Value| text.push_str(&format!("---\n{object}\n"));
        if self.is("update", "secrets") {
            let (chain, key) = ending_root()?;
            let metadata = json!({
                "name": "nodemesh-ca", "namespace": self.name, "annotations": {"nodemesh.io/self-made": "true"},
            });
            add(json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "kubernetes.io/tls",
                "stringData": {"tls.crt": chain, "tls.key": key, "ca.crt": chain},
            }));
        }
        if self.is("update", "configmaps") {
            let metadata = json!({"name": "nodemesh-ca-root", "namespace": self.name});
            add(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}));
        }
        Ok(text)
    }

    /// Runs a controller as this user; how it breaks, if it does.
    fn observe(&self, mesh: &Mesh) -> Result<Option<String>> {
        let mut controller = Local::start(mesh, &self.name)?;
        let broken = match self.right {
            None => self.whole(mesh, &mut controller)?,
            Some(right) => self.refused(mesh, &mut controller, right)?,
        };
        controller.end()?;
        let said = refusals(&controller.said());
        if self.right.is_none() && !said.is_empty() {
            return Ok(Some(said.join("\n")));
        }
        if self.right.is_none()
            && self.object(mesh, "/apis/coordination.k8s.io/v1", "leases/nodemesh-controller")?["spec"]["holderIdentity"]
                != ""
        {
            return Ok(Some("the lease is not released".to_owned()));
        }
        Ok(broken)
    }

    /// An object of its namespace; null when there is none.
    fn object(&self, mesh: &Mesh, api: &str, what: &str) -> Result<Value> {
        Ok(mesh.cluster.object(&format!("{api}/namespaces/{}/{what}", self.name))?.unwrap_or_default())
    }

    fn roots(&self, mesh: &Mesh) -> Result<String> {
        let bundle = self.object(mesh, "/api/v1", "configmaps/nodemesh-ca-root")?;
        Ok(bundle["data"]["root-cert.pem"].as_str().unwrap_or_default().to_owned())
    }

    /// With all rights: a certificate, a status on every object, an Event that was told twice.
    fn whole(&self, mesh: &Mesh, controller: &mut Local) -> Result<Option<String>> {
        let start = Instant::now();
        let (mut round, mut missing) = (0, String::new());
        while start.elapsed() < PATIENCE {
            controller.check_alive()?;
            missing = self.missing(mesh, controller)?;
            if missing.is_empty() {
                return Ok(None);
            }
            round += 1;
            touch(mesh, "authorizationpolicies", round)?;
            thread::sleep(PACE);
        }
        Ok(Some(format!("{missing}: {}", controller.said())))
    }

    fn missing(&self, mesh: &Mesh, controller: &Local) -> Result<String> {
        for (plural, path, _) in ruled(0) {
            let object = mesh.cluster.object(&path)?.with_context(|| format!("no {plural}"))?;
            let conditions =
                [object.pointer("/status/conditions/0"), object.pointer("/status/parents/0/conditions/0")];
            if !conditions.into_iter().flatten().any(|one| one["type"] == "Accepted") {
                return Ok(format!("no status on {plural}"));
            }
        }
        let path = format!("/apis/events.k8s.io/v1/namespaces/{NS}/events");
        let events = mesh.cluster.object(&path)?.unwrap_or_default();
        let told = |event: &&Value| event["reportingController"] == "nodemesh.io/controller";
        let Some(event) = events["items"].as_array().into_iter().flatten().find(told) else {
            return Ok("no Event".to_owned());
        };
        if event["series"]["count"].as_u64().unwrap_or_default() < 2 {
            return Ok("no Event that was told twice".to_owned());
        }
        let issued = controller.issues(mesh, &self.roots(mesh)?)?;
        Ok(issued.map_or(String::new(), |why| format!("no certificate: {why}")))
    }

    /// What the API server refused; none when it refused nothing that this right is for.
    fn refused(&self, mesh: &Mesh, controller: &mut Local, right: &Right) -> Result<Option<String>> {
        let written = right.resource.strip_suffix("/status");
        let touched = written.or((right.resource == "events").then_some("authorizationpolicies"));
        let start = Instant::now();
        let mut round = 0;
        while start.elapsed() < PATIENCE {
            controller.check_alive()?;
            let said = refusals(&controller.said());
            if right.is_refused_in(&said) {
                let effect = self.effect(mesh)?;
                // The library says it first, and then the controller.
                let last = refusals(&controller.said()).pop().unwrap_or_default();
                let words = last.split("\"message\":\"").nth(1).unwrap_or(&last);
                return Ok(Some(effect.unwrap_or_else(|| words.to_owned())));
            }
            if let Some(plural) = touched {
                round += 1;
                touch(mesh, plural, round)?;
            }
            let roots = if right.resource == "tokenreviews" { self.roots(mesh)? } else { String::new() };
            if !roots.is_empty()
                && let Some(why) = controller.issues(mesh, &roots)?
                && why.contains(REFUSED)
            {
                return Ok(Some(why));
            }
            thread::sleep(PACE);
        }
        Ok(None)
    }

    /// What is not there in the namespace, where this right is for that; an error when it is there all the same.
    fn effect(&self, mesh: &Mesh) -> Result<Option<String>> {
        let Some(right) = self.right else { return Ok(None) };
        let absent = |what: &str, there: bool| {
            ensure!(!there, "without {right:?} there is {what}");
            Ok(Some(format!("no {what}")))
        };
        match (&*right.resource, &*right.verb) {
            ("secrets", "get" | "create") => absent("trust bundle", !self.roots(mesh)?.is_empty()),
            ("configmaps", _) if right.names[0] != "nodemesh" => {
                absent("trust bundle", !self.roots(mesh)?.is_empty())
            }
            ("leases", "get" | "create") => {
                let lease =
                    self.object(mesh, "/apis/coordination.k8s.io/v1", "leases/nodemesh-controller")?;
                absent("lease", !lease.is_null())
            }
            _ => Ok(None),
        }
    }
}

/// Gives the object of this kind another spec.
fn touch(mesh: &Mesh, plural: &str, round: u32) -> Result<()> {
    let all = ruled(round);
    let (_, path, object) = all.iter().find(|(one, ..)| *one == plural).with_context(|| plural.to_owned())?;
    mesh.cluster.patch(path, &json!({"spec": object["spec"]}))
}

/// A root with a month left, and its key.
fn ending_root() -> Result<(String, String)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(30 * 24 * 3600)).into();
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// A controller as a process of the machine. Dropping it kills it.
struct Local {
    child: Child,
    log: PathBuf,
}

impl Local {
    fn start(mesh: &Mesh, name: &str) -> Result<Self> {
        let kubeconfig = mesh.cluster.kubeconfig_for(name, None)?;
        let log = mesh.cluster.dir().join(format!("{name}.log"));
        let mut command = Command::new(agent::binary()?);
        command.arg("controller").arg("--kubeconfig").arg(&kubeconfig).args([
            "--namespace",
            name,
            "--id",
            name,
        ]);
        let any = "127.0.0.1:0";
        command.args(["--ca-listen", any, "--metrics", any, "--readiness", any, "--log-format", "json"]);
        command.args([
            "--server-names",
            authority::NAME,
            "--trusted-accounts",
            "nodemesh-system/nodemesh-agent",
        ]);
        let out = File::create(&log).context("cannot make a log")?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        Ok(Self { child: command.spawn().context("cannot start a controller")?, log })
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn check_alive(&mut self) -> Result<()> {
        ensure!(self.child.try_wait()?.is_none(), "it has ended: {}", self.said());
        Ok(())
    }

    /// Asks it for a certificate as the agent of node-a does; why there is none.
    fn issues(&self, mesh: &Mesh, roots: &str) -> Result<Option<String>> {
        let said = self.said();
        let at = said.split("\"ca\":\"").nth(1).and_then(|rest| rest.split('"').next());
        let Some(at) = at.filter(|_| !roots.is_empty()) else {
            return Ok(Some("no trust bundle, or no address".to_owned()));
        };
        let stream = std::net::TcpStream::connect(at).with_context(|| format!("the CA at {at}"))?;
        let token = authority::token_of_agent(mesh, "istio-ca")?;
        let identity = format!("spiffe://cluster.local/ns/{TENANT}/sa/app");
        let answer = authority::ask_by(stream, roots, Some(&token), &identity)?;
        Ok((answer.status != authority::OK).then_some(answer.said))
    }

    fn end(&mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)
            .context("cannot end a controller")?;
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(start.elapsed() < PATIENCE, "the controller does not end: {}", self.said());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
