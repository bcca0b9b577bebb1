//! The protobuf wire format: a writer that appends and a reader that trusts nothing.

/// Appends fields to a buffer.
#[derive(Debug, Default)]
pub(super) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// A writer that appends to what is there.
    pub fn after(out: Vec<u8>) -> Self {
        Writer { out }
    }

    pub fn finish(self) -> Vec<u8> {
        self.out
    }

    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    fn tag(&mut self, number: u32, wire: u64) {
        self.varint(u64::from(number) << 3 | wire);
    }

    pub fn int(&mut self, number: u32, value: i64) {
        self.tag(number, 0);
        self.varint(value as u64);
    }

    pub fn bool(&mut self, number: u32, value: bool) {
        self.int(number, i64::from(value));
    }

    pub fn double(&mut self, number: u32, value: f64) {
        self.tag(number, 1);
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub fn bytes(&mut self, number: u32, value: &[u8]) {
        self.tag(number, 2);
        self.varint(value.len() as u64);
        self.out.extend_from_slice(value);
    }

    pub fn string(&mut self, number: u32, value: &str) {
        self.bytes(number, value.as_bytes());
    }

    /// A string field, left out when empty.
    pub fn text(&mut self, number: u32, value: &str) {
        if !value.is_empty() {
            self.string(number, value);
        }
    }

    /// A nested message, written by `fill`. Its length stands before it but is known after it:
    /// one byte is kept free for it, more are made room for.
    pub fn message(&mut self, number: u32, fill: impl FnOnce(&mut Writer)) {
        self.tag(number, 2);
        let at = self.out.len();
        self.out.push(0);
        fill(self);
        let length = self.out.len() - at - 1;
        if length < 0x80 {
            self.out[at] = length as u8;
            return;
        }
        let mut prefix = Writer::default();
        prefix.varint(length as u64);
        self.out.splice(at..=at, prefix.out);
    }
}

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("unexpected EOF")]
    Truncated,
    #[error("integer overflow")]
    Overflow,
    #[error("illegal wire type {0}")]
    WireType(u8),
    #[error("field {0} has the wrong wire type")]
    Mismatch(u32),
    #[error("field {0} is no UTF-8 text")]
    NotText(u32),
    #[error("exceeded max depth")]
    Depth,
    #[error("too many objects")]
    Mass,
    #[error("{0}")]
    Content(String),
}

/// One field as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Raw<'a> {
    Int(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// Reads the fields of one message.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(message: &'a [u8]) -> Self {
        Reader { rest: message }
    }

    /// The next field, None at the end.
    pub fn next(&mut self) -> Result<Option<(u32, Raw<'a>)>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| WireError::Overflow)?;
        let raw = match (tag & 7) as u8 {
            0 => Raw::Int(self.varint()?),
            1 => Raw::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| WireError::Overflow)?;
                Raw::Bytes(self.take(length)?)
            }
            5 => Raw::Fixed32(u32::from_le_bytes(self.array()?)),
            other => return Err(WireError::WireType(other)),
        };
        Ok(Some((number, raw)))
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(WireError::Overflow)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError::Truncated)
    }
}

impl<'a> Raw<'a> {
    pub fn int(self, number: u32) -> Result<u64, WireError> {
        match self {
            Raw::Int(value) => Ok(value),
            _ => Err(WireError::Mismatch(number)),
        }
    }

    pub fn bytes(self, number: u32) -> Result<&'a [u8], WireError> {
        match self {
            Raw::Bytes(value) => Ok(value),
            _ => Err(WireError::Mismatch(number)),
        }
    }

    pub fn string(self, number: u32) -> Result<String, WireError> {
        let bytes = self.bytes(number)?.to_vec();
        String::from_utf8(bytes).map_err(|_| WireError::NotText(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_moves_for_its_length() {
        let mut w = Writer::default();
        w.message(1, |w| w.message(2, |w| w.string(3, &"x".repeat(300))));
        let out = w.finish();
        let (_, outer) = Reader::new(&out).next().unwrap().unwrap();
        let (number, inner) = Reader::new(outer.bytes(1).unwrap()).next().unwrap().unwrap();
        assert_eq!(number, 2);
        let (_, text) = Reader::new(inner.bytes(2).unwrap()).next().unwrap().unwrap();
        assert_eq!(text.string(3).unwrap().len(), 300);
    }

    #[test]
    fn refuses_broken_input() {
        for (bytes, want) in [
            (&[0x0a, 0x05, 1][..], WireError::Truncated),
            (&[0x08], WireError::Truncated),
            (&[0x0b], WireError::WireType(3)),
            (&[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], WireError::Overflow),
            (&[0x0a, 255, 255, 255, 255, 255, 255, 255, 255, 127], WireError::Truncated),
        ] {
            assert_eq!(Reader::new(bytes).next(), Err(want), "{bytes:?}");
        }
    }
}
