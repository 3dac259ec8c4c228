//! What the kernel was found to do for us, told to a person in one line.

use std::fmt;

/// What a TUN device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TunOffloads {
    /// A virtio header stands before each packet, and transport checksums may be left to the other side of it.
    pub framed: bool,
    /// TCP comes and goes in super-packets of up to 64 KiB (TSO).
    pub tcp: bool,
    /// UDP does (USO, Linux 6.2).
    pub udp: bool,
}

/// What the data socket does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UdpOffloads {
    /// A run of datagrams is sent by one call (UDP_SEGMENT).
    pub send: bool,
    /// A run of datagrams is received by one call (UDP_GRO).
    pub receive: bool,
}

/// What both edges do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// The TUN device.
    pub tun: TunOffloads,
    /// The data socket.
    pub udp: UdpOffloads,
}

impl Offloads {
    /// Each with its name, for status and logs.
    #[must_use]
    pub fn list(&self) -> [(&'static str, bool); 5] {
        [
            ("tun checksum", self.tun.framed),
            ("tun TSO", self.tun.tcp),
            ("tun USO", self.tun.udp),
            ("UDP GSO", self.udp.send),
            ("UDP GRO", self.udp.receive),
        ]
    }
}

impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |wanted: bool| {
            let names: Vec<_> = self
                .list()
                .iter()
                .filter(|(_, on)| *on == wanted)
                .map(|(name, _)| *name)
                .collect();
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        };
        write!(f, "on: {}; off: {}", names(true), names(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_what_is_on_and_what_is_not() {
        let mut offloads = Offloads::default();
        assert!(offloads.to_string().starts_with("on: none; off: tun checksum"));
        offloads.tun.tcp = true;
        offloads.udp.receive = true;
        assert_eq!(
            offloads.to_string(),
            "on: tun TSO, UDP GRO; off: tun checksum, tun USO, UDP GSO"
        );
    }
}
