//! An API server without nodes.
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{ApiServer, eventually};

const SOON: Duration = Duration::from_secs(20);

/// It keeps objects over its own death, its controllers fill in EndpointSlices, RBAC binds other users than the
/// admin, two run side by side, and nothing is left of either.
#[test]
fn an_api_server_serves_dies_and_leaves_nothing() -> Result<()> {
    let server = ApiServer::start_with_controllers()?;
    let other = ApiServer::start()?;
    server.apply(SHOP)?;
    eventually("the EndpointSlice of a Service without pods", SOON, || {
        let slices = server.kubectl(&["get", "endpointslices", "-n", "shop", "-o", "name"])?;
        Ok(slices.contains("/web-"))
    })?;
    ensure!(other.object("/api/v1/namespaces/shop")?.is_none(), "the other one has our objects");

    let nobody = server.kubeconfig_for("nobody", None)?;
    let nobody = nobody.to_str().context("a path that is no text")?;
    let refused = server.kubectl(&["--kubeconfig", nobody, "get", "services", "-n", "shop"]);
    let said = refused.err().context("RBAC let a stranger read services")?.to_string();
    ensure!(said.contains("Forbidden") && said.contains("nobody"), "refused for another reason: {said}");

    server.kill()?;
    ensure!(server.object("/api/v1/namespaces/shop").is_err(), "it answers although it was killed");
    server.boot()?;
    ensure!(server.object("/api/v1/namespaces/shop")?.is_some(), "an object is gone");

    let traces = [server.dir(), other.dir(), server.netns().path().into(), other.netns().path().into()];
    let names = [server.name().to_owned(), other.name().to_owned()];
    drop((server, other));
    for trace in traces {
        ensure!(!trace.exists(), "{} is left", trace.display());
    }
    for name in names {
        let bulk = Path::new("/var/lib/nodemesh-lab").join(&name);
        ensure!(!bulk.exists(), "{} is left", bulk.display());
        ensure!(mesh_tests::process::of_lab(&name).is_empty(), "processes of {name} are left");
    }
    Ok(())
}

const SHOP: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{port: 80}]
";
