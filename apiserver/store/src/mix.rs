//! Numbers that look random and follow from a seed (SplitMix64, Steele et al. 2014).

/// The next number; `state` goes on.
pub(crate) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The number with this place that follows from a nonce; never 0.
pub(crate) fn draw(nonce: u64, place: u64) -> u64 {
    let mut state = nonce.wrapping_add(place.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    next(&mut state).max(1)
}
