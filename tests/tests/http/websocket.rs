//! WebSockets between a client and a server that nobody here wrote.
use std::net::TcpStream;

use anyhow::{Result, ensure};
use mesh_tests::{App, eventually};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket, client};

use crate::shop::{Pair, SOON, Service};

fn connect(pair: &Pair, service: &Service) -> Result<WebSocket<TcpStream>> {
    let stream = pair.shop.connect(service.at(0))?;
    let (mut socket, answer) = client(format!("ws://{}/chat", service.name), stream)?;
    ensure!(answer.status() == 101, "{}", answer.status());
    // The server speaks first: its word may have come with the 101 or after it.
    ensure!(socket.read()? == Message::text("hello"));
    Ok(socket)
}

/// Texts, bytes and pings both ways; either side may close, and the other learns why.
#[test]
fn messages_go_both_ways_until_either_side_closes() -> Result<()> {
    for protocol in [Some("http"), None] {
        let pair = Pair::serving("websockets", protocol, App::websocket)?;
        pair.each(|pair, service| {
            let mut socket = connect(pair, service)?;
            for message in [Message::text("one"), Message::binary(vec![7; 200_000]), Message::text("")] {
                socket.send(message.clone())?;
                ensure!(socket.read()? == message);
            }
            socket.send(Message::Ping("are you there".into()))?;
            ensure!(socket.read()? == Message::Pong("are you there".into()));
            socket.send(Message::text("bye"))?;
            let Message::Close(Some(frame)) = socket.read()? else { anyhow::bail!("no close") };
            ensure!((frame.code, frame.reason.as_str()) == (CloseCode::Normal, "bye to you"));
            ensure!(matches!(socket.read(), Err(Error::ConnectionClosed)), "the server closed in order");
            let mut socket = connect(pair, service)?;
            socket.close(None)?;
            let Message::Close(None) = socket.read()? else { anyhow::bail!("the close is not answered") };
            ensure!(matches!(socket.read(), Err(Error::ConnectionClosed)), "the client closed in order");
            Ok(())
        })?;
        for server in &pair.shop.servers {
            eventually("the server's connections to end", SOON, || Ok(server.app.stats().open() == 0))?;
        }
    }
    Ok(())
}
