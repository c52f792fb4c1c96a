//! A connection to the admin socket of an agent's container: the relay is run there through the API server and its
//! standard streams are the connection. Called by `admin::Client`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, AttachedProcess};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chain;
use crate::admin::{Dial, DialError, Dialling, Stream};
use crate::install::{AGENT_CONTAINER, PROGRAM};

/// Bytes in flight in each direction.
const BUFFER_BYTES: usize = 64 * 1024;

/// The agent of one node.
pub(super) struct PodDial {
    pub(super) pods: Api<Pod>,
    pub(super) pod: String,
    pub(super) node: String,
}

impl Dial for PodDial {
    fn dial(&self) -> Dialling<'_> {
        Box::pin(self.open())
    }

    fn place(&self) -> String {
        format!("node {} (pod {})", self.node, self.pod)
    }
}

impl PodDial {
    async fn open(&self) -> Result<Box<dyn Stream>, DialError> {
        let how = AttachParams::default()
            .container(AGENT_CONTAINER)
            .stdin(true)
            .stdout(true)
            .stderr(false)
            .max_stdin_buf_size(BUFFER_BYTES)
            .max_stdout_buf_size(BUFFER_BYTES);
        let mut process =
            self.pods.exec(&self.pod, [PROGRAM, "admin-relay"], &how).await.map_err(|error| DialError {
                cause: chain(&error),
                remedy: match &error {
                    kube::Error::Api(status) if status.code == 403 => {
                        "ask for a role that may create pods/exec in the mesh's namespace"
                    }
                    _ => {
                        "is the pod running? `kubectl describe` tells; does the API server reach the kubelet?"
                    }
                },
            })?;
        let (Some(output), Some(input)) = (process.stdout(), process.stdin()) else {
            return Err(DialError {
                cause: "the container's streams were not given".to_owned(),
                remedy: "try again",
            });
        };
        Ok(Box::new(PodStream { output: Box::pin(output), input: Box::pin(input), _process: process }))
    }
}

/// The relay's output and input as one stream. Dropping it ends the relay.
struct PodStream {
    output: Pin<Box<dyn AsyncRead + Send>>,
    input: Pin<Box<dyn AsyncWrite + Send>>,
    _process: AttachedProcess,
}

impl AsyncRead for PodStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.output.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for PodStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.input.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_shutdown(context)
    }
}
