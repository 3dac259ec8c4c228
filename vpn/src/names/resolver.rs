//! A small authoritative name server for one grid's domain, by hickory-server.
//!
//! It answers A, AAAA and PTR questions of the grid and refuses all others, so that it can stand beside any resolver
//! of the host. Answers live a few seconds only: a lease may change hands.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aerie_types::{GridName, VirtualAddr, VirtualNet};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::rdata::{A, AAAA, PTR};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;

use super::NameSource;
use super::query::{self, Question};
use crate::Error;

/// Seconds that an answer may be kept.
const TTL: u32 = 30;
/// A question whose answer takes longer fails: programs ask again after 5 s.
const PATIENCE: Duration = Duration::from_secs(4);
/// Questions looked up at once. A host asks a few; a flood must not flood the register.
const MAX_LOOKUPS: usize = 64;
/// A connection of TCP may be silent so long.
const TCP_TIMEOUT: Duration = Duration::from_secs(5);
const TCP_RESPONSES: usize = 16;

/// A running resolver; it ends when it is dropped.
pub struct Resolver {
    server: Server<Handler>,
    addr: SocketAddr,
}

impl Resolver {
    /// Listens on an address of this host, UDP and TCP, and answers for the grid.
    ///
    /// # Errors
    /// [`Error::Resolver`] when the address is taken or not this host's.
    pub async fn bind(
        addr: SocketAddr,
        grid: GridName,
        net: VirtualNet,
        source: Arc<dyn NameSource>,
    ) -> Result<Self, Error> {
        let fail = |source| Error::Resolver { addr, source };
        let udp = UdpSocket::bind(addr).await.map_err(fail)?;
        let bound = udp.local_addr().map_err(fail)?;
        let tcp = TcpListener::bind(bound).await.map_err(fail)?;
        let lookups = Semaphore::new(MAX_LOOKUPS);
        let mut server = Server::new(Handler {
            grid,
            net,
            source,
            lookups,
        });
        server.register_socket(udp);
        server.register_listener(tcp, TCP_TIMEOUT, TCP_RESPONSES);
        Ok(Self { server, addr: bound })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it, once what is being answered is answered.
    pub async fn shutdown(mut self) {
        if let Err(error) = self.server.shutdown_gracefully().await {
            tracing::debug!(%error, "the resolver ended with an error");
        }
    }
}

struct Handler {
    grid: GridName,
    net: VirtualNet,
    source: Arc<dyn NameSource>,
    lookups: Semaphore,
}

/// What is said to a question.
enum Reply {
    Found(Vec<RData>),
    /// The name exists, but not with this type.
    Empty,
    Refused(ResponseCode),
}

impl Handler {
    async fn answer(&self, name: &str, kind: RecordType) -> Reply {
        let question = query::read(name, &self.grid, self.net);
        let found = match question {
            Question::Foreign => return Reply::Refused(ResponseCode::Refused),
            Question::Nobody => return Reply::Refused(ResponseCode::NXDomain),
            Question::Domain => return Reply::Empty,
            Question::Node(node) => {
                let addr = self.look_up(self.source.by_name(node)).await;
                addr.map(|addr| addr.map(|addr| self.both(addr)))
            }
            Question::Appliance(addr) => {
                let holder = self.look_up(self.source.by_addr(addr)).await;
                holder.map(|holder| holder.map(|_| addr_data(addr).into_iter().collect()))
            }
            Question::Pointer(addr) => {
                let holder = self.look_up(self.source.by_addr(addr)).await;
                holder.map(|holder| {
                    let name = Name::from_ascii(format!("{}.", holder?.fqdn(&self.grid))).ok()?;
                    Some(vec![RData::PTR(PTR(name))])
                })
            }
        };
        let mut data = match found {
            Err(code) => return Reply::Refused(code),
            Ok(None) => return Reply::Refused(ResponseCode::NXDomain),
            Ok(Some(data)) => data,
        };
        data.retain(|data| kind == data.record_type() || kind == RecordType::ANY);
        if data.is_empty() {
            Reply::Empty
        } else {
            Reply::Found(data)
        }
    }

    /// A node's addresses of both families.
    fn both(&self, addr: VirtualAddr) -> Vec<RData> {
        let v6 = self.net.ula.addr(addr).map(|v6| RData::AAAA(AAAA(v6)));
        addr_data(addr).into_iter().chain(v6).collect()
    }

    async fn look_up<T>(&self, look_up: impl Future<Output = Option<T>>) -> Result<Option<T>, ResponseCode> {
        let work = async {
            // Never closed; if it were, the question would fail as it should.
            let _permit = self.lookups.acquire().await.ok();
            look_up.await
        };
        tokio::time::timeout(PATIENCE, work)
            .await
            .map_err(|_| ResponseCode::ServFail)
    }
}

fn addr_data(addr: VirtualAddr) -> Option<RData> {
    addr.v4().map(|v4| RData::A(A(v4)))
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut responder: R,
    ) -> ResponseInfo {
        let builder = MessageResponseBuilder::from_message_request(request);
        let asked = request.metadata;
        let mut metadata = Metadata::response_from_request(&asked);
        metadata.authoritative = true;
        let info = match request.request_info() {
            Ok(info) if asked.op_code == OpCode::Query && asked.message_type == MessageType::Query => info,
            _ => {
                let refusal = builder.error_msg(&asked, ResponseCode::NotImp);
                return sent(responder.send_response(refusal).await, metadata);
            }
        };
        let name = info.query.original().name().clone();
        let kind = info.query.query_type();
        let records: Vec<Record> = match self.answer(&name.to_ascii(), kind).await {
            Reply::Found(found) => {
                let record = |data| Record::from_rdata(name.clone(), TTL, data);
                found.into_iter().map(record).collect()
            }
            Reply::Empty => Vec::new(),
            Reply::Refused(code) => {
                metadata.response_code = code;
                metadata.authoritative = code == ResponseCode::NXDomain;
                Vec::new()
            }
        };
        let response = builder.build(metadata, records.iter(), [], [], []);
        sent(responder.send_response(response).await, metadata)
    }
}

fn sent<E: std::fmt::Display>(result: Result<ResponseInfo, E>, mut metadata: Metadata) -> ResponseInfo {
    result.unwrap_or_else(|error| {
        tracing::debug!(%error, "an answer was not sent");
        metadata.response_code = ResponseCode::ServFail;
        ResponseInfo::from(Header {
            metadata,
            counts: HeaderCounts::default(),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use aerie_types::{GridId, NodeName};
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use hickory_server::proto::op::{Message, Query};

    use super::*;

    struct OneNode;

    const HELD: VirtualAddr = VirtualAddr(std::net::IpAddr::V4(Ipv4Addr::new(100, 101, 3, 45)));

    impl NameSource for OneNode {
        fn by_name(&self, name: NodeName) -> BoxFuture<'_, Option<VirtualAddr>> {
            async move { (name.as_str() == "w1").then_some(HELD) }.boxed()
        }

        fn by_addr(&self, addr: VirtualAddr) -> BoxFuture<'_, Option<NodeName>> {
            async move { (addr == HELD).then(|| "w1".parse().unwrap()) }.boxed()
        }
    }

    async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&message.to_vec().unwrap(), server).await.unwrap();
        let mut buffer = [0; 1500];
        let len = socket.recv(&mut buffer).await.unwrap();
        let answer = Message::from_vec(&buffer[..len]).unwrap();
        (
            answer.metadata.response_code,
            answer
                .answers
                .iter()
                .map(|record| record.data.to_string())
                .collect(),
        )
    }

    #[tokio::test]
    async fn names_and_addresses_are_answered_both_ways_and_others_are_refused() {
        let resolver = Resolver::bind(
            "127.0.0.1:0".parse().unwrap(),
            "lab".parse().unwrap(),
            VirtualNet::new(GridId([9; 16]), "100.96.0.0/11".parse().unwrap()),
            Arc::new(OneNode),
        )
        .await
        .unwrap();
        let at = resolver.local_addr();
        let found = (ResponseCode::NoError, vec!["100.101.3.45".to_owned()]);
        assert_eq!(ask(at, "w1.lab.grid.", RecordType::A).await, found);
        assert_eq!(ask(at, "C101003045.lab.grid.", RecordType::A).await, found);
        assert_eq!(
            ask(at, "45.3.101.100.in-addr.arpa.", RecordType::PTR).await,
            (ResponseCode::NoError, vec!["w1.lab.grid.".to_owned()])
        );
        let v6 = "fd5d:9256:40dc::6465:32d".to_owned();
        assert_eq!(
            ask(at, "w1.lab.grid.", RecordType::AAAA).await,
            (ResponseCode::NoError, vec![v6.clone()])
        );
        assert_eq!(
            ask(at, "w1.lab.grid.", RecordType::ANY).await,
            (ResponseCode::NoError, vec!["100.101.3.45".to_owned(), v6])
        );
        // It spells an IPv4 address.
        assert_eq!(
            ask(at, "C101003045.lab.grid.", RecordType::AAAA).await,
            (ResponseCode::NoError, vec![])
        );
        assert_eq!(
            ask(at, "w1.lab.grid.", RecordType::MX).await,
            (ResponseCode::NoError, vec![])
        );
        let reverse = |last: char| {
            format!("{last}.2.3.0.5.6.4.6.0.0.0.0.0.0.0.0.0.0.0.0.c.d.0.4.6.5.2.9.d.5.d.f.ip6.arpa.")
        };
        assert_eq!(
            ask(at, &reverse('d'), RecordType::PTR).await,
            (ResponseCode::NoError, vec!["w1.lab.grid.".to_owned()])
        );
        assert_eq!(
            ask(at, &reverse('e'), RecordType::PTR).await.0,
            ResponseCode::NXDomain
        );
        assert_eq!(
            ask(at, "w2.lab.grid.", RecordType::AAAA).await.0,
            ResponseCode::NXDomain
        );
        assert_eq!(
            ask(at, "w2.lab.grid.", RecordType::A).await.0,
            ResponseCode::NXDomain
        );
        assert_eq!(
            ask(at, "46.3.101.100.in-addr.arpa.", RecordType::PTR).await.0,
            ResponseCode::NXDomain
        );
        assert_eq!(
            ask(at, "example.org.", RecordType::A).await.0,
            ResponseCode::Refused
        );
        resolver.shutdown().await;
    }
}
