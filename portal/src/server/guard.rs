//! Bounds on connections, before anything of TLS or HTTP is looked at.

use std::collections::BTreeMap;
use std::future::{Ready, ready};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::rate::network;

/// Most connections at a time. Each costs some 50 KB; together they stay below 32 MB.
const MAX_CONNECTIONS: usize = 512;

/// Most connections of one address at a time: a lab of nodes that boot at once behind one NAT, with which slow
/// connections of a single address leave room for others.
const MAX_PER_ADDRESS: usize = 128;

/// How long a connection may last, from its acceptance to the last byte of the answer. An enrolment takes
/// milliseconds; the rest is for slow lines.
const DEADLINE: Duration = Duration::from_secs(30);

/// Admits connections within the bounds and ends those that take too long.
#[derive(Clone)]
pub(super) struct Guard {
    slots: Arc<Slots>,
    deadline: Duration,
}

impl Guard {
    pub(super) fn new() -> Self {
        Self {
            slots: Arc::new(Slots::new(MAX_CONNECTIONS, MAX_PER_ADDRESS)),
            deadline: DEADLINE,
        }
    }
}

impl<S> Accept<TcpStream, S> for Guard {
    type Stream = Guarded<TcpStream>;
    type Service = S;
    type Future = Ready<io::Result<(Self::Stream, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(stream.peer_addr().and_then(|peer| {
            let slot = Slots::take(&self.slots, peer.ip())
                .ok_or_else(|| io::Error::new(io::ErrorKind::QuotaExceeded, "too many connections"))?;
            stream.set_nodelay(true)?;
            Ok((Guarded::new(stream, self.deadline, slot), service))
        }))
    }
}

/// Counts connections, in all and by address. Its map has at most as many entries as there are connections.
struct Slots {
    total: usize,
    each: usize,
    open: Mutex<(usize, BTreeMap<IpAddr, usize>)>,
}

impl Slots {
    fn new(total: usize, each: usize) -> Self {
        Self {
            total,
            each,
            open: Mutex::default(),
        }
    }

    fn take(slots: &Arc<Self>, address: IpAddr) -> Option<Slot> {
        let address = network(address);
        let mut open = slots.open.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = open.1.get(&address).copied().unwrap_or(0);
        if open.0 >= slots.total || of_address >= slots.each {
            return None;
        }
        open.0 += 1;
        open.1.insert(address, of_address + 1);
        Some(Slot {
            slots: Arc::clone(slots),
            address,
        })
    }
}

/// One connection's place, given back when dropped.
pub(super) struct Slot {
    slots: Arc<Slots>,
    address: IpAddr,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.slots.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.0 -= 1;
        if let Some(count) = open.1.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.1.remove(&self.address);
            }
        }
    }
}

/// A stream that fails once its deadline has passed.
pub(super) struct Guarded<S> {
    inner: S,
    deadline: Pin<Box<Sleep>>,
    _slot: Slot,
}

impl<S> Guarded<S> {
    fn new(inner: S, deadline: Duration, slot: Slot) -> Self {
        Self {
            inner,
            deadline: Box::pin(tokio::time::sleep(deadline)),
            _slot: slot,
        }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn one_address_cannot_take_every_place_and_places_come_back() {
        let slots = Arc::new(Slots::new(3, 2));
        let [a, b]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let first = Slots::take(&slots, a).unwrap();
        let _second = Slots::take(&slots, a).unwrap();
        assert!(Slots::take(&slots, a).is_none());
        let third = Slots::take(&slots, b).unwrap();
        assert!(Slots::take(&slots, b).is_none());
        drop((first, third));
        assert!(Slots::take(&slots, a).is_some());
        assert_eq!(slots.open.lock().unwrap().1.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_ended_at_its_deadline() {
        let slots = Arc::new(Slots::new(1, 1));
        let (near, _far) = tokio::io::duplex(64);
        let slot = Slots::take(&slots, "192.0.2.1".parse().unwrap()).unwrap();
        let mut guarded = Guarded::new(near, DEADLINE, slot);
        let started = tokio::time::Instant::now();
        let error = guarded.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), DEADLINE.as_secs());
    }
}
