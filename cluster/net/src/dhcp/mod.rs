//! The DHCP server of one network: leases that are known beforehand, and nothing for anybody else.
//!
//! The states are the client's (RFC 2131, section 4.4); what the server says follows from the request and from the
//! lease alone, so that it has nothing to keep and nothing to lose:
//!
//! ```text
//!  client                       request                                   the lease is so      is another
//!  INIT                         DISCOVER ──────────────────────────────►  OFFER                OFFER
//!  SELECTING                    REQUEST, names this server, asks ──────►  ACK                  NAK
//!                               REQUEST, names another server ─────────►  silence              silence
//!  INIT-REBOOT                  REQUEST, names none, asks ─────────────►  ACK                  NAK
//!  RENEWING, REBINDING          REQUEST, names none, has ──────────────►  ACK                  NAK
//!  configured otherwise         INFORM ────────────────────────────────►  ACK without lease    ACK without lease
//!  BOUND                        RELEASE, DECLINE ──────────────────────►  counted: the address stays its
//! ```
//!
//! The client is known by its Ethernet address, which the filters hold to its port. A NAK is broadcast, as is whatever a
//! client asks to be; everything else goes to the one client.

mod serve;
mod wire;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use aerie_cluster_node::{GuestName, Mac};
use ipnet::Ipv4Net;

use crate::error::METADATA;
use crate::plan::Plan;
use crate::{InstanceId, NetworkId};

pub(crate) use serve::serve;
pub(crate) use wire::Dropped;
use wire::{Kind, Reply, Request, option};

const EVERYBODY: Mac = Mac([0xff; 6]);

/// What one guest is leased.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    address: Ipv4Addr,
    hostname: GuestName,
}

/// What is leased on one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    /// The bridge's own address.
    mac: Mac,
    /// By what address the server is known.
    server: Ipv4Addr,
    /// Whether the host leads anywhere.
    router: Option<Ipv4Addr>,
    /// How the metadata address is reached: by this router, or directly.
    metadata_by: Option<Ipv4Addr>,
    subnet: Ipv4Net,
    dns: Vec<Ipv4Addr>,
    mtu: u16,
    lease: Duration,
    leases: BTreeMap<Mac, Lease>,
}

/// What became of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A frame to send.
    Reply(Vec<u8>),
    /// It was taken note of, and there is no answer to it.
    Noted(&'static str),
}

impl Scope {
    /// What is leased on a network of a plan.
    pub(crate) fn new(plan: &Plan, id: &NetworkId, instance: &InstanceId) -> Option<Self> {
        let network = plan.networks.get(id)?;
        let leases = plan.ports_on(id).map(|(id, port)| {
            let lease = Lease {
                address: port.address,
                hostname: port.facts.hostname.clone(),
            };
            (port.mac(id), lease)
        });
        Some(Self {
            mac: id.bridge_mac(instance),
            server: network.host.unwrap_or(METADATA),
            router: network.host.filter(|_| !network.through.is_empty()),
            metadata_by: network.host,
            subnet: network.subnet,
            dns: network.dns.clone(),
            mtu: network.mtu,
            lease: network.lease,
            leases: leases.collect(),
        })
    }

    /// Answers a frame.
    pub(crate) fn answer(&self, frame: &[u8]) -> Result<Outcome, Dropped> {
        let request = Request::parse(frame)?;
        let lease = self.leases.get(&request.mac).ok_or(Dropped::Unknown)?;
        // Who speaks from an address has it; the filters let nobody speak from another's.
        if !request.from.is_unspecified() && request.from != lease.address {
            return Err(Dropped::Forged);
        }
        let for_us = request.server.is_none_or(|server| server == self.server);
        let kind = match request.kind {
            Kind::Discover => Kind::Offer,
            Kind::Request if !for_us => return Err(Dropped::Elsewhere),
            Kind::Request => {
                let wanted = match request.asks {
                    Some(asks) => asks,
                    None => request.has,
                };
                if wanted == lease.address {
                    Kind::Ack
                } else {
                    Kind::Nak
                }
            }
            Kind::Inform => Kind::Ack,
            Kind::Release => return Ok(Outcome::Noted("an address was released")),
            Kind::Decline => {
                return Ok(Outcome::Noted("an address was declined, as if another had it"));
            }
            Kind::Offer | Kind::Ack | Kind::Nak => return Err(Dropped::Malformed),
        };
        let informed = request.kind == Kind::Inform;
        let gives = if kind == Kind::Nak || informed {
            Ipv4Addr::UNSPECIFIED
        } else {
            lease.address
        };
        let (to_mac, to) = if kind == Kind::Nak {
            (EVERYBODY, Ipv4Addr::BROADCAST)
        } else if !request.has.is_unspecified() && request.has == lease.address {
            (request.mac, request.has)
        } else if request.broadcast() || informed {
            (EVERYBODY, Ipv4Addr::BROADCAST)
        } else {
            (request.mac, lease.address)
        };
        let reply = Reply {
            kind,
            gives,
            options: self.options(kind, informed, lease),
            to_mac,
            to,
        };
        Ok(Outcome::Reply(reply.frame(&request, self.mac, self.server)))
    }

    fn options(&self, kind: Kind, informed: bool, lease: &Lease) -> Vec<(u8, Vec<u8>)> {
        let one = |addr: Ipv4Addr| addr.octets().to_vec();
        let mut options = vec![(option::SERVER, one(self.server))];
        if kind == Kind::Nak {
            let why = b"this address is not leased to you; ask anew".to_vec();
            options.push((option::MESSAGE, why));
            return options;
        }
        if !informed {
            let seconds = u32::try_from(self.lease.as_secs()).unwrap_or(u32::MAX);
            for (code, seconds) in [
                (option::LEASE, seconds),
                (option::RENEW, seconds / 2),
                (option::REBIND, seconds / 8 * 7),
            ] {
                options.push((code, seconds.to_be_bytes().to_vec()));
            }
        }
        options.push((option::MASK, one(self.subnet.netmask())));
        options.push((option::BROADCAST, one(self.subnet.broadcast())));
        options.push((option::MTU, self.mtu.to_be_bytes().to_vec()));
        options.push((option::HOST_NAME, lease.hostname.as_str().as_bytes().to_vec()));
        if !self.dns.is_empty() {
            let servers = self.dns.iter().flat_map(Ipv4Addr::octets).collect();
            options.push((option::DNS, servers));
        }
        // Who understands the list of routes does not look at the router (RFC 3442), so that it stands in both.
        let by = self.metadata_by.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let mut routes = [&[32], &METADATA.octets()[..], &by.octets()].concat();
        if let Some(router) = self.router {
            options.push((option::ROUTER, one(router)));
            routes.push(0);
            routes.extend(router.octets());
        }
        options.push((option::ROUTES, routes));
        options
    }
}

#[cfg(test)]
mod tests;
