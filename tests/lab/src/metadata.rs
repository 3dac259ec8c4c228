//! A cloud's metadata service as EC2 has it (IMDSv2): a session token first, then user-data and a few facts.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket;

use crate::netns::NetNs;

/// Where clouds answer.
const ADDR: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The longest request head that is read, in bytes.
const MAX_HEAD: u64 = 8192;

/// What a client has to show with each request after the first.
const TOKEN: &str = "bGFiLXNlc3Npb24tdG9rZW4=";

/// A running service. It ends when dropped.
#[derive(Debug)]
pub struct Metadata {
    shared: Arc<Shared>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    user_data: Mutex<BTreeMap<IpAddr, Vec<u8>>>,
    served: AtomicUsize,
    stopped: AtomicBool,
}

impl Metadata {
    /// Listens in the namespace of the router of the hosts to serve.
    pub(crate) fn start(router: NetNs) -> Result<Self> {
        router.ip([format!("addr replace {ADDR}/32 dev lo")])?;
        let listener = router
            .enter(|| TcpListener::bind((ADDR, 80)).context("cannot listen at the metadata address"))?;
        let shared = Arc::new(Shared::default());
        let thread = {
            let (shared, listener) = (Arc::clone(&shared), listener.try_clone()?);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if shared.stopped.load(Ordering::SeqCst) {
                        break;
                    }
                    // A client that breaks off is its own affair.
                    if let Ok(stream) = stream {
                        let _ = serve(&shared, &stream);
                    }
                }
            })
        };
        Ok(Self {
            shared,
            listener,
            thread: Some(thread),
        })
    }

    /// Gives the host with this address its user-data.
    pub fn set_user_data(&self, host: Ipv4Addr, bytes: Vec<u8>) {
        self.shared.user_data().insert(host.into(), bytes);
    }

    /// How often user-data was served.
    #[must_use]
    pub fn served(&self) -> usize {
        self.shared.served.load(Ordering::SeqCst)
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn user_data(&self) -> std::sync::MutexGuard<'_, BTreeMap<IpAddr, Vec<u8>>> {
        self.user_data.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is read of a request.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    token: Option<String>,
    ttl: Option<u32>,
}

impl Request {
    fn parse(head: impl BufRead) -> Result<Self> {
        let mut lines = head.lines();
        let first = lines.next().context("an empty request")??;
        let mut words = first.split_whitespace().map(str::to_owned);
        let mut request = Self {
            method: words.next().unwrap_or_default(),
            path: words.next().unwrap_or_default(),
            ..Self::default()
        };
        for line in lines {
            let line = line?;
            let Some((key, value)) = line.split_once(':') else {
                break;
            };
            match key.to_ascii_lowercase().as_str() {
                "x-aws-ec2-metadata-token" => request.token = Some(value.trim().to_owned()),
                "x-aws-ec2-metadata-token-ttl-seconds" => request.ttl = value.trim().parse().ok(),
                _ => (),
            }
        }
        Ok(request)
    }
}

fn serve(shared: &Shared, stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let client = stream.peer_addr()?.ip();
    let request = Request::parse(BufReader::new(stream.take(MAX_HEAD)))?;
    let user_data = shared.user_data().get(&client).cloned();
    let (status, body) = answer(&request, client, user_data);
    if request.path.ends_with("/user-data") && status == "200 OK" {
        shared.served.fetch_add(1, Ordering::SeqCst);
    }
    let mut out = stream;
    write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    out.write_all(&body)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(())
}

fn answer(request: &Request, client: IpAddr, user_data: Option<Vec<u8>>) -> (&'static str, Vec<u8>) {
    if request.path == "/latest/api/token" {
        return match (request.method.as_str(), request.ttl) {
            ("PUT", Some(1..=21_600)) => ("200 OK", TOKEN.into()),
            ("PUT", _) => ("400 Bad Request", Vec::new()),
            _ => ("405 Method Not Allowed", Vec::new()),
        };
    }
    if request.token.as_deref() != Some(TOKEN) {
        return ("401 Unauthorized", Vec::new());
    }
    let instance = || {
        format!(
            "i-{:017x}",
            client
                .to_string()
                .bytes()
                .fold(0u64, |sum, b| sum * 31 + u64::from(b))
        )
    };
    match request.path.trim_start_matches("/latest/") {
        "user-data" => user_data.map_or(("404 Not Found", Vec::new()), |bytes| ("200 OK", bytes)),
        "meta-data/instance-id" => ("200 OK", instance().into()),
        "meta-data/local-ipv4" => ("200 OK", client.to_string().into()),
        _ => ("404 Not Found", Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 10, 2));

    #[test]
    fn user_data_is_given_only_for_a_session_token() {
        let without = Request::parse(&b"GET /latest/user-data HTTP/1.1\r\n\r\n"[..]).unwrap();
        assert_eq!(
            answer(&without, CLIENT, Some(b"blob".into())).0,
            "401 Unauthorized"
        );
        let head = format!("GET /latest/user-data HTTP/1.1\r\nX-aws-ec2-metadata-token: {TOKEN}\r\n\r\n");
        let with = Request::parse(head.as_bytes()).unwrap();
        assert_eq!(
            answer(&with, CLIENT, Some(b"blob".into())),
            ("200 OK", b"blob".to_vec())
        );
    }

    #[test]
    fn a_session_token_has_to_be_put_with_a_time_to_live() {
        let get = Request::parse(&b"GET /latest/api/token HTTP/1.1\r\n\r\n"[..]).unwrap();
        assert_eq!(answer(&get, CLIENT, None).0, "405 Method Not Allowed");
        let put = b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
        assert_eq!(
            answer(&Request::parse(&put[..]).unwrap(), CLIENT, None),
            ("200 OK", TOKEN.into())
        );
    }
}
