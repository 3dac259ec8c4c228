//! The protocol's lines, without a socket.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::QmpError;

/// The longest line that QEMU may send in bytes. What it answers to this driver's commands stays below 10 kB; a guest
/// has no say in it.
pub(super) const MAX_LINE: usize = 256 * 1024;

/// Most events kept while nobody looks. A guest that resets itself in a loop makes some thousand a second: the oldest
/// go, since a later one or the run state says how things are.
pub(super) const MAX_EVENTS: usize = 256;

/// What QEMU says unasked, as far as the driver acts on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The machine is switched off: by itself, or from outside.
    Shutdown { by_guest: bool },
    /// The machine was reset; `by_guest` unless the driver asked.
    Reset { by_guest: bool },
    /// The processors stand still.
    Stop,
    /// The processors run.
    Resume,
    /// The guest's kernel said that it panicked.
    Panicked,
    /// A disk of the guest could not be read or written.
    DiskError { device: String, stopped: bool },
    /// How far the memory's way out of QEMU or into it is.
    Migration { status: String },
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RunState {
    /// It runs.
    Running,
    /// It has not run yet.
    Prelaunch,
    /// It waits for its memory.
    Inmigrate,
    /// It stands still, as it was told.
    Paused,
    /// Its memory was written out.
    Postmigrate,
    /// It switched itself off.
    Shutdown,
    /// Its kernel panicked.
    GuestPanicked,
    /// The hypervisor cannot go on with it.
    InternalError,
    /// It stands still since a disk failed.
    IoError,
    /// Something else.
    #[serde(other)]
    Other,
}

/// One line from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Message {
    Greeting,
    Answer { id: u64, result: Result<Value, String> },
    Event(Option<Event>),
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Failure>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    id: Option<Value>,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    desc: String,
}

#[derive(Serialize)]
struct Request<'a> {
    execute: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a Value>,
    id: u64,
}

/// A connection's state: bytes go in, answers and events come out.
#[derive(Debug, Default)]
pub(super) struct Session {
    buffer: Vec<u8>,
    /// How far the buffer is known to have no end of a line.
    searched: usize,
    next_id: u64,
    greeted: bool,
    events: VecDeque<Event>,
    answer: Option<(u64, Result<Value, String>)>,
}

impl Session {
    /// The line of a command and its id. An answer to an earlier one is not waited for any more.
    pub(super) fn request(&mut self, command: &str, arguments: Option<&Value>) -> (u64, Vec<u8>) {
        self.next_id += 1;
        self.answer = None;
        let request = Request {
            execute: command,
            arguments,
            id: self.next_id,
        };
        let mut line = serde_json::to_vec(&request).unwrap_or_default();
        line.push(b'\n');
        (self.next_id, line)
    }

    /// Takes what came from QEMU.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<(), QmpError> {
        self.buffer.extend_from_slice(bytes);
        let mut begin = 0;
        while let Some(end) = find_newline(&self.buffer, self.searched.max(begin)) {
            let message = parse(&self.buffer[begin..end])?;
            begin = end + 1;
            self.take(message);
        }
        self.buffer.drain(..begin);
        self.searched = self.buffer.len();
        if self.buffer.len() > MAX_LINE {
            return Err(QmpError::Garbage("a line that is too long"));
        }
        Ok(())
    }

    fn take(&mut self, message: Option<Message>) {
        match message {
            Some(Message::Greeting) => self.greeted = true,
            // Answers to commands that nobody waits for any more have other ids; what answers none has 0.
            Some(Message::Answer { id, result }) if id == self.next_id && id != 0 => {
                self.answer = Some((id, result))
            }
            Some(Message::Event(Some(event))) => {
                if self.events.len() == MAX_EVENTS {
                    self.events.pop_front();
                }
                self.events.push_back(event);
            }
            Some(Message::Answer { .. } | Message::Event(None)) | None => {}
        }
    }

    pub(super) fn greeted(&self) -> bool {
        self.greeted
    }

    pub(super) fn answer(&mut self, id: u64) -> Option<Result<Value, String>> {
        match self.answer.take() {
            Some((of, result)) if of == id => Some(result),
            _ => None,
        }
    }

    /// Forgets what was said of earlier migrations.
    pub(super) fn forget_migrations(&mut self) {
        self.events
            .retain(|event| !matches!(event, Event::Migration { .. }));
    }

    pub(super) fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

fn find_newline(buffer: &[u8], from: usize) -> Option<usize> {
    let at = buffer.get(from..)?.iter().position(|byte| *byte == b'\n')?;
    Some(from + at)
}

/// Parses a line; `None` if it is empty.
pub(super) fn parse(line: &[u8]) -> Result<Option<Message>, QmpError> {
    if line.len() > MAX_LINE {
        return Err(QmpError::Garbage("a line that is too long"));
    }
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let line: Line =
        serde_json::from_slice(line).map_err(|_| QmpError::Garbage("a line that is not JSON"))?;
    if line.greeting.is_some() {
        return Ok(Some(Message::Greeting));
    }
    if let Some(name) = line.event {
        return Ok(Some(Message::Event(event(&name, &line.data))));
    }
    let result = match (line.value, line.error) {
        (_, Some(failure)) => Err(failure.desc),
        (Some(value), None) => Ok(value),
        (None, None) => return Err(QmpError::Garbage("neither answer nor event")),
    };
    // QEMU leaves the id out of answers to what it could not parse; no command of ours has the id 0.
    let id = line.id.and_then(|id| id.as_u64()).unwrap_or(0);
    Ok(Some(Message::Answer { id, result }))
}

fn event(name: &str, data: &Value) -> Option<Event> {
    let flag = |key: &str| data[key].as_bool().unwrap_or(false);
    let text = |key: &str| data[key].as_str().unwrap_or_default().to_owned();
    Some(match name {
        "SHUTDOWN" => Event::Shutdown {
            by_guest: flag("guest"),
        },
        "RESET" => Event::Reset {
            by_guest: flag("guest"),
        },
        "STOP" => Event::Stop,
        "RESUME" => Event::Resume,
        "GUEST_PANICKED" => Event::Panicked,
        "BLOCK_IO_ERROR" => Event::DiskError {
            device: [text("node-name"), text("device")]
                .into_iter()
                .find(|name| !name.is_empty())
                .unwrap_or_default(),
            stopped: data["action"] == "stop",
        },
        "MIGRATION" => Event::Migration {
            status: text("status"),
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn greeted() -> Session {
        let mut session = Session::default();
        session
            .receive(b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n")
            .unwrap();
        session
    }

    #[test]
    fn an_answer_is_found_by_its_id_among_events_and_late_answers() {
        let mut session = greeted();
        assert!(session.greeted());
        let (late, _) = session.request("stop", None);
        let (id, line) = session.request("query-status", Some(&json!({"a": 1})));
        assert_eq!(
            line,
            b"{\"execute\":\"query-status\",\"arguments\":{\"a\":1},\"id\":2}\n"
        );
        let said = format!(
            "{{\"return\": {{}}, \"id\": {late}}}\n{{\"event\": \"STOP\", \"timestamp\": {{}}}}\n{{\"return\": 7, \"id\": {id}}}\n"
        );
        // In pieces of every length.
        for byte in said.as_bytes() {
            session.receive(&[*byte]).unwrap();
        }
        assert_eq!(session.answer(id), Some(Ok(json!(7))));
        assert_eq!(session.answer(id), None);
        assert_eq!(session.event(), Some(Event::Stop));
        assert_eq!(session.event(), None);
    }

    #[test]
    fn a_refusal_is_given_in_qemus_own_words() {
        let mut session = greeted();
        let (id, _) = session.request("cont", None);
        session
            .receive(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"Resetting is required\"}, \"id\": 1}\n")
            .unwrap();
        assert_eq!(session.answer(id), Some(Err("Resetting is required".to_owned())));
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let mut session = greeted();
        let piece = vec![b' '; MAX_LINE / 2];
        session.receive(&piece).unwrap();
        session.receive(&piece).unwrap();
        assert!(matches!(session.receive(b"  "), Err(QmpError::Garbage(_))));
        // With its end in the same piece too.
        let mut long = vec![b' '; MAX_LINE + 1];
        long.push(b'\n');
        assert!(greeted().receive(&long).is_err());
    }

    #[test]
    fn garbage_is_an_error_and_an_unknown_event_is_none() {
        for garbage in [
            &b"hello\n"[..],
            b"{}\n",
            b"[1]\n",
            b"{\"id\": 1}\n",
            b"\xff\xfe\n",
            b"{\"return\": {}\n",
        ] {
            assert!(greeted().receive(garbage).is_err(), "{garbage:?}");
        }
        let mut session = greeted();
        session
            .receive(b"\n{\"event\": \"OF_A_LATER_QEMU\", \"data\": 3}\n")
            .unwrap();
        assert_eq!(session.event(), None);
        // Answers whose id is not ours, or none.
        session
            .receive(b"{\"return\": 1, \"id\": \"x\"}\n{\"return\": 1}\n")
            .unwrap();
        assert_eq!(session.answer(0), None);
    }

    #[test]
    fn events_that_nobody_takes_are_bounded_and_the_last_stay() {
        let mut session = greeted();
        for _ in 0..MAX_EVENTS {
            session.receive(b"{\"event\": \"RESET\"}\n").unwrap();
        }
        session
            .receive(b"{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\n")
            .unwrap();
        let all: Vec<_> = std::iter::from_fn(|| session.event()).collect();
        assert_eq!(all.len(), MAX_EVENTS);
        assert_eq!(all.last(), Some(&Event::Shutdown { by_guest: true }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(pieces: Vec<Vec<u8>>) {
            let mut session = Session::default();
            let (id, _) = session.request("x", None);
            for piece in pieces {
                if session.receive(&piece).is_err() {
                    break;
                }
            }
            let _ = (session.answer(id), session.event());
        }

        #[test]
        fn no_json_makes_it_panic(name in "[A-Z_]{1,20}", id: u64, text: String) {
            let mut session = greeted();
            let lines = [
                json!({"event": name, "data": {"guest": text, "status": id}}),
                json!({"event": "MIGRATION", "data": [text]}),
                json!({"return": text, "id": id}),
                json!({"error": {"desc": text}, "id": null}),
            ];
            for line in lines {
                session.receive(format!("{line}\n").as_bytes()).unwrap();
            }
        }
    }
}
