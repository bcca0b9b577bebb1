//! Upgraded connections that are handed on byte for byte: a client's exec, attach or port-forward
//! through the API server and the kubelet to the container runtime.
//!
//! The runtime says how a process ended and closes at once, often while the client still talks.
//! What it said last must arrive all the same, so the way to the runtime may break without ending
//! the way back; `tokio::io::copy_bidirectional` would give both up.

use futures::future::{Either, select};
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, sink};

/// How long a client may take to hang up after it was told all there is. Closing while bytes of
/// its own wait unread would reset the connection and throw away what it has not read yet.
const LINGER: Duration = Duration::from_secs(1);

/// Passes bytes on in both directions until the server has ended its side. The client's end, or a
/// break of its connection, is passed on as the end of the server's input.
pub async fn join(client: impl AsyncRead + AsyncWrite, server: impl AsyncRead + AsyncWrite) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    // A side that is gone can't be told that the other has ended, nor does it need to be.
    let up = pin!(async {
        let passed = copy(&mut from_client, &mut to_server).await;
        let _ = to_server.shutdown().await;
        if passed.is_err() {
            let _ = copy(&mut from_client, &mut sink()).await;
        }
    });
    let down = pin!(async {
        let _ = copy(&mut from_server, &mut to_client).await;
        let _ = to_client.shutdown().await;
    });
    match select(down, up).await {
        Either::Left(((), up)) => {
            let _ = tokio::time::timeout(LINGER, up).await;
        }
        Either::Right(((), down)) => down.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::task::{Context, Poll};
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};

    /// Takes no more bytes, as a socket whose peer has closed.
    struct Closed;

    impl AsyncWrite for Closed {
        fn poll_write(
            self: std::pin::Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }
        fn poll_flush(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(
            self: std::pin::Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A client's end and, as a task, what joins it with a server.
    fn joined(server: impl AsyncRead + AsyncWrite + Send + 'static) -> DuplexStream {
        let (ours, theirs) = duplex(64);
        tokio::spawn(join(theirs, server));
        ours
    }

    #[tokio::test]
    async fn last_words_arrive_though_the_client_still_talks() {
        let words = "the process ended with 5".repeat(100);
        let server = tokio::io::join(io::Cursor::new(words.clone()), Closed);
        let (mut from, mut to) = tokio::io::split(joined(server));
        let talk = tokio::spawn(async move { while to.write_all(b"still here").await.is_ok() {} });
        let mut heard = String::new();
        from.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, words);
        talk.abort();
    }

    #[tokio::test]
    async fn the_end_of_input_leaves_the_output_open() {
        let (server, mut process) = duplex(64);
        let mut client = joined(server);
        client.write_all(b"input").await.unwrap();
        client.shutdown().await.unwrap();
        let mut typed = String::new();
        process.read_to_string(&mut typed).await.unwrap();
        assert_eq!(typed, "input");
        process.write_all(b"output").await.unwrap();
        drop(process);
        let mut printed = String::new();
        client.read_to_string(&mut printed).await.unwrap();
        assert_eq!(printed, "output");
    }

    #[tokio::test]
    async fn a_client_that_is_gone_ends_the_input() {
        let (server, mut process) = duplex(64);
        drop(joined(server));
        assert_eq!(process.read(&mut [0; 8]).await.unwrap(), 0);
        // Nobody hears this, and the connection goes with it.
        let _ = process.write_all(b"output").await;
        assert!(process.write_all(&[0; 1000]).await.is_err());
    }
}
