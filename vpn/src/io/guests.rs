//! Who has connected to this relay over TLS, and who goes when there is no more room.
//!
//! Anybody may connect, and proves nothing by that. Room is kept for members: where there is none left, the oldest
//! connection goes over which nobody has proved to be one, and one address does not get more than its share of those.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

/// Connections that a relay takes.
const MAX_ACCEPTED: usize = 1024;
/// Of those over which nobody has proved to be a member: from one address (IPv6: one /48).
const MAX_PER_SOURCE: usize = 32;

/// The connections that were taken, by their numbers: the oldest first.
#[derive(Debug, Default)]
pub(super) struct Guests(Mutex<BTreeMap<u64, Guest>>);

#[derive(Debug)]
struct Guest {
    source: IpAddr,
    proved: bool,
    task: Option<AbortHandle>,
}

/// Members have all the room.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Guests {
    /// Makes room for a connection from an address, if need be at the cost of another one, which is ended: its number.
    pub(super) fn enter(&self, number: u64, from: IpAddr) -> Result<Option<u64>, Full> {
        let source = match from.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & (u128::MAX << 80)).into(),
            v4 => v4,
        };
        let mut guests = self.lock();
        let of_source = |guest: &&Guest| !guest.proved && guest.source == source;
        let too_many = guests.values().filter(of_source).count() >= MAX_PER_SOURCE;
        let mut gone = None;
        if too_many || guests.len() >= MAX_ACCEPTED {
            let mut oldest = guests.iter();
            let oldest = oldest.find(|(_, guest)| !guest.proved && (!too_many || guest.source == source));
            let oldest = oldest.map(|(number, _)| *number).ok_or(Full)?;
            if let Some(task) = guests.remove(&oldest).and_then(|guest| guest.task) {
                task.abort();
            }
            gone = Some(oldest);
        }
        let guest = Guest {
            source,
            proved: false,
            task: None,
        };
        guests.insert(number, guest);
        Ok(gone)
    }

    /// The task that works for a connection, which ends with it.
    pub(super) fn is_worked_for(&self, number: u64, task: AbortHandle) {
        if let Some(guest) = self.lock().get_mut(&number) {
            guest.task = Some(task);
        }
    }

    /// A member has proved itself over this connection.
    pub(super) fn prove(&self, number: u64) {
        if let Some(guest) = self.lock().get_mut(&number) {
            guest.proved = true;
        }
    }

    /// A connection has ended. Whether a member had proved itself over it.
    pub(super) fn leave(&self, number: u64) -> bool {
        self.lock().remove(&number).is_some_and(|guest| guest.proved)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Guest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_at_the_cost_of_who_proved_nothing() {
        let guests = Guests::default();
        let mut number = 0;
        let mut enter = |from: String| {
            number += 1;
            guests
                .enter(number, from.parse().unwrap())
                .map(|gone| (number, gone))
        };
        let of_one = || {
            let source = "2001:db8::".parse::<IpAddr>().unwrap();
            let guests = guests.lock();
            guests.values().filter(|guest| guest.source == source).count()
        };
        let (member, _) = enter("2001:db8::1".to_owned()).unwrap();
        guests.prove(member);
        for n in 0..MAX_PER_SOURCE + 5 {
            let (new, gone) = enter(format!("2001:db8:0:{n:x}::1")).unwrap();
            let oldest = new
                .checked_sub(MAX_PER_SOURCE as u64)
                .filter(|oldest| *oldest > member);
            assert_eq!(gone, oldest, "the oldest of its source, but no member");
        }
        assert_eq!(of_one(), MAX_PER_SOURCE + 1);
        for n in 0..MAX_ACCEPTED - 1 {
            let (new, _) = enter(format!("10.{}.{}.1", n / 200, n % 200)).unwrap();
            guests.prove(new);
        }
        assert_eq!(of_one(), 1, "the member has kept its place");
        assert_eq!(enter("192.0.2.9".to_owned()), Err(Full));
        assert!(guests.leave(member));
        assert!(enter("192.0.2.9".to_owned()).is_ok());
        assert!(!guests.leave(member), "it was told already");
    }
}
