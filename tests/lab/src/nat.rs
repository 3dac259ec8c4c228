//! The kinds of NAT that a site's router can be, as nftables rules (RFC 4787 gives the terms).
//!
//! Linux keeps the source port while it is free, so plain masquerading acts as an endpoint-independent mapping;
//! two hosts behind it that use one source port show the conflict. Filtering by connection tracking is
//! address-and-port-dependent; the two looser kinds send unsolicited datagrams to the host that last used the port.

/// What a site's router does to the packets that pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Nat {
    /// A plain router: the hosts have public addresses.
    Open,
    /// One mapping for all destinations; anybody may send to it.
    FullCone,
    /// One mapping for all destinations; any port of a contacted address may send to it.
    AddressRestricted,
    /// One mapping for all destinations; only a contacted address and port may send to it.
    PortRestricted,
    /// As [`Nat::PortRestricted`], with mappings that end after twenty seconds without a packet.
    Forgetful,
    /// Another mapping for each destination; only that one may send to it.
    Symmetric,
    /// TCP passes as with [`Nat::PortRestricted`]; UDP does not pass at all.
    UdpBlocked,
}

impl Nat {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Open,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Forgetful,
        Self::Symmetric,
        Self::UdpBlocked,
    ];

    /// Whether the hosts behind have private addresses.
    #[must_use]
    pub fn translates(self) -> bool {
        self != Self::Open
    }

    /// Kernel parameters of the router, below `net/`, once its rules are loaded.
    pub(crate) fn parameters(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Forgetful => &[
                ("netfilter/nf_conntrack_udp_timeout", "20"),
                ("netfilter/nf_conntrack_udp_timeout_stream", "20"),
            ],
            _ => &[],
        }
    }

    /// The rules of a router whose interface to the outside is `wan`.
    pub(crate) fn rules(self) -> String {
        if self == Self::Open {
            return String::new();
        }
        let (masquerade, memory, remember, admit) = match self {
            Self::Symmetric => ("masquerade fully-random", "", "", ""),
            Self::FullCone => (
                "masquerade",
                "map used { type inet_service : ipv4_addr; flags dynamic,timeout; timeout 120s; }",
                "oifname wan meta l4proto udp update @used { udp sport timeout 120s : ip saddr }",
                "iifname wan meta l4proto udp dnat to udp dport map @used",
            ),
            Self::AddressRestricted => (
                "masquerade",
                "map used { type ipv4_addr . inet_service : ipv4_addr; flags dynamic,timeout; timeout 120s; }",
                "oifname wan meta l4proto udp update @used { ip daddr . udp sport timeout 120s : ip saddr }",
                "iifname wan meta l4proto udp dnat to ip saddr . udp dport map @used",
            ),
            Self::UdpBlocked => ("masquerade", "", "meta l4proto udp drop", ""),
            Self::PortRestricted | Self::Forgetful | Self::Open => ("masquerade", "", "", ""),
        };
        format!(
            "table ip nat {{
                {memory}
                chain prerouting {{ type nat hook prerouting priority -100;
                    {admit}
                }}
                chain postrouting {{ type nat hook postrouting priority 100;
                    oifname wan {masquerade}
                }}
                chain forward {{ type filter hook forward priority 0;
                    {remember}
                    iifname wan ct state new ct status & dnat == 0 drop
                }}
                chain input {{ type filter hook input priority 0;
                    iifname wan ct state new drop
                }}
            }}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_router_that_translates_drops_what_nobody_asked_for() {
        for nat in Nat::ALL {
            assert_eq!(
                nat.rules().contains("iifname wan ct state new drop"),
                nat.translates(),
                "{nat:?}"
            );
        }
    }
}
