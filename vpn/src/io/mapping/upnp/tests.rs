//! Against a router in this process: real sockets on the loopback, and a table of ports.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::super::{Held, Place, PortMapping, RouterNonce, Way, Wish, report};
use super::*;

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const LIFETIME: Duration = Duration::from_secs(3600);

/// What a router is like.
#[derive(Debug, Clone, Copy, Default)]
struct Manners {
    /// Where its answer to a search says that it is.
    location: Option<&'static str>,
    /// It does not say to whom a port leads.
    mute: Option<Mute>,
    /// What it answers when it is asked to lead a port.
    refusal: Option<&'static str>,
    /// Its documents do not end.
    endless: bool,
    silent: bool,
}

/// How a router does not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mute {
    Refuses,
    HangsUp,
}

type Ports = Arc<Mutex<BTreeMap<u16, SocketAddrV4>>>;

struct Router {
    ssdp: SocketAddrV4,
    ports: Ports,
    /// How long the last port was asked for, in seconds.
    seconds: Arc<AtomicUsize>,
    fetched: Arc<AtomicUsize>,
    manners: Manners,
    http: Arc<Mutex<SocketAddr>>,
    serving: AbortHandle,
    tasks: JoinSet<()>,
}

impl Router {
    async fn new(manners: Manners) -> Self {
        // Tests in other processes have addresses of their own.
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let ip = Ipv4Addr::new(127, NEXT.fetch_add(1, Ordering::Relaxed), high, low);
        let ssdp = SocketAddrV4::new(ip, SSDP);
        let udp = UdpSocket::bind(ssdp).await.unwrap();
        let http = Arc::new(Mutex::new(SocketAddr::from(ssdp)));
        let (mut tasks, at) = (JoinSet::new(), Arc::clone(&http));
        tasks.spawn(async move {
            let mut text = [0; 2048];
            while let Ok((_, from)) = udp.recv_from(&mut text).await {
                let at = *at.lock().unwrap();
                let location = manners
                    .location
                    .map_or_else(|| format!("http://{at}/d.xml"), str::to_owned);
                let answer = format!("HTTP/1.1 200 OK\r\nLOCATION: {location}\r\n\r\n");
                // From another port, as some routers do.
                let other = UdpSocket::bind((ip, 0)).await.unwrap();
                other.send_to(answer.as_bytes(), from).await.unwrap();
            }
        });
        let serving = tasks.spawn(std::future::pending());
        let mut router = Self {
            ssdp,
            ports: Ports::default(),
            seconds: Arc::default(),
            fetched: Arc::default(),
            manners,
            http,
            serving,
            tasks,
        };
        router.serve_elsewhere().await;
        router
    }

    /// Serves at another port from now on.
    async fn serve_elsewhere(&mut self) {
        self.serving.abort();
        let tcp = TcpListener::bind((*self.ssdp.ip(), 0)).await.unwrap();
        *self.http.lock().unwrap() = tcp.local_addr().unwrap();
        let (ports, seconds) = (Arc::clone(&self.ports), Arc::clone(&self.seconds));
        let (fetched, manners) = (Arc::clone(&self.fetched), self.manners);
        self.serving = self.tasks.spawn(async move {
            let mut silent = Vec::new();
            while let Ok((stream, _)) = tcp.accept().await {
                fetched.fetch_add(1, Ordering::Relaxed);
                if manners.silent {
                    silent.push(stream);
                } else {
                    // Whoever has enough closes the connection.
                    let _ = serve(stream, manners, (&ports, &seconds)).await;
                }
            }
        });
    }

    async fn ask(&self, inside: u16) -> Result<Port, String> {
        let here = SocketAddrV4::new(HERE, inside);
        let outside = [inside, 20_001, 20_002];
        Port::ask(self.ssdp, PortProtocol::Udp, here, &outside, LIFETIME).await
    }

    fn lead(&self, port: u16, to: &str) {
        self.ports.lock().unwrap().insert(port, to.parse().unwrap());
    }

    fn leads(&self, port: u16) -> Option<SocketAddrV4> {
        self.ports.lock().unwrap().get(&port).copied()
    }
}

async fn serve(
    mut stream: TcpStream,
    manners: Manners,
    (ports, seconds): (&Ports, &AtomicUsize),
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let whole = |text: &[u8]| {
        let text = String::from_utf8_lossy(text);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.split("Content-Length: ").nth(1).map_or(0, |rest| {
            rest.lines()
                .next()
                .unwrap_or_default()
                .trim()
                .parse()
                .unwrap_or(0)
        });
        (body.len() >= length).then_some(())
    };
    while whole(&request).is_none() {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    if manners.mute == Some(Mute::HangsUp) && request.contains("GetSpecificPortMappingEntry") {
        return Ok(());
    }
    let (status, body) = reply(&request, manners, (&mut ports.lock().unwrap(), seconds));
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    if manners.endless {
        loop {
            stream.write_all(&[b' '; 4096]).await?;
        }
    }
    Ok(())
}

fn reply(
    request: &str,
    manners: Manners,
    (ports, seconds): (&mut BTreeMap<u16, SocketAddrV4>, &AtomicUsize),
) -> (&'static str, String) {
    if request.starts_with("GET /d.xml ") {
        let text = "<root><device><serviceList><service>\
             <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
             <controlURL>/c</controlURL></service></serviceList></device></root>";
        return ("200 OK", text.to_owned());
    }
    let argument = |name: &str| {
        let rest = request.split(&format!("<{name}>")).nth(1)?;
        Some(rest.split("</").next()?.to_owned())
    };
    let number = |name: &str| argument(name).and_then(|text| text.parse().ok()).unwrap_or(0_u16);
    let outside = number("NewExternalPort");
    let client = || {
        let ip = argument("NewInternalClient")?.parse().ok()?;
        Some(SocketAddrV4::new(ip, number("NewInternalPort")))
    };
    let envelope = |text: &str| format!("<s:Envelope xmlns:s=\"e\"><s:Body>{text}</s:Body></s:Envelope>");
    let fault = |text: &str| {
        (
            "500 Internal Server Error",
            envelope(&format!("<s:Fault>{text}</s:Fault>")),
        )
    };
    let numbered = |code: u32| {
        fault(&format!(
            "<errorCode>{code}</errorCode><errorDescription>no</errorDescription>"
        ))
    };
    let done = ("200 OK", envelope("<R></R>"));
    let action = request
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("soapaction"))
        .and_then(|(_, action)| action.split(['#', '"']).nth(2));
    match action.unwrap_or_default() {
        "GetExternalIPAddress" => {
            let text = "<R><NewExternalIPAddress>203.0.113.7</NewExternalIPAddress></R>";
            ("200 OK", envelope(text))
        }
        "GetSpecificPortMappingEntry" if manners.mute.is_some() => numbered(NOT_AUTHORIZED),
        "GetSpecificPortMappingEntry" => match ports.get(&outside) {
            None => numbered(NO_ENTRY),
            Some(to) => {
                let (ip, port) = (to.ip(), to.port());
                let text = format!(
                    "<R><NewInternalPort>{port}</NewInternalPort><NewInternalClient>{ip}</NewInternalClient></R>"
                );
                ("200 OK", envelope(&text))
            }
        },
        "AddPortMapping" if manners.refusal.is_some() => fault(manners.refusal.unwrap_or_default()),
        "AddPortMapping" if ports.get(&outside).is_some_and(|to| Some(*to) != client()) => numbered(CONFLICT),
        "AddPortMapping" => {
            seconds.store(number("NewLeaseDuration").into(), Ordering::Relaxed);
            ports.extend(client().map(|client| (outside, client)));
            done
        }
        "DeletePortMapping" => {
            ports.remove(&outside);
            done
        }
        _ => numbered(INVALID_ACTION),
    }
}

#[tokio::test]
async fn a_port_is_asked_for_renewed_and_given_back() {
    let router = Router::new(Manners::default()).await;
    let mut port = router.ask(4000).await.unwrap();
    assert_eq!(port.outside(), "203.0.113.7:4000".parse().unwrap());
    assert_eq!(router.leads(4000), Some("127.0.0.1:4000".parse().unwrap()));
    assert_eq!(router.seconds.load(Ordering::Relaxed), 3600);
    // The router was restarted, and has forgotten everything.
    router.ports.lock().unwrap().clear();
    port.renew().await.unwrap();
    assert_eq!(router.leads(4000), Some("127.0.0.1:4000".parse().unwrap()));
    port.release().await.unwrap();
    assert_eq!(router.leads(4000), None);
}

#[tokio::test]
async fn a_port_of_another_host_is_left_to_it() {
    for mute in [None, Some(Mute::Refuses), Some(Mute::HangsUp)] {
        let router = Router::new(Manners {
            mute,
            ..Manners::default()
        })
        .await;
        router.lead(4000, "192.168.1.9:4000");
        let mut port = router.ask(4000).await.unwrap();
        assert_eq!(port.outside().port(), 20_001, "{mute:?}");
        assert_eq!(router.leads(20_001), Some("127.0.0.1:4000".parse().unwrap()));
        assert_eq!(router.leads(4000), Some("192.168.1.9:4000".parse().unwrap()));

        router.lead(20_001, "192.168.1.9:77");
        let lost = port.renew().await.unwrap_err();
        assert!(matches!(lost, NotRenewed::Lost(_)), "{lost:?}");
        port.release().await.unwrap();
        let left = router.leads(20_001);
        assert_eq!(
            left,
            Some("192.168.1.9:77".parse().unwrap()),
            "it is not given back"
        );
    }
}

fn wish() -> Wish {
    Wish {
        protocol: PortProtocol::Udp,
        port: NonZeroU16::new(4000).unwrap(),
        nonce: RouterNonce::of(&[7; 32]),
    }
}

async fn held(router: &Router) -> Held {
    let port = router.ask(4000).await.unwrap();
    Held {
        place: Place {
            router: *router.ssdp.ip(),
            here: HERE,
        },
        addr: port.outside(),
        way: Way::Upnp(port),
        expires: Instant::now() + LIFETIME,
    }
}

#[tokio::test]
async fn a_router_that_serves_elsewhere_is_found_again() {
    let mut router = Router::new(Manners::default()).await;
    let mut held = held(&router).await;
    router.serve_elsewhere().await;
    router.ports.lock().unwrap().clear();
    held.renew(&wish()).await.unwrap();
    assert_eq!(held.addr, "203.0.113.7:4000".parse().unwrap());
    assert_eq!(router.leads(4000), Some("127.0.0.1:4000".parse().unwrap()));
}

#[tokio::test]
async fn a_port_that_leads_elsewhere_is_told_no_more() {
    let router = Router::new(Manners::default()).await;
    let (tell, state) = watch::channel(PortMapping::Asking);
    let mut failures = 0;
    let mut port = Some(held(&router).await);
    report(Ok(()), &mut port, &mut failures, &tell);
    assert_eq!(state.borrow().addr(), Some("203.0.113.7:4000".parse().unwrap()));

    let silence = NotRenewed::NoAnswer("nothing".to_owned());
    report(Err(silence), &mut port, &mut failures, &tell);
    assert!(
        port.is_some() && state.borrow().addr().is_some(),
        "its time is not over"
    );

    router.lead(4000, "192.168.1.9:77");
    let renewed = port.as_mut().unwrap().renew(&wish()).await;
    let pause = report(renewed, &mut port, &mut failures, &tell);
    assert_eq!(pause, Duration::ZERO, "another is asked for at once");
    assert!(port.is_none());
    assert_eq!(*state.borrow(), PortMapping::Asking);
}

#[test]
fn a_node_asks_for_the_same_ports_each_time_and_others_for_others() {
    let ports = wish().outside();
    assert_eq!(ports[0], 4000);
    assert_eq!(ports, wish().outside());
    let other = Wish {
        nonce: RouterNonce::of(&[8; 32]),
        ..wish()
    };
    assert_ne!(ports[1..], other.outside()[1..]);
    let (here, there) = (Ipv4Addr::new(192, 168, 1, 1), Ipv4Addr::new(10, 0, 0, 1));
    let nonce = wish().nonce;
    assert_eq!(nonce.for_pcp(here), nonce.for_pcp(here));
    assert_ne!(nonce.for_pcp(here), nonce.for_pcp(there));
}

#[tokio::test]
async fn nothing_is_fetched_from_another_host() {
    let elsewhere = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let at = format!("http://{}/d.xml", elsewhere.local_addr().unwrap());
    let router = Router::new(Manners {
        location: Some(at.leak()),
        ..Manners::default()
    })
    .await;
    let why = router.ask(4000).await.unwrap_err();
    assert!(why.contains("another host, '127.0.0.2'"), "{why}");
    assert_eq!(router.fetched.load(Ordering::Relaxed), 0);
    let somebody = timeout(Duration::ZERO, elsewhere.accept()).await;
    assert!(somebody.is_err(), "it was asked");
}

#[tokio::test]
async fn what_a_router_refuses_is_refused() {
    let cases = [
        ("<errorCode>725</errorCode>", "for ever"),
        ("<errorCode>606</errorCode>", "606"),
        ("<errorCode>-1</errorCode>", "refuses"),
        ("<faultcode>s:Client</faultcode>", "refuses"),
        ("", "refuses"),
    ];
    for (refusal, said) in cases {
        let router = Router::new(Manners {
            refusal: Some(refusal),
            ..Manners::default()
        })
        .await;
        let why = router.ask(4000).await.unwrap_err();
        assert!(why.contains(said), "{refusal}: {why}");
        assert!(router.ports.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_a_router_says_has_bounds() {
    let refused = async |manners: Manners| Router::new(manners).await.ask(4000).await.unwrap_err();
    let endless = Manners {
        endless: true,
        ..Manners::default()
    };
    let why = refused(endless).await;
    assert!(why.contains("cannot be read"), "{why}");
    let silent = Manners {
        silent: true,
        ..Manners::default()
    };
    let why = refused(silent).await;
    assert!(why.contains("in time"), "{why}");
}

#[tokio::test]
async fn a_host_that_is_no_router_is_told() {
    let nobody = UdpSocket::bind((HERE, 0)).await.unwrap();
    let SocketAddr::V4(at) = nobody.local_addr().unwrap() else {
        panic!("another family")
    };
    drop(nobody);
    let inside = SocketAddrV4::new(HERE, 4000);
    let asked = Port::ask(at, PortProtocol::Udp, inside, &[4000], LIFETIME).await;
    let why = asked.unwrap_err();
    assert!(why.contains("search"), "{why}");
}
