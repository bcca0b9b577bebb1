//! Remote processes over SPDY/3.1, the one protocol that every container runtime's streaming
//! server speaks and that can end stdin alone (over WebSocket only the newest can).
//!
//! Of SPDY only what the protocol `v4.channel.k8s.io` needs is here: streams that we open, data,
//! pings. Our headers go out in stored zlib blocks, which every peer reads; what the peer says in
//! its reply headers nobody needs, so they are not unpacked.
//!
//! One task reads frames and hands each stream's data on; one writes what the queue holds. The
//! process is over when the connection ends, or when the error stream and all output streams have
//! ended; its status is what the error stream said.

use serde_json::Value;
use std::collections::HashMap;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// What HTTP's `Upgrade` says.
pub const UPGRADE: &str = "SPDY/3.1";
/// What `X-Stream-Protocol-Version` says.
pub const PROTOCOL: &str = "v4.channel.k8s.io";

/// Bytes that may wait between a stream and who reads it.
const BUFFER: usize = 256 << 10;
/// Frames that may wait to be written: enough to keep the socket busy, few enough to feel its
/// back-pressure on stdin.
const QUEUE: usize = 16;
/// A larger frame is refused: peers send at most some tens of KiB.
const MAX_FRAME: usize = 16 << 20;
const FIN: u8 = 1;

/// Which streams a process has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// We write to it.
    pub stdin: bool,
    /// A terminal: no stderr of its own, but sizes.
    pub tty: bool,
}

/// A remote process. Dropping it ends the connection.
pub struct Process {
    /// Where it reads from; shutting it down is its end of input.
    pub stdin: Option<DuplexStream>,
    /// What it prints.
    pub stdout: Option<DuplexStream>,
    /// What it complains.
    pub stderr: Option<DuplexStream>,
    /// Columns and rows of our terminal.
    pub sizes: Option<mpsc::Sender<(u16, u16)>>,
    status: oneshot::Receiver<Value>,
    tasks: Vec<JoinHandle<()>>,
}

impl Process {
    /// Waits for the process's end; the `Status` that it ended with, null if nobody said.
    pub async fn status(&mut self) -> Value {
        (&mut self.status).await.unwrap_or(Value::Null)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Opens the streams of a process over a connection that was upgraded.
pub fn open(connection: impl AsyncRead + AsyncWrite + Send + 'static, wanted: Wanted) -> Process {
    let (reader, writer) = tokio::io::split(connection);
    let (frames, queue) = mpsc::channel(QUEUE);
    let mut opening = Vec::new();
    let mut streams = Streams::default();
    let mut id = 1;
    let mut next = |kind: &str, opening: &mut Vec<Vec<u8>>| {
        let own = id;
        opening.push(syn_stream(own, kind, own == 1));
        id += 2;
        own
    };
    streams.error = next("error", &mut opening);
    let mut tasks = Vec::new();
    let stdin = wanted.stdin.then(|| {
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let id = next("stdin", &mut opening);
        tasks.push(tokio::spawn(pump(theirs, id, frames.clone())));
        ours
    });
    let mut output = |kind: &str, opening: &mut Vec<Vec<u8>>| {
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        streams.outputs.insert(next(kind, opening), theirs);
        ours
    };
    let stdout = output("stdout", &mut opening);
    let stderr = (!wanted.tty).then(|| output("stderr", &mut opening));
    let sizes = wanted.tty.then(|| {
        // A size that is not sent yet is only replaced by the next one.
        let (sender, receiver) = mpsc::channel(1);
        let id = next("resize", &mut opening);
        tasks.push(tokio::spawn(send_sizes(receiver, id, frames.clone())));
        sender
    });
    let (tell, status) = oneshot::channel();
    tasks.push(tokio::spawn(write_frames(writer, opening, queue)));
    tasks.push(tokio::spawn(read_frames(reader, streams, frames, tell)));
    Process { stdin, stdout: Some(stdout), stderr, sizes, status, tasks }
}

/// A frame that opens a stream of a kind.
fn syn_stream(id: u32, kind: &str, first: bool) -> Vec<u8> {
    let mut headers = 1u32.to_be_bytes().to_vec();
    for text in ["streamtype", kind] {
        headers.extend((text.len() as u32).to_be_bytes());
        headers.extend(text.bytes());
    }
    let mut body = id.to_be_bytes().to_vec();
    // No associated stream, priority 0, no slot.
    body.extend([0; 6]);
    body.extend(stored(&headers, first));
    control(1, 0, &body)
}

/// A zlib block that stores bytes as they are, and an empty one that makes the reader hand them
/// on. All header blocks of a connection are one zlib stream: its head comes first.
fn stored(bytes: &[u8], first: bool) -> Vec<u8> {
    let mut out = if first { vec![0x78, 0x01] } else { Vec::new() };
    let length = bytes.len() as u16;
    out.push(0);
    out.extend(length.to_le_bytes());
    out.extend((!length).to_le_bytes());
    out.extend(bytes);
    out.extend([0, 0, 0, 0xff, 0xff]);
    out
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3];
    frame.extend(kind.to_be_bytes());
    frame.extend(flags_and_length(flags, body.len()));
    frame.extend(body);
    frame
}

fn data(id: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    let mut frame = id.to_be_bytes().to_vec();
    frame.extend(flags_and_length(flags, bytes.len()));
    frame.extend(bytes);
    frame
}

fn flags_and_length(flags: u8, length: usize) -> [u8; 4] {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    [flags, a, b, c]
}

/// Sends what is written to stdin, and its end.
async fn pump(mut from: DuplexStream, id: u32, frames: mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if frames.send(data(id, 0, &buffer[..n])).await.is_err() {
            return;
        }
    }
    // The connection may be over already; then so is the process.
    let _ = frames.send(data(id, FIN, &[])).await;
}

async fn send_sizes(mut sizes: mpsc::Receiver<(u16, u16)>, id: u32, frames: mpsc::Sender<Vec<u8>>) {
    while let Some((width, height)) = sizes.recv().await {
        let text = format!("{{\"Width\":{width},\"Height\":{height}}}\n");
        if frames.send(data(id, 0, text.as_bytes())).await.is_err() {
            return;
        }
    }
}

async fn write_frames(
    mut to: impl AsyncWrite + Unpin,
    opening: Vec<Vec<u8>>,
    mut queue: mpsc::Receiver<Vec<u8>>,
) {
    let work = async {
        to.write_all(&opening.concat()).await?;
        to.flush().await?;
        while let Some(frame) = queue.recv().await {
            to.write_all(&frame).await?;
            to.flush().await?;
        }
        io::Result::Ok(())
    };
    // A connection that breaks is seen by the reader, which ends the process.
    let _ = work.await;
}

/// The streams that the peer writes to.
#[derive(Default)]
struct Streams {
    error: u32,
    outputs: HashMap<u32, DuplexStream>,
    said: Vec<u8>,
    error_ended: bool,
}

impl Streams {
    async fn take(&mut self, id: u32, bytes: &[u8]) {
        if id == self.error {
            self.said.extend_from_slice(bytes);
        } else if let Some(output) = self.outputs.get_mut(&id)
            && output.write_all(bytes).await.is_err()
        {
            // Nobody reads it any more.
            self.outputs.remove(&id);
        }
    }

    fn end(&mut self, id: u32) {
        self.error_ended |= id == self.error;
        self.outputs.remove(&id);
    }

    fn over(&self) -> bool {
        self.error_ended && self.outputs.is_empty()
    }
}

async fn read_frames(
    mut from: impl AsyncRead + Unpin,
    mut streams: Streams,
    frames: mpsc::Sender<Vec<u8>>,
    tell: oneshot::Sender<Value>,
) {
    // A broken connection ends the process like a proper end: what was said until then counts.
    while !streams.over() {
        match read_frame(&mut from, &mut streams, &frames).await {
            Ok(true) => {}
            Ok(false) | Err(_) => break,
        }
    }
    streams.outputs.clear();
    let status = match serde_json::from_slice(&streams.said) {
        Ok(status) => status,
        Err(_) if streams.error_ended && streams.said.is_empty() => {
            serde_json::json!({"status": "Success"})
        }
        Err(_) => Value::Null,
    };
    // Who does not wait for the status has gone.
    let _ = tell.send(status);
}

/// Reads one frame; false at the end of the connection.
async fn read_frame(
    from: &mut (impl AsyncRead + Unpin),
    streams: &mut Streams,
    frames: &mpsc::Sender<Vec<u8>>,
) -> io::Result<bool> {
    let mut head = [0u8; 8];
    from.read_exact(&mut head).await?;
    let [first, second, third, fourth, flags, a, b, c] = head;
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    let number = |at: usize| -> u32 {
        body.get(at..at + 4).map_or(0, |n| u32::from_be_bytes([n[0] & 0x7f, n[1], n[2], n[3]]))
    };
    if first & 0x80 == 0 {
        let id = u32::from_be_bytes([first, second, third, fourth]);
        streams.take(id, &body).await;
        if flags & FIN != 0 {
            streams.end(id);
        }
        return Ok(true);
    }
    match u16::from_be_bytes([third, fourth]) {
        // SYN_REPLY and HEADERS may end a stream too, RST_STREAM always does.
        2 | 8 if flags & FIN != 0 => streams.end(number(0)),
        3 => streams.end(number(0)),
        // A ping with an even id is the peer's: it wants it back.
        6 if number(0).is_multiple_of(2) => {
            let _ = frames.send(control(6, 0, &body)).await;
        }
        7 => return Ok(false),
        _ => {}
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_echoes_and_fails() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut process = open(ours, Wanted { stdin: true, tty: false });
        let mut stdin = process.stdin.take().unwrap();
        let mut stdout = process.stdout.take().unwrap();
        stdin.write_all(b"hello").await.unwrap();
        stdin.shutdown().await.unwrap();
        drop(stdin);
        let mut kinds = Vec::new();
        let mut typed = Vec::new();
        loop {
            let mut head = [0u8; 8];
            theirs.read_exact(&mut head).await.unwrap();
            let mut body = vec![0; u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize];
            theirs.read_exact(&mut body).await.unwrap();
            if head[0] == 0x80 {
                let text = String::from_utf8_lossy(&body).into_owned();
                kinds.extend(
                    ["error", "stdin", "stdout", "stderr"]
                        .iter()
                        .filter(|k| text.contains(*k))
                        .copied(),
                );
                continue;
            }
            assert_eq!(head[3], 3, "only stdin has data");
            typed.extend(body);
            if head[4] == FIN {
                break;
            }
        }
        assert_eq!(kinds, ["error", "stdin", "stdout", "stderr"]);
        assert_eq!(typed, b"hello");
        theirs.write_all(&control(6, 0, &2u32.to_be_bytes())).await.unwrap();
        theirs.write_all(&data(5, 0, &typed)).await.unwrap();
        theirs.write_all(&data(1, FIN, b"{\"status\":\"Failure\"}")).await.unwrap();
        theirs.write_all(&data(5, FIN, b"")).await.unwrap();
        theirs.write_all(&data(7, FIN, b"")).await.unwrap();
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).await.unwrap();
        assert_eq!(printed, "hello");
        assert_eq!(process.status().await["status"], "Failure");
        let mut pong = [0u8; 12];
        theirs.read_exact(&mut pong).await.unwrap();
        assert_eq!(pong, *control(6, 0, &2u32.to_be_bytes()));
    }

    #[test]
    fn header_blocks_are_zlib() {
        // Head, a stored block of 3 bytes, an empty block.
        assert_eq!(
            stored(b"abc", true),
            [0x78, 1, 0, 3, 0, 0xfc, 0xff, b'a', b'b', b'c', 0, 0, 0, 0xff, 0xff]
        );
    }
}
