use tokio::net::{TcpListener, TcpStream};

use super::*;

fn rule(number: usize) -> Arc<TlsOrigin> {
    Arc::new(TlsOrigin {
        namespace: "shop".into(),
        sni: Some(format!("n{number}.example.com").into()),
        subject_alt_names: Vec::new(),
        roots: None,
        client: None,
        skip_verify: true,
    })
}

#[tokio::test]
async fn no_more_configurations_are_kept_than_the_limit() {
    let originator = Originator::new("/nowhere".into());
    let first = originator.config(&rule(0), Inside::Http1).await.unwrap();
    let again = originator.config(&rule(0), Inside::Http1).await.unwrap();
    assert!(Arc::ptr_eq(&first, &again), "it is kept");
    for number in 1..=CONFIGS_MAX {
        originator.config(&rule(number), Inside::Bytes).await.unwrap();
        assert!(originator.configs.lock().len() <= CONFIGS_MAX);
    }
    let again = originator.config(&rule(0), Inside::Http1).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &again), "it is made anew");
}

/// Time is the runtime's own, which goes on when there is nothing else to do.
#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let originator = Originator::new("/nowhere".into());
    let to = Origination::new(&rule(0), "n.example.com", None);
    let since = tokio::time::Instant::now();
    let failure = originator.begin(HttpIo::tcp(stream), &to, Inside::Bytes).await.err().unwrap();
    assert_eq!(failure.reason, Reason::UpstreamTls);
    assert!(since.elapsed() >= HANDSHAKE_TIMEOUT);
}
