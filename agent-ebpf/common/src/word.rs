//! Words of two halves, as they lie in memory. Keys are made of words: the kernel hashes and compares them by
//! words, and a processor that has just written two halves has to wait before it can read them as one.

/// A word of two halves, the first at the lower address.
#[inline(always)]
pub(crate) const fn word(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// The two halves of a word.
#[inline(always)]
pub(crate) const fn halves(word: u32) -> (u16, u16) {
    let [a, b, c, d] = word.to_ne_bytes();
    (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]))
}
