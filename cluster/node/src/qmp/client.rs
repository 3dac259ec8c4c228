//! A connection to one QEMU.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use super::QmpError;
use super::wire::{Event, RunState, Session};

/// How much is read at a time in bytes: a few lines.
const READ: usize = 16 * 1024;

/// A connection that takes commands. One at a time: whoever has it waits for its answer. Events that come meanwhile
/// are kept, within a limit.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    session: Session,
    buffer: Vec<u8>,
    limit: Duration,
}

impl Client {
    /// Connects, and waits for the greeting. `greeting` is how long that may take, `limit` each command afterwards.
    pub(crate) async fn connect(path: &Path, greeting: Duration, limit: Duration) -> Result<Self, QmpError> {
        const COMMAND: &str = "connect";
        let until = Instant::now() + greeting;
        let stream = timeout_at(until, UnixStream::connect(path))
            .await
            .map_err(|_| silent(COMMAND, greeting))?
            .map_err(gone(COMMAND))?;
        let mut client = Self {
            stream,
            session: Session::default(),
            buffer: vec![0; READ],
            limit,
        };
        timeout_at(until, async {
            while !client.session.greeted() {
                client.read(COMMAND).await?;
            }
            Ok(())
        })
        .await
        .map_err(|_| silent(COMMAND, greeting))??;
        client.run("qmp_capabilities", None).await?;
        Ok(client)
    }

    /// Gives a command and waits for its answer.
    pub(crate) async fn run(
        &mut self,
        command: &'static str,
        arguments: Option<Value>,
    ) -> Result<Value, QmpError> {
        self.run_with(command, arguments, None).await
    }

    /// As [`Client::run`], with a typed answer.
    pub(crate) async fn ask<T: DeserializeOwned>(&mut self, command: &'static str) -> Result<T, QmpError> {
        let value = self.run(command, None).await?;
        serde_json::from_value(value).map_err(|_| QmpError::Garbage("an answer of another form"))
    }

    /// Hands a file over, which QEMU then knows by this name.
    pub(crate) async fn hand_over(&mut self, name: &str, file: OwnedFd) -> Result<(), QmpError> {
        self.run_with("getfd", Some(json!({ "fdname": name })), Some(file))
            .await?;
        Ok(())
    }

    /// Forgets what was said of earlier migrations, so that it is not taken for the next one's.
    pub(crate) fn forget_migrations(&mut self) {
        self.session.forget_migrations();
    }

    /// What the machine is doing.
    pub(crate) async fn run_state(&mut self) -> Result<RunState, QmpError> {
        let value = self.run("query-status", None).await?;
        serde_json::from_value(value["status"].clone()).map_err(|_| QmpError::Garbage("no run state"))
    }

    /// The next event. Nothing is lost when this is given up.
    pub(crate) async fn event(&mut self) -> Result<Event, QmpError> {
        loop {
            if let Some(event) = self.session.event() {
                return Ok(event);
            }
            self.read("events").await?;
        }
    }

    async fn run_with(
        &mut self,
        command: &'static str,
        arguments: Option<Value>,
        file: Option<OwnedFd>,
    ) -> Result<Value, QmpError> {
        let (id, line) = self.session.request(command, arguments.as_ref());
        let limit = self.limit;
        let answer = async {
            self.write(&line, file).await.map_err(gone(command))?;
            loop {
                if let Some(answer) = self.session.answer(id) {
                    return answer.map_err(|why| QmpError::Refused { command, why });
                }
                self.read(command).await?;
            }
        };
        timeout_at(Instant::now() + limit, answer)
            .await
            .map_err(|_| silent(command, limit))?
    }

    async fn write(&mut self, line: &[u8], file: Option<OwnedFd>) -> io::Result<()> {
        let mut rest = line;
        let mut file = file;
        while !rest.is_empty() {
            self.stream.writable().await?;
            let sent = self
                .stream
                .try_io(Interest::WRITABLE, || send(&self.stream, rest, file.as_ref()));
            match sent {
                Ok(sent) => {
                    rest = &rest[sent..];
                    // It went with the first bytes.
                    file = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn read(&mut self, command: &'static str) -> Result<(), QmpError> {
        let read = self.stream.read(&mut self.buffer).await.map_err(gone(command))?;
        if read == 0 {
            return Err(gone(command)(io::ErrorKind::UnexpectedEof.into()));
        }
        self.session.receive(&self.buffer[..read])
    }
}

fn send(socket: &UnixStream, bytes: &[u8], file: Option<&OwnedFd>) -> io::Result<usize> {
    let slices = [IoSlice::new(bytes)];
    let files: Vec<_> = file.iter().map(|file| file.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&files)];
    let control = if files.is_empty() { &[][..] } else { &rights[..] };
    // QEMU's end is a failed command, never a signal.
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &slices,
        control,
        flags,
        None,
    )?)
}

fn silent(command: &'static str, limit: Duration) -> QmpError {
    QmpError::Silent { command, limit }
}

fn gone(command: &'static str) -> impl FnOnce(io::Error) -> QmpError {
    move |source| QmpError::Gone { command, source }
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A QEMU that says these lines, each after it was told something.
    async fn played(
        limit: Duration,
        lines: &'static [&'static str],
    ) -> (Result<Client, QmpError>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut told = [0; 4096];
            for (number, line) in lines.iter().enumerate() {
                if number > 0 && stream.read(&mut told).await.unwrap_or(0) == 0 {
                    return;
                }
                stream.write_all(line.as_bytes()).await.unwrap();
            }
            // Silent until the other side has gone.
            while stream.read(&mut told).await.unwrap_or(0) > 0 {}
        });
        (Client::connect(&path, limit, limit).await, dir)
    }

    #[tokio::test]
    async fn commands_are_answered_and_events_kept() {
        let (client, _dir) = played(
            LIMIT,
            &[
                "{\"QMP\": {}}\n",
                "{\"return\": {}, \"id\": 1}\n",
                "{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"io-error\"}, \"id\": 2}\n",
                "{\"return\": {\"status\": \"colo\"}, \"id\": 3}\n",
            ],
        )
        .await;
        let mut client = client.unwrap();
        assert_eq!(client.run_state().await.unwrap(), RunState::IoError);
        assert_eq!(client.run_state().await.unwrap(), RunState::Other);
        assert_eq!(client.event().await.unwrap(), Event::Stop);
    }

    #[tokio::test]
    async fn who_does_not_greet_or_answer_is_not_waited_for_for_ever() {
        let short = Duration::from_millis(50);
        let (client, _dir) = played(short, &[""]).await;
        let error = client.unwrap_err();
        assert_eq!(error.to_string(), "QEMU did not answer 'connect' within 0.05 s");
        let (client, _dir) = played(short, &["{\"QMP\": {}}\n", "{\"return\": {}, \"id\": 1}\n"]).await;
        let error = client.unwrap().run("stop", None).await.unwrap_err();
        assert!(
            error.is_silence() && error.to_string().contains("'stop'"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn who_talks_without_end_is_left() {
        let (client, _dir) = played(LIMIT, &["not QMP\n"]).await;
        assert!(matches!(client, Err(QmpError::Garbage(_))));
    }

    #[tokio::test]
    async fn a_file_goes_with_its_command() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        let listener = UnixListener::bind(&path).unwrap();
        let taken = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"{\"QMP\": {}}\n").await.unwrap();
            let mut told = [0; 4096];
            let _ = stream.read(&mut told).await.unwrap();
            stream.write_all(b"{\"return\": {}, \"id\": 1}\n").await.unwrap();
            loop {
                stream.readable().await.unwrap();
                let count = stream.try_io(Interest::READABLE, || {
                    let mut space = nix::cmsg_space!([i32; 2]);
                    let mut slices = [IoSliceMut::new(&mut told)];
                    let got = recvmsg::<UnixAddr>(
                        stream.as_raw_fd(),
                        &mut slices,
                        Some(&mut space),
                        MsgFlags::empty(),
                    )?;
                    let count = got
                        .cmsgs()?
                        .map(|message| match message {
                            ControlMessageOwned::ScmRights(files) => files.len(),
                            _ => 0,
                        })
                        .sum::<usize>();
                    Ok(count)
                });
                if let Ok(count) = count {
                    stream.write_all(b"{\"return\": {}, \"id\": 2}\n").await.unwrap();
                    return count;
                }
            }
        });
        let mut client = Client::connect(&path, LIMIT, LIMIT).await.unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        client.hand_over("memory", file.into()).await.unwrap();
        assert_eq!(taken.await.unwrap(), 1);
    }
}
