//! A packet socket on the bridge: it sees which Ethernet address a frame comes from, reaches clients that have no
//! address yet, and stands in nobody's way who serves DHCP elsewhere on the host.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::mem;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use socket2::{Domain, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Outcome, Scope};
use crate::{Error, InterfaceName};

/// The longest frame that is read in bytes: what is longer is no request that is answered, and is cut off.
const MAX_FRAME: usize = 2048;

/// Frames handled before others of the runtime have their turn.
const BATCH: usize = 32;

/// Serves a network's scope, whatever it is at the time, until the task is ended.
pub(crate) fn serve(
    bridge: &InterfaceName,
    index: u32,
    scope: watch::Receiver<Arc<Scope>>,
) -> Result<JoinHandle<()>, Error> {
    let failed = |source| Error::Serve {
        what: "DHCP",
        interface: bridge.clone(),
        source,
    };
    let socket = open(index).map_err(failed)?;
    // SAFETY: a socket owns its descriptor, and keeps it as long as it lives.
    let socket = unsafe { AsyncFd::register(socket) }.map_err(|error| failed(error.into()))?;
    let bridge = bridge.clone();
    Ok(tokio::spawn(async move {
        let mut counts = BTreeMap::new();
        let mut buffer = [0; MAX_FRAME];
        loop {
            let Ok(mut ready) = socket.readable().await else {
                return;
            };
            for _ in 0..BATCH {
                match ready.try_io(|socket| socket.get_ref().read(&mut buffer)) {
                    Ok(Ok(length)) => {
                        let outcome = scope.borrow().answer(&buffer[..length]);
                        match outcome {
                            Ok(Outcome::Reply(frame)) => {
                                // A client whose answer is lost asks again.
                                if let Err(error) = socket.get_ref().write(&frame) {
                                    tracing::debug!(%bridge, %error, "a DHCP answer was not sent");
                                }
                            }
                            Ok(Outcome::Noted(what)) => count(&mut counts, &bridge, what),
                            Err(why) => count(&mut counts, &bridge, why.as_str()),
                        }
                    }
                    // The bridge is down or gone; if it comes back, this does.
                    Ok(Err(error)) => tracing::debug!(%bridge, %error, "no DHCP request was read"),
                    Err(_would_block) => break,
                }
            }
            tokio::task::yield_now().await;
        }
    }))
}

/// Counts what is not answered, and says so ever more rarely: guests do not fill the host's log.
fn count(counts: &mut BTreeMap<&'static str, u64>, bridge: &InterfaceName, what: &'static str) {
    let count = counts.entry(what).or_default();
    *count += 1;
    if count.is_power_of_two() {
        tracing::info!(%bridge, count, "DHCP without an answer: {what}");
    }
}

fn open(index: u32) -> io::Result<Socket> {
    // With no protocol it hears nothing before it is bound to the bridge.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    socket.attach_filter(&requests_only())?;
    // SAFETY: all zeros is a value of this plain structure of C.
    let mut addr: libc::sockaddr_ll = unsafe { mem::zeroed() };
    addr.sll_family = libc::AF_PACKET as u16;
    addr.sll_protocol = (libc::ETH_P_IP as u16).to_be();
    addr.sll_ifindex = index as i32;
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the address has the size that is said and outlives the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const addr).cast(), size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Unfragmented UDP to port 67, as the kernel's filters for sockets say it.
fn requests_only() -> [SockFilter; 9] {
    const LD_HALF: u16 = 0x28;
    const LD_BYTE: u16 = 0x30;
    const LDX_HEADER: u16 = 0xb1;
    const LD_HALF_BEHIND: u16 = 0x48;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LD_BYTE, 0, 0, 23),
        SockFilter::new(JUMP_EQUAL, 0, 6, 17),
        SockFilter::new(LD_HALF, 0, 0, 20),
        SockFilter::new(JUMP_ANY_BIT, 4, 0, 0x3fff),
        SockFilter::new(LDX_HEADER, 0, 0, 14),
        SockFilter::new(LD_HALF_BEHIND, 0, 0, 16),
        SockFilter::new(JUMP_EQUAL, 0, 1, 67),
        SockFilter::new(RETURN, 0, 0, MAX_FRAME as u32),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
