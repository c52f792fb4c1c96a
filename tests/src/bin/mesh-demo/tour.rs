//! What to try while the shop is up: commands to copy, which a test runs as they are printed.
use std::path::Path;

use mesh_tests::Pod;
use mesh_tests::agent::binary;

use crate::shop::{BACKEND_VIP, REVIEWS_PORT, REVIEWS_VIP, Shop};
use crate::terminal::Terminal;

pub(crate) fn print(shop: &Shop, terminal: &Terminal) {
    terminal.title("\nThe shop is yours. In another terminal, as root:");
    let agent = binary().unwrap_or_else(|_| "mesh-agent".into());
    let socket = |node: &str| {
        shop.agent(node).map(|agent| agent.admin_socket().display().to_string()).unwrap_or_default()
    };
    let mesh = format!("{} --admin-socket {}", agent.display(), socket("node-a"));
    let manifests = shop.lab().manifests().dir().display().to_string();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/policies");
    let examples = examples.canonicalize().unwrap_or(examples);
    let deny = format!("cp {}/deny-frontend.yaml {manifests}/", examples.display());
    let inside =
        |pod: &Pod, url: &str| format!("nsenter --net={} curl -sS {url}", pod.netns().path().display());
    let reviews = format!("http://{REVIEWS_VIP}:{REVIEWS_PORT}/");
    let tour = [
        ("the agent of node-a (node-b has a socket beside it)", format!("{mesh} status")),
        ("who is in the mesh", format!("{mesh} workloads -o wide")),
        ("what would happen, and which rule says so", format!("{mesh} explain shop/frontend reviews:9080")),
        ("the frontend asks the reviews: both versions answer", inside(&shop.frontend, &reviews)),
        (
            "a review asks the backend, which only they may",
            inside(&shop.reviews_v1, &format!("http://{BACKEND_VIP}:7000/")),
        ),
        ("take the frontend's right away, and try its curl again", deny),
        ("give it back", format!("rm {manifests}/deny-frontend.yaml")),
    ];
    for (why, command) in &tour {
        terminal.dim(&format!("   # {why}"));
        println!("   {command}");
    }
    terminal.dim("   # the link between the nodes: nothing readable (needs tcpdump; Ctrl-C ends it)");
    println!("   nsenter --net={} tcpdump -ni br0 -A tcp", shop.lab().bridge().path().display());
}
