//! `mesh-agent install`: prints what `kubectl apply -f -` puts into a cluster. Nothing is asked and nothing is changed.
//! Called by `cli`.

use std::fs;
use std::path::PathBuf;

use super::cluster::remove::UninstallArgs;
use super::{CliError, Exit, output};
use crate::install::{MeshConfig, Values, render, render_crds, tree};

/// Largest file of mesh-wide settings, bytes.
const FILE_MAX_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct InstallArgs {
    /// Namespace to install into [default: nodemesh-system]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Image of agents and controllers
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// First part of every identity [default: cluster.local, or what FILE says]
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// IstioOperator or meshConfig with the mesh-wide settings
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Another value of the manifests, e.g. `log-level=debug`; an unknown one prints the list
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the CRDs of Istio's policies too; leave it out where Istio's own are installed
    #[arg(long)]
    crds: bool,
    /// Print only the CRDs
    #[arg(long, conflicts_with = "crds")]
    crds_only: bool,
    /// Write the generated files of this folder, as `cargo xtask manifests` does
    #[arg(long, value_name = "DIR", hide = true)]
    write_tree: Option<PathBuf>,
}

pub(super) fn run(args: &InstallArgs) -> Result<Exit, CliError> {
    if let Some(folder) = &args.write_tree {
        return write_tree(folder);
    }
    let mut text = String::new();
    if args.crds || args.crds_only {
        text.push_str(&render_crds()?);
    }
    if !args.crds_only {
        text.push_str(&render(&values(args)?));
    }
    output::write(&text)?;
    Ok(Exit::Good)
}

fn values(args: &InstallArgs) -> Result<Values, CliError> {
    let mut values = Values::default();
    for text in &args.set {
        values.set_text(text)?;
    }
    let mut config = match &args.file {
        Some(path) => read(path)?,
        None => MeshConfig::default(),
    };
    for warning in &config.warnings {
        eprintln!("mesh-agent: warning: {warning}");
    }
    let named = [("namespace", &args.namespace), ("image", &args.image)];
    for (key, value) in named.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
        values.set(key, value)?;
    }
    match &args.trust_domain {
        Some(name) => {
            values.set("trust-domain", name)?;
            if config.text("trustDomain").is_some() {
                config.set("trustDomain", name);
            }
        }
        None => {
            if let Some(name) = config.text("trustDomain") {
                values.set("trust-domain", name)?;
            }
        }
    }
    if let Some(name) = config.text("rootNamespace") {
        values.set("root-namespace", name)?;
    }
    let file = args.file.clone().unwrap_or_default();
    values.set_mesh_config(config.yaml().map_err(|source| CliError::MeshConfig { file, source })?);
    Ok(values)
}

fn read(path: &PathBuf) -> Result<MeshConfig, CliError> {
    let unreadable = |source| CliError::Read { file: path.clone(), source };
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_MAX_BYTES {
        return Err(unreadable(std::io::Error::other(format!("larger than {FILE_MAX_BYTES} bytes"))));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    MeshConfig::parse(&text).map_err(|source| CliError::MeshConfig { file: path.clone(), source })
}

fn write_tree(folder: &std::path::Path) -> Result<Exit, CliError> {
    for file in tree()? {
        let path = folder.join(&file.path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        if fs::read_to_string(&path).ok().as_deref() != Some(file.text.as_str()) {
            fs::write(&path, &file.text)?;
            output::write(&format!("wrote {}\n", path.display()))?;
        }
    }
    Ok(Exit::Good)
}

/// What both verbs about an installation need.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Installation {
    /// Print the manifests of an installation, for `kubectl apply -f -`
    Install(InstallArgs),
    /// Remove the mesh from a cluster; running pods stay connected
    Uninstall(UninstallArgs),
}

impl Installation {
    pub(super) async fn run(&self) -> Result<Exit, CliError> {
        match self {
            Self::Install(args) => run(args),
            Self::Uninstall(args) => super::cluster::remove::run(args).await,
        }
    }
}
