//! Bodies of requests and responses.

use bytes::Bytes;
use futures::Stream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use rkube_api::{ApiError, Reason};
use std::pin::Pin;
use std::task::{Context, Poll};

/// The largest body of a request: 3 MiB, as upstream.
pub const MAX_REQUEST_BYTES: usize = 3 * 1024 * 1024;

/// How much of a body that is too large is read and thrown away.
const MAX_DRAINED_BYTES: usize = 64 * 1024 * 1024;

/// Any failure of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request, whatever transport it came by.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// A stream of chunks that is a response.
pub type ChunkStream = Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>;

/// The body of a response.
pub enum Body {
    /// Nothing, or nothing more.
    Empty,
    /// One piece.
    Full(Bytes),
    /// Pieces as they come.
    Stream(ChunkStream),
}

impl Body {
    /// A body of pieces.
    pub fn stream(stream: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Self {
        Body::Stream(Box::pin(stream))
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Body::Empty } else { Body::Full(bytes) }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Body::Empty => Poll::Ready(None),
            Body::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Body::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Body::Stream(stream) => {
                stream.as_mut().poll_next(cx).map(|next| next.map(|r| r.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Stream(_) => SizeHint::default(),
        }
    }
}

/// Reads a request's body.
///
/// # Errors
/// 413 above [`MAX_REQUEST_BYTES`], 400 if the connection breaks.
pub async fn read(mut body: RequestBody) -> Result<Bytes, ApiError> {
    if body.size_hint().lower() > MAX_REQUEST_BYTES as u64 {
        return Err(refuse(body).await);
    }
    let mut first: Option<Bytes> = None;
    let mut rest = Vec::new();
    while let Some(data) = next(&mut body).await? {
        if first.is_none() {
            first = Some(data);
            continue;
        }
        if rest.is_empty() {
            rest.extend_from_slice(first.as_deref().unwrap_or_default());
        }
        if rest.len() + data.len() > MAX_REQUEST_BYTES {
            return Err(refuse(body).await);
        }
        rest.extend_from_slice(&data);
    }
    let bytes = if rest.is_empty() { first.unwrap_or_default() } else { rest.into() };
    if bytes.len() > MAX_REQUEST_BYTES { Err(too_large()) } else { Ok(bytes) }
}

/// The next piece of a body.
async fn next(body: &mut RequestBody) -> Result<Option<Bytes>, ApiError> {
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|e| ApiError::bad_request(format!("reading the request's body: {e}")))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Lets the client finish before it is refused: many lose the answer if the stream is reset while
/// they still write.
async fn refuse(mut body: RequestBody) -> ApiError {
    let mut left = MAX_DRAINED_BYTES;
    while let Ok(Some(data)) = next(&mut body).await {
        match left.checked_sub(data.len()) {
            Some(less) => left = less,
            None => break,
        }
    }
    too_large()
}

fn too_large() -> ApiError {
    ApiError::new(
        Reason::RequestEntityTooLarge,
        format!("Request entity too large: limit is {MAX_REQUEST_BYTES}"),
    )
}
