//! What members send each other.
//!
//! A frame has a version and a kind. A Raft message travels as Raft encodes it; what is proposed
//! travels as the items that entries are made of; a snapshot in numbered chunks, each of which is
//! acknowledged, so that a slow receiver slows the sender down.

use crate::codec::{CodecError, Reader, put_bytes, put_count, put_u64};
use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::Message;

/// The form of frames; the peers' hello agrees on it.
const VERSION: u8 = 1;

const RAFT: u8 = 1;
const PROPOSE: u8 = 2;
const REFUSE: u8 = 3;
const SNAPSHOT: u8 = 4;
const CHUNK: u8 = 5;
const ACK: u8 = 6;

/// One message between members.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Frame {
    Raft(Message),
    /// Items for the leader to propose.
    Propose(Vec<Bytes>),
    /// The leader does not do what these requests ask for: for a reason, or for want of room.
    Refuse {
        ids: Vec<u128>,
        reason: Option<String>,
    },
    /// A snapshot begins; the message is handed to Raft once all of it is there.
    Snapshot {
        transfer: u64,
        message: Message,
    },
    /// A part of the snapshot.
    Chunk {
        transfer: u64,
        number: u64,
        last: bool,
        bytes: Bytes,
    },
    /// Everything up to chunk `number` is written; or the receiver gives up.
    Ack {
        transfer: u64,
        number: u64,
        failed: bool,
    },
}

/// Why a frame can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the frame {0}")]
    Codec(#[from] CodecError),
    #[error("the Raft message can't be read: {0}")]
    Message(String),
}

impl Frame {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(64);
        out.push(VERSION);
        match self {
            Self::Raft(message) => {
                out.push(RAFT);
                out.reserve(message.compute_size() as usize);
                put_message(&mut out, message);
            }
            Self::Propose(items) => {
                out.push(PROPOSE);
                put_count(&mut out, items.len());
                items.iter().for_each(|item| put_bytes(&mut out, item));
            }
            Self::Refuse { ids, reason } => {
                out.push(REFUSE);
                put_count(&mut out, ids.len());
                ids.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
                out.extend_from_slice(reason.as_deref().unwrap_or_default().as_bytes());
            }
            Self::Snapshot { transfer, message } => {
                out.push(SNAPSHOT);
                put_u64(&mut out, *transfer);
                put_message(&mut out, message);
            }
            Self::Chunk { transfer, number, last, bytes } => {
                out.push(CHUNK);
                put_u64(&mut out, *transfer);
                put_u64(&mut out, *number);
                out.push(u8::from(*last));
                out.extend_from_slice(bytes);
            }
            Self::Ack { transfer, number, failed } => {
                out.push(ACK);
                put_u64(&mut out, *transfer);
                put_u64(&mut out, *number);
                out.push(u8::from(*failed));
            }
        }
        out.into()
    }

    pub(crate) fn decode(frame: &Bytes) -> Result<Self, FrameError> {
        let mut reader = Reader::new(frame);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(CodecError::Version(version).into());
        }
        Ok(match reader.u8()? {
            RAFT => Self::Raft(message(reader.rest())?),
            PROPOSE => Self::Propose(reader.list(|r| Ok(frame.slice_ref(r.bytes()?)))?),
            REFUSE => {
                let ids = reader.list(Reader::u128)?;
                let reason = String::from_utf8_lossy(reader.rest());
                Self::Refuse { ids, reason: Some(reason.into_owned()).filter(|r| !r.is_empty()) }
            }
            SNAPSHOT => {
                Self::Snapshot { transfer: reader.u64()?, message: message(reader.rest())? }
            }
            CHUNK => {
                let (transfer, number) = (reader.u64()?, reader.u64()?);
                let last = reader.u8()? != 0;
                Self::Chunk { transfer, number, last, bytes: frame.slice_ref(reader.rest()) }
            }
            ACK => {
                let (transfer, number) = (reader.u64()?, reader.u64()?);
                Self::Ack { transfer, number, failed: reader.u8()? != 0 }
            }
            tag => return Err(CodecError::Tag(tag).into()),
        })
    }
}

fn put_message(out: &mut Vec<u8>, message: &Message) {
    // Writing a message without required fields into memory can't fail.
    let _ = message.write_to_vec(out);
}

fn message(bytes: &[u8]) -> Result<Message, FrameError> {
    Message::parse_from_bytes(bytes).map_err(|error| FrameError::Message(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_come_back() {
        let message = Message { from: 1, to: 2, term: 3, ..Message::default() };
        for frame in [
            Frame::Raft(message.clone()),
            Frame::Propose(vec![Bytes::from_static(b"ab"), Bytes::new()]),
            Frame::Refuse { ids: vec![7, u128::MAX], reason: None },
            Frame::Refuse { ids: vec![7], reason: Some("no".into()) },
            Frame::Snapshot { transfer: 4, message },
            Frame::Chunk { transfer: 4, number: 0, last: true, bytes: Bytes::from_static(b"x") },
            Frame::Ack { transfer: 4, number: 9, failed: false },
        ] {
            assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }
    }

    proptest! {
        #[test]
        fn no_frame_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0..8u8) {
            let _ = Frame::decode(&bytes.clone().into());
            if bytes.len() > 1 {
                (bytes[0], bytes[1]) = (VERSION, kind);
            }
            let _ = Frame::decode(&bytes.into());
        }
    }
}
