//! A WebSocket server that somebody else wrote (tungstenite): it says `hello` first, gives every message back, and closes
//! when it hears `bye`.
use std::io;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

pub(super) async fn serve(stream: TcpStream) -> io::Result<()> {
    talk(stream).await.map_err(io::Error::other)
}

async fn talk(stream: TcpStream) -> Result<(), Error> {
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    socket.send(Message::text("hello")).await?;
    while let Some(message) = socket.next().await {
        match message? {
            Message::Text(text) if text.as_str() == "bye" => {
                let frame = CloseFrame { code: CloseCode::Normal, reason: "bye to you".into() };
                socket.close(Some(frame)).await?;
            }
            message @ (Message::Text(_) | Message::Binary(_)) => socket.send(message).await?,
            // Pings and the client's close are answered by the library.
            _ => {}
        }
    }
    Ok(())
}
