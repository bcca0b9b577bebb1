//! Compression of large answers, piece by piece.

use crate::body::{Body, BoxError};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderValue, Response, header};
use std::io::Write;

/// A smaller body is not worth it (upstream's figure).
pub const THRESHOLD: usize = 128 * 1024;

/// Whether an `Accept-Encoding` names gzip.
pub fn is_accepted(accept_encoding: &str) -> bool {
    accept_encoding.split(',').any(|part| {
        let mut words = part.split(';').map(str::trim);
        words.next() == Some("gzip") && !words.any(|w| matches!(w, "q=0" | "q=0.0"))
    })
}

/// Compresses an answer that is one large piece, if the client likes it and nobody did already.
pub fn compress(response: &mut Response<Body>, accept_encoding: &str) {
    let headers = response.headers();
    if !is_accepted(accept_encoding) || headers.contains_key(header::CONTENT_ENCODING) {
        return;
    }
    match std::mem::replace(response.body_mut(), Body::Empty) {
        Body::Full(bytes) if bytes.len() > THRESHOLD => {
            let pieces = Gzipped::new(std::iter::once(Ok(bytes)));
            *response.body_mut() = Body::stream(futures::stream::iter(pieces));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        body => *response.body_mut() = body,
    }
}

/// Compresses the pieces of an iterator at the fastest level.
pub struct Gzipped<I> {
    pieces: I,
    /// None once the trailer is out.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl<I> Gzipped<I> {
    /// Over these pieces.
    pub fn new(pieces: I) -> Self {
        Gzipped { pieces, encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())) }
    }
}

impl<I: Iterator<Item = Result<Bytes, BoxError>>> Iterator for Gzipped<I> {
    type Item = Result<Bytes, BoxError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut encoder = self.encoder.take()?;
        loop {
            match self.pieces.next() {
                None => return Some(encoder.finish().map(Bytes::from).map_err(Into::into)),
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(piece)) => {
                    if let Err(error) = encoder.write_all(&piece) {
                        return Some(Err(error.into()));
                    }
                }
            }
            if !encoder.get_ref().is_empty() {
                let out = std::mem::take(encoder.get_mut());
                self.encoder = Some(encoder);
                return Some(Ok(out.into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_goes_in_comes_out() {
        let pieces: Vec<Result<Bytes, BoxError>> =
            (0..50).map(|i| Ok(Bytes::from(format!("{i};").repeat(5000)))).collect();
        let plain: Vec<u8> = pieces.iter().flat_map(|p| p.as_ref().unwrap().to_vec()).collect();
        let zipped: Vec<u8> = Gzipped::new(pieces.into_iter()).flat_map(|p| p.unwrap()).collect();
        assert!(zipped.len() < plain.len() / 10);
        let mut back = Vec::new();
        flate2::read::GzDecoder::new(&zipped[..]).read_to_end(&mut back).unwrap();
        assert_eq!(back, plain);
    }

    #[test]
    fn accepted() {
        assert!(is_accepted("deflate, gzip"));
        assert!(is_accepted("gzip;q=0.5"));
        assert!(!is_accepted("gzip;q=0"));
        assert!(!is_accepted(""));
    }
}
