//! What a question of the resolver means, apart from any DNS library.

use std::net::{Ipv4Addr, Ipv6Addr};

use aerie_types::{GridName, NodeName, VirtualAddr, VirtualNet};

use super::appliance_addr;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    /// The address of a node.
    Node(NodeName),
    /// The address that stands in an appliance name; it exists if somebody holds it.
    Appliance(VirtualAddr),
    /// The name of the node that holds an address.
    Pointer(VirtualAddr),
    /// The grid's own domain, which exists and has no address.
    Domain,
    /// A name in the grid's domain that nobody can have.
    Nobody,
    /// Not this grid's business.
    Foreign,
}

/// Reads a name, fully qualified or not, in any case.
pub(super) fn read(name: &str, grid: &GridName, net: VirtualNet) -> Question {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let domain = format!("{grid}.grid");
    if let Some(reversed) = name.strip_suffix(".in-addr.arpa") {
        return match reverse(reversed) {
            Some(addr) if net.range.contains(addr) => Question::Pointer(addr),
            _ => Question::Foreign,
        };
    }
    if let Some(reversed) = name.strip_suffix(".ip6.arpa") {
        return match reverse_v6(reversed) {
            Some(addr) if net.ula.contains(addr) => net
                .leased(addr.into())
                .map_or(Question::Nobody, Question::Pointer),
            _ => Question::Foreign,
        };
    }
    if name == domain {
        return Question::Domain;
    }
    let Some(label) = name.strip_suffix(&domain).and_then(|rest| rest.strip_suffix('.')) else {
        return Question::Foreign;
    };
    // Every appliance name is a node name by its letters, so it goes first.
    if let Some(addr) = appliance_addr(label, net.range) {
        return Question::Appliance(addr);
    }
    label.parse().map_or(Question::Nobody, Question::Node)
}

fn reverse(text: &str) -> Option<VirtualAddr> {
    let octets: Vec<u8> = text.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [d, c, b, a] = octets.try_into().ok()?;
    Some(Ipv4Addr::new(a, b, c, d).into())
}

/// A whole address by its 32 digits, the last one first (RFC 3596, 2.5).
fn reverse_v6(text: &str) -> Option<Ipv6Addr> {
    let mut number = 0u128;
    let mut digits = 0;
    for label in text.split('.').rev() {
        let &[digit] = label.as_bytes() else { return None };
        number = number << 4 | u128::from(char::from(digit).to_digit(16)?);
        digits += 1;
        if digits > 32 {
            return None;
        }
    }
    (digits == 32).then(|| number.into())
}

#[cfg(test)]
mod tests {
    use aerie_types::GridId;

    use super::*;

    #[test]
    fn names_are_told_apart() {
        let grid = "lab".parse().unwrap();
        let net = VirtualNet::new(GridId([9; 16]), "100.96.0.0/11".parse().unwrap());
        let addr: VirtualAddr = Ipv4Addr::new(100, 101, 3, 45).into();
        for (name, question) in [
            ("w1.lab.grid.", Question::Node("w1".parse().unwrap())),
            ("W1.Lab.GRID", Question::Node("w1".parse().unwrap())),
            ("C101003045.lab.grid.", Question::Appliance(addr)),
            (
                "C200003045.lab.grid.",
                Question::Node("c200003045".parse().unwrap()),
            ),
            ("45.3.101.100.in-addr.arpa.", Question::Pointer(addr)),
            ("1.2.168.192.in-addr.arpa.", Question::Foreign),
            (
                "d.2.3.0.5.6.4.6.0.0.0.0.0.0.0.0.0.0.0.0.c.d.0.4.6.5.2.9.d.5.d.f.ip6.arpa.",
                Question::Pointer(addr),
            ),
            (
                "D.2.3.0.5.6.4.6.0.0.0.0.0.0.0.0.0.0.0.0.C.D.0.4.6.5.2.9.D.5.D.F.IP6.ARPA.",
                Question::Pointer(addr),
            ),
            // An address of the prefix that no node can have: of another subnet, and outside the range.
            (
                "d.2.3.0.5.6.4.6.0.0.0.0.0.0.0.0.1.0.0.0.c.d.0.4.6.5.2.9.d.5.d.f.ip6.arpa.",
                Question::Nobody,
            ),
            (
                "d.2.3.0.5.6.4.1.0.0.0.0.0.0.0.0.0.0.0.0.c.d.0.4.6.5.2.9.d.5.d.f.ip6.arpa.",
                Question::Nobody,
            ),
            (
                "d.2.3.0.5.6.4.6.0.0.0.0.0.0.0.0.0.0.0.0.d.d.0.4.6.5.2.9.d.5.d.f.ip6.arpa.",
                Question::Foreign,
            ),
            ("c.d.0.4.6.5.2.9.d.5.d.f.ip6.arpa.", Question::Foreign),
            (
                "0.d.2.3.0.5.6.4.6.0.0.0.0.0.0.0.0.0.0.0.0.c.d.0.4.6.5.2.9.d.5.d.f.ip6.arpa.",
                Question::Foreign,
            ),
            ("x.ip6.arpa.", Question::Foreign),
            ("lab.grid.", Question::Domain),
            ("a.b.lab.grid.", Question::Nobody),
            ("-.lab.grid.", Question::Nobody),
            ("w1.other.grid.", Question::Foreign),
            ("xlab.grid.", Question::Foreign),
            ("example.org.", Question::Foreign),
        ] {
            assert_eq!(read(name, &grid, net), question, "{name}");
        }
    }
}
