//! The texts between this host and a router: SSDP, the router's description, and SOAP. Everything that comes is a
//! stranger's word.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use hyper::Uri;
use quick_xml::Reader;
use quick_xml::events::Event;

use super::PortProtocol;

/// Services that lead ports, and the better ones first.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// How many services of a router are tried.
const MAX_CONTROLS: usize = 4;

/// How deep a document may nest; a router's description nests nine elements.
const MAX_DEPTH: usize = 32;

/// How much of a router's own words is told to a person, in characters.
const MAX_WORDS: usize = 100;

/// Asks a host, or all, whether it is a router.
pub(super) fn search(whom: Ipv4Addr) -> String {
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {whom}:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
         ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
    )
}

/// A document or a service of the router: whatever it names elsewhere is not fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) at: SocketAddrV4,
    pub(super) path: String,
}

impl Url {
    /// What `text` names, seen from this place.
    fn join(&self, text: &str) -> Result<Self, String> {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        if !scheme.is_some_and(|scheme| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
            let path = if text.starts_with('/') {
                text.to_owned()
            } else {
                let (base, _) = self.path.split_once('?').unwrap_or((&self.path, ""));
                let (folder, _) = base.rsplit_once('/').unwrap_or_default();
                format!("{folder}/{text}")
            };
            return Ok(Self { at: self.at, path });
        }
        let uri: Uri = text
            .parse()
            .map_err(|_| format!("it names no address: '{}'", words(text)))?;
        let authority = uri
            .authority()
            .ok_or_else(|| format!("it names no host: '{}'", words(text)))?;
        if uri.scheme_str() != Some("http") {
            return Err(format!("it names no http:// address: '{}'", words(text)));
        }
        let port = authority.port_u16().unwrap_or(80);
        if authority.host().parse() != Ok(*self.at.ip()) {
            return Err(format!("it names another host, '{}'", words(authority.host())));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            at: SocketAddrV4::new(*self.at.ip(), port),
            path: path.to_owned(),
        })
    }
}

/// Where a router's answer to a search says that its description is. Not all routers end it as HTTP demands.
pub(super) fn found(answer: &[u8], router: Ipv4Addr) -> Result<Url, String> {
    let text = String::from_utf8_lossy(answer);
    let mut lines = text.lines();
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.") || status.split_whitespace().nth(1) != Some("200") {
        return Err("its answer to a search is none".to_owned());
    }
    let location = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("location"))
        .map(|(_, location)| location)
        .ok_or("its answer to a search names no description")?;
    let somewhere = Url {
        at: SocketAddrV4::new(router, 80),
        path: "/".to_owned(),
    };
    somewhere.join(location.trim())
}

/// A service of a router that leads ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) url: Url,
    pub(super) service: &'static str,
}

/// The services of a router's description that lead ports, the better ones first.
pub(super) fn controls(description: &[u8], from: &Url) -> Result<Vec<Control>, String> {
    let mut base = from.clone();
    let (mut service, mut control) = (None, None);
    let mut found: Vec<(usize, Result<Url, String>)> = Vec::new();
    read(description, |path, text| match path {
        [.., "URLBase"] => base = from.join(text).unwrap_or_else(|_| from.clone()),
        [.., "service"] => {
            if let (Some(rank), Some(control)) = (service.take(), control.take()) {
                let control: String = control;
                found.push((rank, base.join(&control)));
            }
            (service, control) = (None, None);
        }
        [.., "service", "serviceType"] => {
            service = SERVICES.iter().position(|known| *known == text);
        }
        [.., "service", "controlURL"] => control = Some(text.to_owned()),
        _ => {}
    })?;
    found.sort_by_key(|(rank, _)| *rank);
    let mut why = "its description has no service that leads ports".to_owned();
    let mut usable = Vec::new();
    for (rank, place) in found {
        match place {
            Ok(url) => usable.push(Control {
                url,
                service: SERVICES[rank],
            }),
            Err(wrong) => why = wrong,
        }
    }
    usable.truncate(MAX_CONTROLS);
    if usable.is_empty() { Err(why) } else { Ok(usable) }
}

/// A question to a service.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action {
    ExternalIp,
    /// To whom a port leads.
    Entry {
        protocol: PortProtocol,
        outside: u16,
    },
    Add {
        protocol: PortProtocol,
        outside: u16,
        inside: SocketAddrV4,
        seconds: u32,
    },
    Remove {
        protocol: PortProtocol,
        outside: u16,
    },
}

/// What a person reads in the router's list.
const DESCRIPTION: &str = "aerie";

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::ExternalIp => "GetExternalIPAddress",
            Self::Entry { .. } => "GetSpecificPortMappingEntry",
            Self::Add { .. } => "AddPortMapping",
            Self::Remove { .. } => "DeletePortMapping",
        }
    }

    /// The value of `SOAPACTION`.
    pub(super) fn header(self, service: &str) -> String {
        format!("\"{service}#{}\"", self.name())
    }

    /// The request. Arguments are in the order of the service's definition, which some routers insist on.
    pub(super) fn body(self, service: &str) -> String {
        let arguments = match self {
            Self::ExternalIp => String::new(),
            Self::Entry { protocol, outside } | Self::Remove { protocol, outside } => port(protocol, outside),
            Self::Add {
                protocol,
                outside,
                inside,
                seconds,
            } => {
                let (ip, inside) = (inside.ip(), inside.port());
                format!(
                    "{}<NewInternalPort>{inside}</NewInternalPort><NewInternalClient>{ip}</NewInternalClient>\
                     <NewEnabled>1</NewEnabled>\
                     <NewPortMappingDescription>{DESCRIPTION}</NewPortMappingDescription>\
                     <NewLeaseDuration>{seconds}</NewLeaseDuration>",
                    port(protocol, outside)
                )
            }
        };
        let name = self.name();
        format!(
            "<?xml version=\"1.0\"?>\r\n\
             <s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{name} xmlns:u=\"{service}\">{arguments}</u:{name}></s:Body></s:Envelope>\r\n"
        )
    }
}

fn port(protocol: PortProtocol, outside: u16) -> String {
    format!(
        "<NewRemoteHost></NewRemoteHost><NewExternalPort>{outside}</NewExternalPort>\
         <NewProtocol>{protocol}</NewProtocol>"
    )
}

/// To whom a port leads, as a router says it: some say a name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) ip: String,
    pub(super) port: Option<u16>,
}

/// A service's answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) external_ip: Option<IpAddr>,
    /// To whom the port in question leads.
    pub(super) client: Option<Client>,
}

/// A service's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// UPnP's number of it, where the router gives one.
    pub(super) code: Option<u32>,
    pub(super) says: String,
}

/// Reads an answer: `Err` is why it is none, and the inner one the router's own refusal. The status of a refusal is
/// another one, too.
pub(super) fn answer(text: &[u8], is_refusal: bool) -> Result<Result<Answer, Fault>, String> {
    let mut answer = Answer::default();
    let (mut is_fault, mut code, mut says) = (is_refusal, None, String::new());
    let (mut client, mut inside) = (None, None);
    let mut is_one = false;
    read(text, |path, text| match path {
        [.., "errorCode"] => (is_fault, code) = (true, text.parse().ok()),
        [.., "Fault"] => is_fault = true,
        [.., "errorDescription"] => says = words(text),
        [.., "NewExternalIPAddress"] => answer.external_ip = text.parse().ok(),
        [.., "NewInternalClient"] => client = Some(words(text)),
        [.., "NewInternalPort"] => inside = text.parse().ok(),
        ["Envelope", "Body"] => is_one = true,
        _ => {}
    })?;
    if is_fault {
        return Ok(Err(Fault { code, says }));
    }
    if !is_one {
        return Err("its answer is none".to_owned());
    }
    answer.client = client
        .filter(|ip| !ip.is_empty())
        .map(|ip| Client { ip, port: inside });
    Ok(Ok(answer))
}

/// Reads a document: with the end of each element come the names from the root to it, without their prefixes, and the
/// text within it.
fn read(document: &[u8], mut element: impl FnMut(&[&str], &str)) -> Result<(), String> {
    let wrong = |what: &str| format!("what it sends is no document: {}", words(what));
    // Names of devices are in any encoding; what is looked for is ASCII.
    let document = String::from_utf8_lossy(document);
    let mut reader = Reader::from_str(&document);
    reader.config_mut().allow_dangling_amp = true;
    let mut path: Vec<String> = Vec::new();
    let mut text = String::new();
    let mut end = |path: &mut Vec<String>, text: &mut String| {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        element(&names, text.trim());
        path.pop();
        text.clear();
    };
    let name = |name: quick_xml::name::QName<'_>| name.local_name().as_ref().to_owned();
    loop {
        match reader.read_event().map_err(|error| wrong(&error.to_string()))? {
            Event::Start(start) => {
                if path.len() >= MAX_DEPTH {
                    return Err(wrong("it nests too deep"));
                }
                path.push(name(start.name()));
                text.clear();
            }
            Event::Empty(empty) => {
                path.push(name(empty.name()));
                text.clear();
                end(&mut path, &mut text);
            }
            Event::End(_) => end(&mut path, &mut text),
            Event::Text(part) => text.push_str(&part.xml10_content()),
            Event::CData(part) => text.push_str(&part.xml10_content()),
            Event::GeneralRef(reference) => match reference.resolve_char_ref() {
                Ok(Some(char)) => text.push(char),
                // Others than those that every document has are left out.
                Ok(None) => {
                    let meant = quick_xml::escape::resolve_predefined_entity(&reference.xml10_content());
                    text.push_str(meant.unwrap_or_default());
                }
                Err(error) => return Err(wrong(&error.to_string())),
            },
            Event::DocType(_) => return Err(wrong("it has a document type")),
            Event::Eof if path.is_empty() => return Ok(()),
            Event::Eof => return Err(wrong("it breaks off")),
            _ => {}
        }
    }
}

/// The beginning of a stranger's words, fit to be printed.
fn words(text: &str) -> String {
    text.chars()
        .filter(|char| !char.is_control())
        .take(MAX_WORDS)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

    fn here() -> Url {
        Url {
            at: SocketAddrV4::new(ROUTER, 5000),
            path: "/a/rootDesc.xml".to_owned(),
        }
    }

    fn location(of: &str) -> Result<Url, String> {
        let answer = format!("HTTP/1.1 200 OK\r\nST: x\r\nLocation: {of}\r\nEXT:\r\n\r\n");
        found(answer.as_bytes(), ROUTER)
    }

    #[test]
    fn a_description_is_the_routers_own() {
        let place = location("http://192.168.1.1:5000/rootDesc.xml?a=b").unwrap();
        assert_eq!(place.at, SocketAddrV4::new(ROUTER, 5000));
        assert_eq!(place.path, "/rootDesc.xml?a=b");
        assert_eq!(location("http://192.168.1.1/x").unwrap().at.port(), 80);
        for elsewhere in [
            "http://192.168.1.2:5000/rootDesc.xml",
            "http://user@192.168.1.2/",
            "https://192.168.1.1/x",
            "http://router/x",
            "http://[::1]/x",
            "file:///etc/passwd",
        ] {
            let place = location(elsewhere);
            assert!(place.is_err(), "{elsewhere}: {place:?}");
        }
        assert!(
            location("http://192.168.1.2/")
                .unwrap_err()
                .contains("another host")
        );
        assert!(
            found(
                b"HTTP/1.1 404 No\r\nLocation: http://192.168.1.1/\r\n\r\n",
                ROUTER
            )
            .is_err()
        );
        assert!(found(b"HTTP/1.1 200 OK\r\nLOCATION : http://192.168.1.1/", ROUTER).is_ok());
        assert!(found(b"NOTIFY * HTTP/1.1\r\n\r\n", ROUTER).is_err());
    }

    fn described(services: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device>\
             <deviceList><device><serviceList>{services}</serviceList></device></deviceList></device></root>"
        )
    }

    fn service(kind: &str, control: &str) -> String {
        format!(
            "<service><serviceType>urn:schemas-upnp-org:service:{kind}</serviceType>\
             <controlURL>{control}</controlURL><SCPDURL>/x.xml</SCPDURL></service>"
        )
    }

    #[test]
    fn the_services_that_lead_ports_are_found_and_the_better_ones_come_first() {
        let text = described(
            &[
                service("Layer3Forwarding:1", "/l3f"),
                service("WANPPPConnection:1", "ppp"),
                service("WANIPConnection:2", "/ip?x=1&amp;y=2"),
                service("WANIPConnection:1", "http://192.168.1.9/steal"),
            ]
            .concat(),
        );
        let found = controls(text.as_bytes(), &here()).unwrap();
        let paths: Vec<_> = found.iter().map(|control| control.url.path.as_str()).collect();
        assert_eq!(paths, ["/ip?x=1&y=2", "/a/ppp"]);
        assert!(found[0].service.ends_with("WANIPConnection:2"));

        let elsewhere = described(&service("WANIPConnection:1", "http://192.168.1.9/steal"));
        let why = controls(elsewhere.as_bytes(), &here()).unwrap_err();
        assert!(why.contains("another host"), "{why}");
        let none = controls(described("").as_bytes(), &here()).unwrap_err();
        assert!(none.contains("no service"), "{none}");
    }

    #[test]
    fn hostile_documents_are_refused() {
        let deep = "<a>".repeat(MAX_DEPTH + 1);
        let bomb = "<!DOCTYPE r [<!ENTITY a \"aaaa\">]><root>&a;</root>";
        let loud = format!("<a></{}\u{1b}[31m>", "b".repeat(10_000));
        for text in [deep.as_str(), bomb, &loud, "<root>", "<a></b>", "\u{0}"] {
            let why = controls(text.as_bytes(), &here()).unwrap_err();
            assert!(why.len() < 200 && !why.contains(char::is_control), "{why}");
        }
    }

    #[test]
    fn odd_descriptions_are_read() {
        let from = Url {
            path: "/x/d.xml?in=/y/z".to_owned(),
            ..here()
        };
        let text = described(&service("WANIPConnection:1", "ctl?to=http://x/"));
        let named = text.replacen(
            "<device>",
            "<device><friendlyName>A&B &nbsp;\u{e9}</friendlyName>",
            1,
        );
        let latin1: Vec<u8> = named
            .chars()
            .map(|char| u8::try_from(u32::from(char)).unwrap())
            .collect();
        let found = controls(&latin1, &from).unwrap();
        assert_eq!(found[0].url.path, "/x/ctl?to=http://x/");

        let base = "<URLBase>http://192.168.1.1:99/b/</URLBase><device>";
        let found = controls(text.replacen("<device>", base, 1).as_bytes(), &from).unwrap();
        assert_eq!(found[0].url.at.port(), 99);
        assert_eq!(found[0].url.path, "/b/ctl?to=http://x/");
    }

    #[test]
    fn answers_and_refusals_are_told_apart() {
        let envelope = |body: &str| format!("<s:Envelope xmlns:s=\"x\"><s:Body>{body}</s:Body></s:Envelope>");
        let ip = "<u:R xmlns:u=\"y\"><NewExternalIPAddress>203.0.113.7</NewExternalIPAddress></u:R>";
        let said = answer(envelope(ip).as_bytes(), false).unwrap().unwrap();
        assert_eq!(said.external_ip, Some(Ipv4Addr::new(203, 0, 113, 7).into()));

        let entry =
            "<NewInternalPort>4000</NewInternalPort><NewInternalClient>192.168.1.5</NewInternalClient>";
        let said = answer(envelope(entry).as_bytes(), false).unwrap().unwrap();
        let client = Client {
            ip: "192.168.1.5".to_owned(),
            port: Some(4000),
        };
        assert_eq!(said.client, Some(client));

        let fault = "<s:Fault><detail><UPnPError><errorCode>718</errorCode>\
                     <errorDescription>Conflict\u{1b}[31m</errorDescription></UPnPError></detail></s:Fault>";
        let fault = answer(envelope(fault).as_bytes(), true).unwrap().unwrap_err();
        assert_eq!((fault.code, fault.says.as_str()), (Some(718), "Conflict[31m"));
        let mute = "<s:Fault><faultcode>s:Client</faultcode></s:Fault>";
        for (text, is_refusal) in [(mute, false), (mute, true), ("", true)] {
            let fault = answer(envelope(text).as_bytes(), is_refusal)
                .unwrap()
                .unwrap_err();
            assert_eq!(fault.code, None);
        }
        assert!(answer(b"<html><body>Log in</body></html>", false).is_err());
        assert!(answer(b"", false).is_err());
    }

    #[test]
    fn a_request_names_its_arguments_in_the_services_order() {
        let add = Action::Add {
            protocol: PortProtocol::Udp,
            outside: 4001,
            inside: "192.168.1.5:4000".parse().unwrap(),
            seconds: 7200,
        };
        let body = add.body(SERVICES[1]);
        let mut names = Vec::new();
        read(body.as_bytes(), |path, text| {
            names.push(format!("{}={text}", path.last().unwrap_or(&"")));
        })
        .unwrap();
        assert_eq!(
            names[..8],
            [
                "NewRemoteHost=",
                "NewExternalPort=4001",
                "NewProtocol=UDP",
                "NewInternalPort=4000",
                "NewInternalClient=192.168.1.5",
                "NewEnabled=1",
                "NewPortMappingDescription=aerie",
                "NewLeaseDuration=7200",
            ]
        );
    }

    proptest! {
        #[test]
        fn nothing_that_comes_is_too_odd(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            text in "[<>/a-zA-Z&;!\\[\\]\" =:\\-]{0,200}",
            named in "(http://|https://|//|/|)([a-z0-9.@:/?#%-]{0,30}|192.168.1.[12][:@/.a-z0-9]{0,9})",
            base in "(http://|//|)(192.168.1.[12]|[a-z0-9.@:]{0,9})[:/a-z0-9]{0,9}",
        ) {
            let located = format!("HTTP/1.1 200 OK\r\nLocation: {named}\r\n\r\n");
            let served = described(&service("WANIPConnection:1", &named)).replacen(
                "<device>",
                &format!("<URLBase>{base}</URLBase><device>"),
                1,
            );
            for bytes in [bytes.as_slice(), text.as_bytes(), located.as_bytes(), served.as_bytes()] {
                if let Ok(place) = found(bytes, ROUTER) {
                    prop_assert_eq!(*place.at.ip(), ROUTER);
                }
                for control in controls(bytes, &here()).unwrap_or_default() {
                    prop_assert_eq!(*control.url.at.ip(), ROUTER);
                }
                let _ = answer(bytes, false);
            }
        }
    }
}
