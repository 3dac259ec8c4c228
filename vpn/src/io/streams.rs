//! Connections over TLS that take the data socket's place where UDP does not pass.
//!
//! A relay listens; a member that nobody answers over UDP connects. Either end then has a number for the connection,
//! and the core an address by it ([`UnderlayAddr::of_stream`]). Over the connection go a preamble, which the relay gives
//! back and which turns away whoever meant to speak another protocol, and datagrams, each after its length in two bytes,
//! big-endian. A length of zero says that the connection is alive.
//!
//! The certificate is made at each start and checked by nobody: what the core sends is authenticated and sealed by
//! itself, over UDP as here. TLS is the form in which networks let it pass.
//!
//! A queue towards a slow connection is short, and what does not fit is dropped as a full link drops it: a tunnel's own
//! flows find their speed by that. Reading waits for the driver instead, which slows the far end down.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aerie_types::{PeerId, UnderlayAddr};
use aerie_vpn_proto::{Run, StreamAction};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::guests::{Full, Guests};
use super::tls;
use crate::Error;

/// What a connection begins with, from the member that has opened it.
const PREAMBLE: [u8; 8] = *b"aerie/1\n";
/// The handshakes of TCP and TLS, and the preamble.
const HANDSHAKE: Duration = Duration::from_secs(8);
/// Says so often that it is alive when there is nothing else to say, and is given up after the silence of three.
const ALIVE: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(60);
/// What the far end has not acknowledged for so long ends the connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// What is read at a time: a record of TLS.
const READ: usize = 16 << 10;
/// Bytes that wait for one connection: at 10 Mbit/s a fifth of a second.
const QUEUE_BYTES: usize = 256 << 10;
/// Runs that wait for one connection: some may be short.
const QUEUE_RUNS: usize = 512;
/// What has arrived and waits for the driver.
const ARRIVED: usize = 256;
/// Bytes in the kernel's buffer that are not sent yet: what waits there cannot be dropped any more.
const UNSENT: libc::c_int = 128 << 10;
/// The pause after a connection could not be taken, as where no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What connections have to say.
#[derive(Debug)]
pub(crate) enum StreamEvent {
    /// A connection that was asked for is there.
    Opened { relay: PeerId, stream: UnderlayAddr },
    /// It could not be made.
    Failed { relay: PeerId },
    /// A datagram has come.
    Datagram { stream: UnderlayAddr, bytes: Vec<u8> },
    /// A connection has ended, whoever has opened it.
    Ended { stream: UnderlayAddr },
}

/// All connections of this host.
pub(crate) struct Streams {
    shared: Arc<Shared>,
    arrived: mpsc::Receiver<StreamEvent>,
    /// Where connections are worked for: not in the driver's thread, whose time others must not be able to take by
    /// handshakes.
    runtime: Handle,
    /// The listener and what was opened from here. Ends with this.
    tasks: JoinSet<()>,
    /// The port that is listened at.
    port: Option<u16>,
}

struct Shared {
    events: mpsc::Sender<StreamEvent>,
    queues: Mutex<BTreeMap<u64, Arc<Queue>>>,
    guests: Guests,
    next: AtomicU64,
}

/// What waits for a connection to send it.
struct Queue {
    runs: mpsc::Sender<Vec<u8>>,
    bytes: AtomicUsize,
}

impl Streams {
    /// None yet, and nobody is listened to.
    pub(crate) fn new(runtime: Handle) -> Self {
        let (events, arrived) = mpsc::channel(ARRIVED);
        Self {
            shared: Arc::new(Shared {
                events,
                queues: Mutex::default(),
                guests: Guests::default(),
                next: AtomicU64::new(1),
            }),
            arrived,
            runtime,
            tasks: JoinSet::new(),
            port: None,
        }
    }

    /// Takes connections at a port; 0 for any.
    ///
    /// # Errors
    /// [`Error::TlsPort`], [`Error::Certificate`].
    pub(crate) fn listen(&mut self, port: u16) -> Result<(), Error> {
        let acceptor = tls::acceptor()?;
        let refused = |source| Error::TlsPort { port, source };
        let listener = {
            let _registered_there = self.runtime.enter();
            bind(port).map_err(refused)?
        };
        self.port = Some(listener.local_addr().map_err(refused)?.port());
        let shared = Arc::clone(&self.shared);
        let accept = accept_all(listener, acceptor, shared);
        self.tasks.spawn_on(accept, &self.runtime);
        Ok(())
    }

    /// The port that is listened at.
    pub(crate) fn port(&self) -> Option<u16> {
        self.port
    }

    /// Does what the core wants.
    pub(crate) fn obey(&mut self, action: StreamAction) {
        match action {
            StreamAction::Open { relay, to } => self.open(relay, to),
            StreamAction::Close(stream) => self.close(stream),
            StreamAction::Proved(stream) => {
                if let Some(number) = stream.stream() {
                    self.shared.guests.prove(number);
                }
            }
        }
    }

    /// Connects to a relay; what comes of it is an event.
    fn open(&mut self, relay: PeerId, to: UnderlayAddr) {
        while self.tasks.try_join_next().is_some() {}
        let shared = Arc::clone(&self.shared);
        let work = async move {
            let connected = match timeout(HANDSHAKE, connect(to.0)).await {
                Ok(connected) => connected,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            match connected {
                Ok(connected) => {
                    let number = shared.number();
                    let outgoing = shared.admit(number);
                    let stream = UnderlayAddr::of_stream(number);
                    shared.say(StreamEvent::Opened { relay, stream }).await;
                    shared.carry(connected, number, outgoing).await;
                    shared.say(StreamEvent::Ended { stream }).await;
                }
                Err(error) => {
                    tracing::info!(%to, %error, "no connection to the relay over TLS; trying again later");
                    shared.say(StreamEvent::Failed { relay }).await;
                }
            }
        };
        self.tasks.spawn_on(work, &self.runtime);
    }

    /// Ends a connection. Of one that is not known nothing is done.
    fn close(&self, stream: UnderlayAddr) {
        if let Some(number) = stream.stream() {
            // Its writer ends once nobody can give it anything more.
            self.shared.queues().remove(&number);
        }
    }

    /// Sends a run of datagrams, or drops what the connection has no room for.
    pub(crate) fn send(&self, number: u64, run: Run<'_>) {
        let Some(queue) = self.shared.queues().get(&number).cloned() else {
            return;
        };
        let mut framed = Vec::with_capacity(run.bytes.len() + 2 * (run.bytes.len() / run.segment.max(1) + 1));
        for datagram in run.bytes.chunks(run.segment.max(1)) {
            if let Ok(len) = u16::try_from(datagram.len()) {
                framed.extend(len.to_be_bytes());
                framed.extend(datagram);
            }
        }
        let len = framed.len();
        // Counted before the writer can have taken it.
        let waiting = queue.bytes.fetch_add(len, Ordering::Relaxed);
        if waiting + len > QUEUE_BYTES || queue.runs.try_send(framed).is_err() {
            queue.bytes.fetch_sub(len, Ordering::Relaxed);
        }
    }

    /// What has happened next.
    pub(crate) async fn next(&mut self) -> StreamEvent {
        match self.arrived.recv().await {
            Some(event) => event,
            // This holds a sender itself.
            None => std::future::pending().await,
        }
    }

    /// What has happened meanwhile.
    pub(crate) fn try_next(&mut self) -> Option<StreamEvent> {
        self.arrived.try_recv().ok()
    }
}

impl Shared {
    fn queues(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Queue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    async fn say(&self, event: StreamEvent) {
        // Nobody listens once the driver has ended.
        let _ = self.events.send(event).await;
    }

    /// Makes room for a connection.
    fn admit(&self, number: u64) -> (Arc<Queue>, mpsc::Receiver<Vec<u8>>) {
        let (runs, outgoing) = mpsc::channel(QUEUE_RUNS);
        let queue = Arc::new(Queue {
            runs,
            bytes: AtomicUsize::new(0),
        });
        self.queues().insert(number, Arc::clone(&queue));
        (queue, outgoing)
    }

    /// Carries datagrams until the connection ends.
    async fn carry<S: AsyncRead + AsyncWrite>(
        &self,
        connected: S,
        number: u64,
        (queue, outgoing): (Arc<Queue>, mpsc::Receiver<Vec<u8>>),
    ) {
        let (reader, writer) = tokio::io::split(connected);
        let weak = Arc::downgrade(&queue);
        drop(queue);
        let written = write_all(writer, outgoing, || weak.upgrade());
        let error = tokio::select! {
            read = self.read_all(reader, UnderlayAddr::of_stream(number)) => read.err(),
            written = written => written.err(),
        };
        let error = error.map_or_else(|| "closed".to_owned(), |error| error.to_string());
        tracing::debug!(number, error, "a connection over TLS has ended");
        self.queues().remove(&number);
    }

    async fn read_all(&self, reader: impl AsyncRead + Unpin, stream: UnderlayAddr) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(READ, reader);
        loop {
            let len = timeout(SILENCE, reader.read_u16()).await??;
            if len == 0 {
                continue;
            }
            let mut bytes = vec![0; len.into()];
            timeout(SILENCE, reader.read_exact(&mut bytes)).await??;
            self.say(StreamEvent::Datagram { stream, bytes }).await;
        }
    }

    /// Greets who has connected, and carries what it sends.
    async fn receive(&self, tcp: TcpStream, from: SocketAddr, number: u64, acceptor: tls::Acceptor) {
        match timeout(HANDSHAKE, greet(tcp, acceptor)).await {
            Ok(Ok(stream)) => {
                let outgoing = self.admit(number);
                self.carry(stream, number, outgoing).await;
            }
            Ok(Err(error)) => tracing::debug!(%from, %error, "a connection was turned away"),
            Err(_) => tracing::debug!(%from, "a connection said nothing in time"),
        }
        // Of others the core knows nothing.
        if self.guests.leave(number) {
            let stream = UnderlayAddr::of_stream(number);
            self.say(StreamEvent::Ended { stream }).await;
        }
    }
}

/// Writes what comes, several runs at once where they wait. Ends once nobody can send any more.
async fn write_all(
    mut writer: impl AsyncWrite + Unpin,
    mut outgoing: mpsc::Receiver<Vec<u8>>,
    queue: impl Fn() -> Option<Arc<Queue>>,
) -> io::Result<()> {
    loop {
        match timeout(ALIVE, outgoing.recv()).await {
            Err(_) => writer.write_all(&[0, 0]).await?,
            Ok(None) => return writer.shutdown().await,
            Ok(Some(first)) => {
                let mut run = Some(first);
                while let Some(bytes) = run {
                    writer.write_all(&bytes).await?;
                    if let Some(queue) = queue() {
                        queue.bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
                    }
                    run = outgoing.try_recv().ok();
                }
            }
        }
        writer.flush().await?;
    }
}

async fn connect(to: SocketAddr) -> io::Result<impl AsyncRead + AsyncWrite> {
    let tcp = TcpStream::connect(to).await?;
    tune(&tcp)?;
    let mut stream = tls::connect(to.ip(), tcp).await?;
    stream.write_all(&PREAMBLE).await?;
    stream.flush().await?;
    preamble(&mut stream).await?;
    Ok(stream)
}

async fn accept_all(listener: TcpListener, acceptor: tls::Acceptor, shared: Arc<Shared>) {
    let mut guests = JoinSet::new();
    loop {
        while guests.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((tcp, from)) => {
                let number = shared.number();
                match shared.guests.enter(number, from.ip()) {
                    Ok(Some(gone)) => drop(shared.queues().remove(&gone)),
                    Ok(None) => {}
                    Err(Full) => {
                        tracing::debug!(%from, "members have all connections; one more is not taken");
                        continue;
                    }
                }
                let (guest, acceptor) = (Arc::clone(&shared), acceptor.clone());
                let task = guests.spawn(async move { guest.receive(tcp, from, number, acceptor).await });
                shared.guests.is_worked_for(number, task);
            }
            Err(error) => {
                tracing::debug!(%error, "no connection can be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn greet(tcp: TcpStream, acceptor: tls::Acceptor) -> io::Result<impl AsyncRead + AsyncWrite> {
    tune(&tcp)?;
    let mut stream = acceptor.accept(tcp).await?;
    preamble(&mut stream).await?;
    stream.write_all(&PREAMBLE).await?;
    stream.flush().await?;
    Ok(stream)
}

async fn preamble(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut preamble = [0; PREAMBLE.len()];
    stream.read_exact(&mut preamble).await?;
    if preamble == PREAMBLE {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it speaks another protocol",
        ))
    }
}

fn tune(tcp: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(tcp);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    super::udp::set_option(
        std::os::fd::AsRawFd::as_raw_fd(tcp),
        libc::IPPROTO_TCP,
        libc::TCP_NOTSENT_LOWAT,
        UNSENT,
    )
}

fn bind(port: u16) -> io::Result<TcpListener> {
    let open = |domain, addr: SocketAddr| -> io::Result<Socket> {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.bind(&addr.into())?;
        Ok(socket)
    };
    let socket = match open(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            // No IPv6 on this host.
            open(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into())?
        }
        opened => opened?,
    };
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (Streams, Streams, UnderlayAddr) {
        let (mut relay, mut member) = (Streams::new(Handle::current()), Streams::new(Handle::current()));
        relay.listen(0).unwrap();
        let to = UnderlayAddr((Ipv4Addr::LOCALHOST, relay.port().unwrap()).into());
        member.open(PeerId([1; 32]), to);
        let StreamEvent::Opened { stream, .. } = member.next().await else {
            panic!("not opened");
        };
        (relay, member, stream)
    }

    fn run(to: UnderlayAddr, bytes: &[u8], segment: usize) -> Run<'_> {
        Run {
            to,
            bytes,
            segment,
            whole: false,
        }
    }

    async fn datagram(streams: &mut Streams) -> (UnderlayAddr, Vec<u8>) {
        match streams.next().await {
            StreamEvent::Datagram { stream, bytes } => (stream, bytes),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn datagrams_go_both_ways_one_by_one() {
        let (mut relay, mut member, stream) = pair().await;
        member.send(stream.stream().unwrap(), run(stream, b"onetwox", 3));
        let mut arrived = Vec::new();
        for _ in 0..3 {
            arrived.push(datagram(&mut relay).await);
        }
        let back = arrived[0].0;
        assert!(arrived.iter().all(|(from, _)| *from == back));
        let bytes: Vec<_> = arrived.into_iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(bytes, [b"one".to_vec(), b"two".to_vec(), b"x".to_vec()]);
        relay.send(back.stream().unwrap(), run(back, &[7; 65_000], 65_000));
        assert_eq!(datagram(&mut member).await, (stream, vec![7; 65_000]));
    }

    #[tokio::test]
    async fn either_end_hears_that_a_connection_has_ended() {
        let (mut relay, mut member, stream) = pair().await;
        member.send(stream.stream().unwrap(), run(stream, b"one", 3));
        let (back, _) = datagram(&mut relay).await;
        relay.obey(StreamAction::Proved(back));
        member.close(stream);
        let StreamEvent::Ended { stream: ended } = relay.next().await else {
            panic!("not ended");
        };
        assert_eq!(ended, back);
        assert!(matches!(member.next().await, StreamEvent::Ended { .. }));
        relay.send(back.stream().unwrap(), run(back, b"late", 4));
        assert!(relay.shared.queues().is_empty() && relay.shared.guests.is_empty());
    }

    #[tokio::test]
    async fn who_speaks_something_else_is_turned_away() {
        let (mut relay, member) = (Streams::new(Handle::current()), Streams::new(Handle::current()));
        relay.listen(0).unwrap();
        let port = relay.port().unwrap();
        let plain = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let mut web = tls::connect(
            Ipv4Addr::LOCALHOST.into(),
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap(),
        )
        .await
        .unwrap();
        web.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // The end comes as an error or as the end of the stream, and nothing before it.
        let _ = web.read_to_end(&mut answer).await;
        assert_eq!(answer, b"");
        let mut plain = plain;
        plain.write_all(b"SSH-2.0-x\r\n").await.unwrap();
        let _ = plain.read_to_end(&mut answer).await;
        assert!(relay.shared.queues().is_empty() && relay.try_next().is_none());
        drop(member);
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_told_of() {
        let mut member = Streams::new(Handle::current());
        let port = bind(0).unwrap().local_addr().unwrap().port();
        member.open(PeerId([1; 32]), UnderlayAddr((Ipv4Addr::LOCALHOST, port).into()));
        assert!(matches!(member.next().await, StreamEvent::Failed { .. }));
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let taken = std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Streams::new(Handle::current()).listen(port).err().unwrap();
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }

    #[tokio::test]
    async fn what_a_stalled_connection_does_not_take_is_dropped() {
        let streams = Streams::new(Handle::current());
        let number = streams.shared.number();
        let (queue, _outgoing) = streams.shared.admit(number);
        let stream = UnderlayAddr::of_stream(number);
        for _ in 0..100 {
            streams.send(number, run(stream, &[0; 60_000], 1400));
        }
        let queued = queue.bytes.load(Ordering::Relaxed);
        assert!((QUEUE_BYTES - 61_000..=QUEUE_BYTES).contains(&queued), "{queued}");
    }
}
