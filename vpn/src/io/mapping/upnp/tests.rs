//! Against a router in this process: real sockets on the loopback, and a table of ports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const LIFETIME: Duration = Duration::from_secs(3600);

/// What a router is like.
#[derive(Debug, Clone, Copy, Default)]
struct Manners {
    /// Where its answer to a search says that it is.
    location: Option<&'static str>,
    /// It gives a port to whoever asks last, and says so to nobody.
    mute: bool,
    for_ever: bool,
    /// Its documents do not end.
    endless: bool,
    silent: bool,
}

struct Router {
    ssdp: SocketAddrV4,
    ports: Arc<Mutex<BTreeMap<u16, SocketAddrV4>>>,
    fetched: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Router {
    async fn new(manners: Manners) -> Self {
        let udp = UdpSocket::bind((HERE, 0)).await.unwrap();
        let tcp = TcpListener::bind((HERE, 0)).await.unwrap();
        let SocketAddr::V4(ssdp) = udp.local_addr().unwrap() else {
            panic!("another family")
        };
        let http = tcp.local_addr().unwrap();
        let ports = Arc::new(Mutex::new(BTreeMap::new()));
        let fetched = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut text = [0; 2048];
            while let Ok((length, from)) = udp.recv_from(&mut text).await {
                assert!(text[..length].starts_with(b"M-SEARCH * HTTP/1.1\r\n"));
                let location = manners
                    .location
                    .map_or_else(|| format!("http://{http}/d.xml"), str::to_owned);
                let answer = format!("HTTP/1.1 200 OK\r\nLOCATION: {location}\r\n\r\n");
                // From another port, as some routers do.
                let other = UdpSocket::bind((HERE, 0)).await.unwrap();
                other.send_to(answer.as_bytes(), from).await.unwrap();
            }
        });
        let (table, count) = (Arc::clone(&ports), Arc::clone(&fetched));
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                if manners.silent {
                    std::mem::forget(stream);
                    continue;
                }
                let mut request = Vec::new();
                let whole = |text: &[u8]| {
                    let text = String::from_utf8_lossy(text).to_lowercase();
                    let (head, body) = text.split_once("\r\n\r\n")?;
                    let length = head.split("content-length: ").nth(1).map_or(0, |rest| {
                        rest.lines().next().unwrap().trim().parse::<usize>().unwrap()
                    });
                    (body.len() >= length).then_some(())
                };
                while whole(&request).is_none() {
                    assert!(stream.read_buf(&mut request).await.unwrap() > 0);
                }
                let request = String::from_utf8(request).unwrap();
                let (status, body) = reply(&request, manners, &mut table.lock().unwrap());
                let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(body.as_bytes()).await.unwrap();
                // Whoever has enough closes the connection.
                while manners.endless && stream.write_all(&[b' '; 4096]).await.is_ok() {}
            }
        });
        Self {
            ssdp,
            ports,
            fetched,
            _tasks: tasks,
        }
    }

    async fn ask(&self, inside: u16) -> Result<Port, String> {
        Port::ask(
            self.ssdp,
            PortProtocol::Udp,
            SocketAddrV4::new(HERE, inside),
            LIFETIME,
        )
        .await
    }

    fn lead(&self, port: u16, to: &str) {
        self.ports.lock().unwrap().insert(port, to.parse().unwrap());
    }

    fn leads(&self, port: u16) -> Option<SocketAddrV4> {
        self.ports.lock().unwrap().get(&port).copied()
    }
}

fn reply(request: &str, manners: Manners, ports: &mut BTreeMap<u16, SocketAddrV4>) -> (&'static str, String) {
    if request.starts_with("GET /d.xml ") {
        let text = "<root><device><serviceList><service>\
             <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
             <controlURL>/c</controlURL></service></serviceList></device></root>";
        return ("200 OK", text.to_owned());
    }
    assert!(request.starts_with("POST /c "), "{request}");
    let argument = |name: &str| {
        let rest = request.split(&format!("<{name}>")).nth(1)?;
        Some(rest.split("</").next().unwrap().to_owned())
    };
    let outside: u16 = argument("NewExternalPort").map_or(0, |port| port.parse().unwrap());
    let client = argument("NewInternalClient").map(|ip| {
        let port = argument("NewInternalPort").unwrap();
        format!("{ip}:{port}").parse::<SocketAddrV4>().unwrap()
    });
    let envelope = |text: String| format!("<s:Envelope xmlns:s=\"e\"><s:Body>{text}</s:Body></s:Envelope>");
    let fault = |code: u32| {
        let text = format!(
            "<s:Fault><errorCode>{code}</errorCode><errorDescription>no</errorDescription></s:Fault>"
        );
        ("500 Internal Server Error", envelope(text))
    };
    let named = request
        .split("SOAPACTION: ")
        .nth(1)
        .or_else(|| request.split("soapaction: ").nth(1));
    let action = named.unwrap().split(['#', '"']).nth(2).unwrap();
    match action {
        "GetExternalIPAddress" => {
            let text = "<R><NewExternalIPAddress>203.0.113.7</NewExternalIPAddress></R>";
            ("200 OK", envelope(text.to_owned()))
        }
        "GetSpecificPortMappingEntry" if manners.mute => fault(606),
        "GetSpecificPortMappingEntry" => match ports.get(&outside) {
            None => fault(NO_ENTRY),
            Some(to) => {
                let (ip, port) = (to.ip(), to.port());
                let text = format!(
                    "<R><NewInternalPort>{port}</NewInternalPort><NewInternalClient>{ip}</NewInternalClient></R>"
                );
                ("200 OK", envelope(text))
            }
        },
        "AddPortMapping" if manners.for_ever => fault(ONLY_FOR_EVER),
        "AddPortMapping" if manners.mute && ports.contains_key(&outside) => fault(CONFLICT),
        "AddPortMapping" => {
            assert_eq!(argument("NewLeaseDuration").unwrap(), "3600");
            ports.insert(outside, client.unwrap());
            ("200 OK", envelope("<R></R>".to_owned()))
        }
        "DeletePortMapping" => {
            ports.remove(&outside);
            ("200 OK", envelope("<R></R>".to_owned()))
        }
        _ => fault(INVALID_ACTION),
    }
}

#[tokio::test]
async fn a_port_is_asked_for_renewed_and_given_back() {
    let router = Router::new(Manners::default()).await;
    let mut port = router.ask(4000).await.unwrap();
    assert_eq!(port.outside(), "203.0.113.7:4000".parse().unwrap());
    assert_eq!(router.leads(4000), Some("127.0.0.1:4000".parse().unwrap()));
    // The router was restarted, and has forgotten everything.
    router.ports.lock().unwrap().clear();
    port.renew().await.unwrap();
    assert_eq!(router.leads(4000), Some("127.0.0.1:4000".parse().unwrap()));
    port.release().await.unwrap();
    assert_eq!(router.leads(4000), None);
}

#[tokio::test]
async fn a_port_of_another_host_is_left_to_it() {
    for mute in [false, true] {
        let router = Router::new(Manners {
            mute,
            ..Manners::default()
        })
        .await;
        router.lead(4000, "192.168.1.9:4000");
        let mut port = router.ask(4000).await.unwrap();
        let outside = port.outside().port();
        assert_ne!(outside, 4000);
        assert_eq!(router.leads(outside), Some("127.0.0.1:4000".parse().unwrap()));
        assert_eq!(router.leads(4000), Some("192.168.1.9:4000".parse().unwrap()));
        if !mute {
            router.lead(outside, "192.168.1.9:77");
            let why = port.renew().await.unwrap_err();
            assert!(why.contains("another host's"), "{why}");
            port.release().await.unwrap();
            assert_eq!(
                router.leads(outside),
                Some("192.168.1.9:77".parse().unwrap()),
                "what is another host's is not given back"
            );
        }
    }
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
async fn what_a_router_says_has_bounds() {
    let refused = async |manners: Manners| Router::new(manners).await.ask(4000).await.unwrap_err();
    let endless = Manners {
        endless: true,
        ..Manners::default()
    };
    let why = refused(endless).await;
    assert!(why.contains("cannot be read"), "{why}");
    let for_ever = Manners {
        for_ever: true,
        ..Manners::default()
    };
    let why = refused(for_ever).await;
    assert!(why.contains("for ever"), "{why}");
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
    let why = Port::ask(at, PortProtocol::Udp, inside, LIFETIME)
        .await
        .unwrap_err();
    assert!(why.contains("search"), "{why}");
}
