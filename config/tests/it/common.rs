//! Specs and bundles for the tests.

use aerie_config::{Bundle, Error, SPEC_FILE, Spec};

pub(crate) const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
pub(crate) const CA_HASH: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
pub(crate) const TOKEN: &str = "aerie-token-5wq8";

/// The smallest good spec.
pub(crate) fn minimal() -> String {
    format!(
        "version = 1\n\
         [grid]\n\
         name = \"chem\"\n\
         ca_hash = \"{CA_HASH}\"\n\
         range = \"100.96.0.0/11\"\n\
         [enrol]\n\
         urls = [\"https://portal.example.org:8443\"]\n\
         token = \"{TOKEN}\"\n\
         [node]\n\
         roles = [\"worker\"]\n"
    )
}

/// A good spec with every key.
pub(crate) fn full() -> String {
    format!(
        "version = 1\n\
         [grid]\n\
         name = \"chem\"\n\
         id = \"00112233445566778899aabbccddeeff\"\n\
         ca_hash = \"{CA_HASH}\"\n\
         range = \"10.128.0.0/16\"\n\
         [enrol]\n\
         urls = [\"https://portal.example.org:8443\", \"https://10.0.0.1/aerie\"]\n\
         token = \"{TOKEN}\"\n\
         [node]\n\
         name = \"w1\"\n\
         roles = [\"manager\", \"relay\"]\n\
         group = \"biochem\"\n\
         [overlay]\n\
         bootstrap = [\"/ip4/192.0.2.7/udp/4001/quic-v1/p2p/{PEER}\"]\n\
         rendezvous_secret = \"{}\"\n\
         public_bootstrap = [\"/dns4/p.example.org/tcp/443/p2p/{PEER}\"]\n\
         listen_port = 4101\n\
         [vpn]\n\
         port = 4343\n\
         mtu = 1280\n\
         [condor]\n\
         prefer_group = false\n\
         allow_election = true\n",
        "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s="
    )
}

/// The message of the error that a text gives.
pub(crate) fn refusal(text: &str) -> String {
    Spec::parse(text).expect_err("the text has a mistake").to_string()
}

/// A good spec after one replacement, which must take place.
pub(crate) fn changed(from: &str, to: &str) -> String {
    let text = full();
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

/// A bundle of a spec and two extras.
pub(crate) fn bundle() -> Bundle {
    let mut bundle = Bundle::default();
    bundle.insert(SPEC_FILE, full().into_bytes()).unwrap();
    bundle
        .insert("README.txt", b"Hand this to the machine.\n".to_vec())
        .unwrap();
    bundle
        .insert("site.crt", (0..=255).cycle().take(3000).collect())
        .unwrap();
    bundle
}

pub(crate) fn message<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    result.expect_err("this is refused").to_string()
}

/// Bytes that do not compress, from a small fixed generator.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(step).collect()
}
