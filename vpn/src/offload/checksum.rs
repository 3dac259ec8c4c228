//! The Internet checksum (RFC 1071).
//!
//! The sum is the same in any byte order but for its bytes' places, so that it is made in the host's, eight
//! bytes at a time.

/// Adds bytes to a sum. All parts but the last have to be of even length.
pub(crate) fn add(sum: u64, bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= WIDE && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has these instructions.
        return unsafe { add_wide(sum, bytes) };
    }
    add_plain(sum, bytes)
}

/// From how many bytes on it is worth asking what the processor can do.
#[cfg(target_arch = "x86_64")]
const WIDE: usize = 128;

/// The same with vectors twice as wide as every x86-64 processor has them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_wide(sum: u64, bytes: &[u8]) -> u64 {
    add_plain(sum, bytes)
}

#[inline(always)]
fn add_plain(sum: u64, bytes: &[u8]) -> u64 {
    // Four lanes of 32-bit words in 64 bits: no carry for 16 GiB, and the compiler makes vectors of it.
    let mut lanes = [0u64; 8];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let mut sum = sum + u64::from(fold(lanes.iter().sum()));
    let mut pairs = blocks.remainder().chunks_exact(2);
    for pair in &mut pairs {
        sum += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
    }
    if let [last] = pairs.remainder() {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

/// Adds a number of the packet, such as a length.
pub(crate) fn add_number(sum: u64, number: u16) -> u64 {
    sum + u64::from(number.to_be())
}

/// The sum in 16 bits, as a device expects it of the pseudo-header. [`to_bytes`] puts it in the packet.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of a sum.
pub(crate) fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// As it stands in the packet.
pub(crate) fn to_bytes(folded: u16) -> [u8; 2] {
    folded.to_ne_bytes()
}

/// Straight from the RFC, byte by byte.
#[cfg(test)]
pub(crate) fn slow(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for (at, byte) in bytes.iter().enumerate() {
        sum += if at % 2 == 0 {
            u32::from(*byte) << 8
        } else {
            u32::from(*byte)
        };
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rfcs_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(to_bytes(finish(add(0, &bytes))), [0x22, 0x0d]);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_slow_one(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(to_bytes(finish(add(0, &bytes))), slow(&bytes).to_be_bytes());
            prop_assert_eq!(to_bytes(finish(add_plain(0, &bytes))), slow(&bytes).to_be_bytes());
        }

        #[test]
        fn parts_may_be_added_one_by_one(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..150usize) {
            let (head, tail) = bytes.split_at((at * 2).min(bytes.len() / 2 * 2));
            let sum = add(add(0, head), tail);
            prop_assert_eq!(fold(sum), fold(add(0, &bytes)));
        }

        #[test]
        fn the_longest_packet_of_ones_does_not_overflow(len in 65_000usize..65_536) {
            let bytes = vec![0xff; len];
            prop_assert_eq!(to_bytes(finish(add(0, &bytes))), slow(&bytes).to_be_bytes());
        }
    }
}
