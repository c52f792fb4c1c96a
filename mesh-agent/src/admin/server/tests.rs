use std::os::unix::fs::PermissionsExt;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::*;
use crate::admin::fixtures::{Scripted, views};
use crate::admin::{Client, ClientError, ExplainQuery, Status};

fn bind(path: &Path, takeover: Takeover) -> Result<AdminServer, SocketError> {
    AdminServer::bind(path, takeover, Arc::new(Scripted::new()), Metrics::new())
}

fn start(path: &Path) -> JoinHandle<()> {
    let server = bind(path, Takeover::Never).unwrap();
    tokio::spawn(async move {
        server.run().await;
    })
}

async fn end(server: JoinHandle<()>) {
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
}

async fn http(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn every_view_comes_back_as_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/er/admin.sock");
    let server = start(&path);
    let client = Client::new(&path);
    let views = views();
    assert_eq!(client.get::<Status>("status").await.unwrap(), views.status);
    assert_eq!(client.get::<Vec<crate::admin::Check>>("check").await.unwrap(), views.checks);
    assert_eq!(client.get::<Vec<crate::admin::WorkloadView>>("workloads").await.unwrap(), views.workloads);
    assert_eq!(client.get::<Vec<crate::admin::ServiceView>>("services").await.unwrap(), views.services);
    assert_eq!(client.get::<Vec<crate::admin::PolicyView>>("policies").await.unwrap(), views.policies);
    assert_eq!(client.get::<Vec<crate::admin::CertView>>("certs").await.unwrap(), views.certificates);
    assert_eq!(client.get::<Vec<crate::admin::ConnView>>("connections").await.unwrap(), views.connections);
    let version = client.get::<crate::admin::Version>("version").await.unwrap();
    assert_eq!((version.version.as_str(), version.abi.as_deref()), (env!("CARGO_PKG_VERSION"), Some("v1")));
    let query = ExplainQuery::parse("shop/frontend-0", "shop/reviews:9080").unwrap();
    assert_eq!(client.explain(&query).await.unwrap(), views.denied);
    let query = ExplainQuery::parse("shop/nobody", "shop/reviews:9080").unwrap();
    assert!(
        matches!(client.explain(&query).await, Err(ClientError::NotFound(text)) if text.contains("shop/nobody"))
    );
    assert!(matches!(client.get::<Status>("explain?src=a").await, Err(ClientError::Refused(_))));
    assert!(matches!(client.get::<Status>("workloads").await, Err(ClientError::Answer { .. })));
    assert!(matches!(client.get::<Status>("nothing").await, Err(ClientError::NotFound(_))));
    end(server).await;
}

#[tokio::test]
async fn the_socket_is_the_owners_and_goes_with_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let server = start(&path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    end(server).await;
    assert!(!path.exists());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left beside it");
    let error = Client::new(&path).get::<Status>("status").await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a listener that dies leaves its file");
    let server = start(&path);
    assert!(matches!(bind(&path, Takeover::Never), Err(SocketError::InUse(_))));
    assert!(Client::new(&path).get::<Status>("status").await.is_ok(), "the refused one did no harm");

    let successor = bind(&path, Takeover::Planned).unwrap();
    end(server).await;
    assert!(path.exists(), "the predecessor leaves its successor's file alone");
    let successor = tokio::spawn(async move {
        successor.run().await;
    });
    assert!(Client::new(&path).get::<Status>("status").await.is_ok());
    end(successor).await;

    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(bind(&path, Takeover::Planned), Err(SocketError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn metrics_are_served_at_both_names_and_by_get_only() {
    let metrics = Metrics::new();
    let server = HttpServer::metrics("127.0.0.1:0".parse().unwrap(), Arc::clone(&metrics)).await.unwrap();
    let address = server.local_addr().unwrap();
    let server = tokio::spawn(async move {
        server.run().await;
    });
    for path in ["/metrics", "/stats/prometheus", "/metrics?name=x"] {
        let answer = http(address, &get(path)).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: application/openmetrics-text"), "{answer}");
        assert!(
            answer.contains("istio_build{component=\"nodemesh\"") && answer.ends_with("# EOF\n"),
            "{answer}"
        );
    }
    assert!(http(address, &get("/healthz/ready")).await.starts_with("HTTP/1.1 404"));
    let post = "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert!(http(address, post).await.starts_with("HTTP/1.1 405"));
    end(server).await;
}

#[tokio::test]
async fn readiness_says_what_is_missing() {
    let source = Arc::new(Scripted::new());
    let address = "127.0.0.1:0".parse().unwrap();
    let dynamic: Arc<dyn AdminSource> = Arc::<Scripted>::clone(&source);
    let server = HttpServer::readiness(address, dynamic, Metrics::new()).await.unwrap();
    let address = server.local_addr().unwrap();
    let server = tokio::spawn(async move {
        server.run().await;
    });
    *source.missing.lock() = vec!["no world was loaded".into(), "capture is not attached".into()];
    let answer = http(address, &get("/healthz/ready")).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.ends_with("not ready: no world was loaded; capture is not attached\n"), "{answer}");
    source.missing.lock().clear();
    assert!(http(address, &get("/healthz/ready")).await.starts_with("HTTP/1.1 200"));
    end(server).await;
}

#[tokio::test]
async fn a_request_head_that_is_too_long_is_refused_and_counted() {
    let metrics = Metrics::new();
    let server = HttpServer::metrics("127.0.0.1:0".parse().unwrap(), Arc::clone(&metrics)).await.unwrap();
    let address = server.local_addr().unwrap();
    let server = tokio::spawn(async move {
        server.run().await;
    });
    let long = format!("GET /metrics HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(HEAD_MAX_BYTES));
    let answer = http(address, &long).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(metrics.limit_count(Limit::AdminRequests), 1);
    end(server).await;
}

#[tokio::test]
async fn a_client_that_stalls_is_cut_and_too_many_are_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let mut server = bind(&path, Takeover::Never).unwrap();
    server.server.limits =
        Limits { connections: 2, head_timeout: Duration::from_millis(200), life: HEAD_TIMEOUT };
    let metrics = Arc::clone(&server.server.metrics);
    let server = tokio::spawn(async move {
        server.run().await;
    });
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"GET /v1/sta").await.unwrap();
        stalled.push(stream);
    }
    // Accepted in order, so the third meets a full house.
    let third = Client::new(&path).get::<Status>("status").await;
    assert!(matches!(third, Err(ClientError::Unreachable { .. })), "{third:?}");
    assert_eq!(metrics.limit_count(Limit::AdminConnections), 1);
    for mut stream in stalled {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "a stalled client keeps its place");
    }
    let until = std::time::Instant::now() + Duration::from_secs(5);
    while metrics.limit_count(Limit::AdminRequests) < 2 {
        assert!(std::time::Instant::now() < until, "the stalled requests are not counted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(Client::new(&path).get::<Status>("status").await.is_ok());
    end(server).await;
}
