//! Random names.

const HEX: &[u8; 16] = b"0123456789abcdef";

/// A version 4 UUID.
pub fn uuid() -> String {
    let mut b: [u8; 16] = rand::random();
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    let mut text = String::with_capacity(36);
    for (i, byte) in b.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push(HEX[usize::from(byte >> 4)] as char);
        text.push(HEX[usize::from(byte & 0xf)] as char);
    }
    text
}

/// The suffix of a generated name: as upstream, five characters that can't form words.
pub fn name_suffix() -> String {
    letters(b"bcdfghjklmnpqrstvwxz2456789", 5)
}

/// Letters and digits of a join token.
pub fn token_part(length: usize) -> String {
    letters(b"abcdefghijklmnopqrstuvwxyz0123456789", length)
}

fn letters(alphabet: &[u8], length: usize) -> String {
    use rand::Rng;
    let mut rng = rand::rng();
    (0..length).map(|_| alphabet[rng.random_range(0..alphabet.len())] as char).collect()
}

/// An id for a proposal.
pub fn request_id() -> u128 {
    rand::random()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let id = uuid();
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert_eq!(name_suffix().len(), 5);
        assert_eq!(token_part(32).len(), 32);
    }
}
