//! The few pieces of DER and PEM that are compared or written byte by byte.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// AlgorithmIdentifier of ecdsa-with-SHA256 without parameters (RFC 5758 section 3.2).
pub(crate) const ECDSA_SHA256: [u8; 12] = [
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
];

/// SubjectPublicKeyInfo of Ed25519, before the 32 bytes of the key (RFC 8410 section 4).
pub(crate) const ED25519_SPKI: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// SubjectPublicKeyInfo of P-256, before the 65 bytes of the uncompressed point (RFC 5480).
pub(crate) const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// PrivateKeyInfo of Ed25519, before the 32 bytes of the seed (RFC 8410 section 7).
pub(crate) const ED25519_PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// PrivateKeyInfo of X25519, before the 32 bytes of the scalar (RFC 8410 section 7).
pub(crate) const X25519_PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x04, 0x22, 0x04, 0x20,
];

/// Tag, minimal length, content.
pub(crate) fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = vec![tag];
    if let Ok(short @ 0..0x80) = u8::try_from(length) {
        bytes.push(short);
    } else {
        let long = length.to_be_bytes();
        let long = &long[long.iter().take_while(|byte| **byte == 0).count()..];
        // A length has at most eight bytes, so the count fits its seven bits.
        bytes.push(0x80 | long.len() as u8);
        bytes.extend_from_slice(long);
    }
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes
}

/// One PEM block.
pub(crate) fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(body.len() * 2 + 64));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    for (i, c) in body.chars().enumerate() {
        if i > 0 && i % 64 == 0 {
            text.push('\n');
        }
        text.push(c);
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}

/// The contents of every PEM block with this label, in order. `None` if a block is damaged.
pub(crate) fn pem_blocks(text: &[u8], label: &str) -> Option<Vec<Zeroizing<Vec<u8>>>> {
    x509_parser::pem::Pem::iter_from_buffer(text)
        .filter_map(|block| match block {
            Ok(block) if block.label == label => Some(Some(Zeroizing::new(block.contents))),
            Ok(_) => None,
            Err(_) => Some(None),
        })
        .collect()
}

/// The DER of the first certificate in a PEM text. `None` if there is none.
#[must_use]
pub fn pem_to_der(pem: &str) -> Option<Vec<u8>> {
    Some(pem_blocks(pem.as_bytes(), "CERTIFICATE")?.first()?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_minimal() {
        assert_eq!(tlv(4, &[&[0; 127]])[..2], [4, 127]);
        assert_eq!(tlv(4, &[&[0; 128]])[..3], [4, 0x81, 128]);
        assert_eq!(tlv(4, &[&[0; 200], &[0; 100]])[..4], [4, 0x82, 1, 44]);
    }

    #[test]
    fn pem_reads_back() {
        let text = [pem("A", &[1; 100]), pem("B", &[2; 48]), pem("A", &[3; 1])]
            .map(|t| t.to_string())
            .concat();
        let blocks = pem_blocks(text.as_bytes(), "A").unwrap();
        assert_eq!(
            blocks.iter().map(|b| b.to_vec()).collect::<Vec<_>>(),
            [vec![1; 100], vec![3; 1]]
        );
    }
}
