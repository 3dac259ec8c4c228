//! The driver's fast path: whole batches from one edge to the other, without a call or an allocation per packet.
//!
//! Out: frames are read until the device has no more or the batch is full; each is split into packets, and each
//! packet sealed straight into the batch that is then sent. In: a batch of datagrams is opened where it lies, and
//! what was inside is written to the device from there, in super-packets where it takes them. One task does both
//! directions, so that nothing is handed between threads and each flow keeps its order.
//!
//! All memory here is of fixed size or bounded by a batch, and is used again.

use std::io::{self, ErrorKind, IoSlice};
use std::time::Duration;

use aerie_vpn_proto::{Now, Run, Transmits, Tunnels};

use crate::io::streams::Streams;
use crate::io::{Received, Tun, Udp, is_too_long};
use crate::offload::coalesce::Coalescer;
use crate::offload::header::{self, Header};
use crate::offload::split::split;

/// Frames read from the device for one turn: as many small packets as fill a run or two.
const FRAMES: usize = 64;
/// Bytes sealed in one turn, after which it sends: four super-packets, which a core's own cache still holds.
const BATCH: usize = 4 * 65_536;
/// A virtio header and the longest packet.
const FRAME_LEN: usize = header::LEN + 65_535;
/// How long what one turn has to send may wait for a full socket, all in all. Then the rest of it is dropped, as a full
/// link drops it.
const SEND_PATIENCE: Duration = Duration::from_millis(100);

/// The memory of both directions.
pub(crate) struct Traffic {
    mtu: usize,
    framed: bool,
    frame: Vec<u8>,
    received: Received,
    coalescer: Coalescer,
    control: Transmits,
    bulk: Transmits,
    forwards: Transmits,
}

impl Traffic {
    /// For a device with this MTU.
    pub(crate) fn new(tun: &impl Tun, mtu: u16) -> Self {
        let offloads = tun.offloads();
        Self {
            mtu: mtu.into(),
            framed: offloads.framed,
            frame: vec![0; FRAME_LEN],
            received: Received::default(),
            coalescer: Coalescer::new(offloads.tcp, offloads.udp),
            control: Transmits::new(),
            bulk: Transmits::new(),
            forwards: Transmits::new(),
        }
    }

    /// Opens a batch of datagrams, if there is one, and delivers what is inside.
    ///
    /// # Errors
    /// The socket gave an error: an ICMP error of some earlier datagram, for example, which the path agent finds out by
    /// itself; or it cannot be read at all.
    pub(crate) fn take_datagrams(
        &mut self,
        udp: &impl Udp,
        tun: &impl Tun,
        core: &mut Tunnels,
        now: Now,
    ) -> io::Result<()> {
        match udp.try_recv(&mut self.received) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        let Received { memory, runs } = &mut self.received;
        for (from, at) in Received::places(runs) {
            if from.stream().is_some() {
                // Only a forged source looks like that: it stands for a connection over TLS.
                continue;
            }
            let Some(packet) = core.handle_datagram(from, &mut memory[at.clone()], now) else {
                continue;
            };
            let packet = at.start + packet.start..at.start + packet.end;
            if self.framed {
                self.coalescer.push(memory, packet);
            } else {
                write(tun, &[IoSlice::new(&memory[packet])]);
            }
        }
        self.coalescer.flush(memory, |frame| write(tun, frame));
        Ok(())
    }

    /// Reads a batch of frames, if there are any, and seals what is inside.
    ///
    /// # Errors
    /// The device cannot be read. Asking again at once would only fail again.
    pub(crate) fn take_frames(&mut self, tun: &impl Tun, core: &mut Tunnels, now: Now) -> io::Result<()> {
        for _ in 0..FRAMES {
            let frame = match tun.try_recv(&mut self.frame) {
                Ok(len) => &mut self.frame[..len],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let bulk = &mut self.bulk;
            if !self.framed {
                core.handle_inner(frame, now, bulk);
            } else if !Header::parse(frame).is_some_and(|(header, packet)| {
                let mtu = match header.segments {
                    Some(_) => self.mtu.min(core.room_for(packet)),
                    None => self.mtu,
                };
                let seal = |packet: &[u8]| core.handle_inner(packet, now, bulk);
                split(&header, packet, mtu, seal).is_ok()
            }) {
                tracing::debug!("the interface gave a frame that makes no sense; it is dropped");
            }
            if self.bulk.bytes() >= BATCH {
                break;
            }
        }
        Ok(())
    }

    /// Sends what the core has to say, then what was sealed, then what it forwards for others. If the socket is full,
    /// waits: the device's queue then slows its senders. What the own link does not take whole is told to the core.
    pub(crate) async fn send(&mut self, udp: &impl Udp, streams: &Streams, core: &mut Tunnels, now: Now) {
        core.poll_transmits(&mut self.control);
        core.poll_forwards(&mut self.forwards);
        let mut patience = Patience::default();
        for batch in [&mut self.control, &mut self.bulk, &mut self.forwards] {
            for run in batch.runs(udp.max_segments().max(1)) {
                if let Some(number) = run.to.stream() {
                    streams.send(number, run);
                    continue;
                }
                if transmit(udp, run, &mut patience).await == Sent::TooLong {
                    core.refused(run.to, run.bytes.len(), now);
                }
            }
            batch.clear();
        }
    }

    /// Delivers a packet that the core has kept or made.
    pub(crate) fn deliver(&self, tun: &impl Tun, packet: &[u8]) {
        let head = Header::default().encode();
        let frame = [IoSlice::new(&head), IoSlice::new(packet)];
        write(tun, if self.framed { &frame } else { &frame[1..] });
    }
}

fn write(tun: &impl Tun, frame: &[IoSlice<'_>]) {
    if let Err(error) = tun.try_send(frame) {
        // A full queue drops, as every link does.
        tracing::trace!(%error, "a frame was not delivered");
    }
}

/// What became of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// It is out, or was dropped as a full link drops.
    Done,
    /// It is to stay whole, and too long for that.
    TooLong,
}

/// Until when a full socket is waited for: set by the first that has to wait.
#[derive(Debug, Default)]
struct Patience(Option<tokio::time::Instant>);

impl Patience {
    /// Waits until the socket takes something. `false`: there is no more time for that.
    async fn room(&mut self, udp: &impl Udp) -> bool {
        let end = *self
            .0
            .get_or_insert_with(|| tokio::time::Instant::now() + SEND_PATIENCE);
        matches!(tokio::time::timeout_at(end, udp.writable()).await, Ok(Ok(())))
    }
}

async fn transmit(udp: &impl Udp, mut run: Run<'_>, patience: &mut Patience) -> Sent {
    while !run.bytes.is_empty() {
        match udp.try_send(run) {
            Ok(sent) => run.bytes = run.bytes.get(sent.max(1)..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if !patience.room(udp).await {
                    return Sent::Done;
                }
            }
            Err(error) if run.whole && is_too_long(&error) => return Sent::TooLong,
            // The kernel has no memory at this moment: that costs one datagram, and the next is tried.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM)) => {
                tracing::trace!(%error, to = %run.to, "send");
                run.bytes = run.bytes.get(run.segment.max(1)..).unwrap_or_default();
            }
            // No route, for example: the path agent finds out by itself.
            Err(error) => {
                tracing::trace!(%error, to = %run.to, "send");
                return Sent::Done;
            }
        }
    }
    Sent::Done
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use aerie_types::{UnderlayAddr, VirtualNet};

    use super::*;
    use crate::io::UdpOffloads;

    /// A socket that takes so many datagrams and is full from then on.
    struct Full(AtomicUsize);

    impl Udp for Full {
        async fn readable(&self) -> io::Result<()> {
            std::future::pending().await
        }

        async fn writable(&self) -> io::Result<()> {
            std::future::pending().await
        }

        fn try_recv(&self, _batch: &mut Received) -> io::Result<()> {
            Err(ErrorKind::WouldBlock.into())
        }

        fn try_send(&self, run: Run<'_>) -> io::Result<usize> {
            let room = |left: usize| left.checked_sub(1);
            match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
                Ok(_) => Ok(run.bytes.len()),
                Err(_) => Err(ErrorKind::WouldBlock.into()),
            }
        }

        fn max_segments(&self) -> usize {
            1
        }

        fn offloads(&self) -> UdpOffloads {
            UdpOffloads::default()
        }

        fn port(&self) -> io::Result<u16> {
            Ok(0)
        }

        fn hosts(&self, _net: VirtualNet, _own: &str) -> Result<Vec<UnderlayAddr>, crate::Error> {
            Ok(Vec::new())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_socket_holds_up_a_batch_to_many_only_once() {
        let mut batch = Transmits::new();
        for port in 1..=50 {
            batch.push(UnderlayAddr(([192, 0, 2, 1], port).into()), b"datagram");
        }
        let udp = Full(AtomicUsize::new(3));
        let began = tokio::time::Instant::now();
        let mut patience = Patience::default();
        for run in batch.runs(1) {
            assert_eq!(transmit(&udp, run, &mut patience).await, Sent::Done);
        }
        assert_eq!(began.elapsed(), SEND_PATIENCE);
    }
}
