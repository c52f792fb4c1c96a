//! `manifests`: writes the generated files of `deploy/` from what the agent's binary has inside. A test of the agent
//! fails while they differ.
use anyhow::Result;

use crate::setup::{self, Need};
use crate::{build_ebpf, command, paths};

pub(crate) fn run() -> Result<()> {
    let tools = setup::ensure(Need::Build)?;
    build_ebpf::run(&tools.kernel, false)?;
    let mut cargo = command::cargo();
    cargo.args(["run", "--locked", "--package", "mesh-agent", "--bin", "mesh-agent", "--"]);
    cargo.args(["install", "--write-tree"]).arg(paths::root().join("deploy"));
    command::run(&mut cargo)
}
