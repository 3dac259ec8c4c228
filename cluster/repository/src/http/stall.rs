//! Connections that do not stand still for ever, nor creep.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::Stream;

/// A connection that breaks when no byte goes either way for some time, or when what is written has not all gone after a
/// longer one: whoever takes an answer a byte at a time keeps all of it in memory.
pub(super) struct Stalling {
    inner: Stream,
    limit: Duration,
    sleep: Pin<Box<Sleep>>,
    sending: Duration,
    /// Since the first byte that was not yet flushed.
    sent: Option<Pin<Box<Sleep>>>,
}

impl Stalling {
    pub(super) fn new(inner: Stream, limit: Duration, sending: Duration) -> Self {
        Self {
            inner,
            limit,
            sleep: Box::pin(tokio::time::sleep(limit)),
            sending,
            sent: None,
        }
    }

    fn judge<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.sleep.as_mut().reset(Instant::now() + self.limit);
            return done;
        }
        ready!(self.sleep.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether there is time left to send.
    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let sending = self.sending;
        let sent = self
            .sent
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(sending)));
        match sent.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Stalling {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.judge(cx, done)
    }
}

impl AsyncWrite for Stalling {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.in_time(cx)?;
        let done = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.judge(cx, done)
    }

    /// Forwarded, so that whoever writes a head and a chunk need not copy them into one.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.in_time(cx)?;
        let done = Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
        self.judge(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_flush(cx);
        if done.is_ready() {
            self.sent = None;
        }
        done
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn what_is_written_in_parts_goes_out_in_parts() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Stalling::new(Box::new(near), LONG, LONG);
        assert!(near.is_write_vectored());
        let parts = [IoSlice::new(b"head"), IoSlice::new(b"chunk")];
        assert_eq!(near.write_vectored(&parts).await.unwrap(), 9);
        let mut came = [0; 9];
        far.read_exact(&mut came).await.unwrap();
        assert_eq!(&came, b"headchunk");
    }

    #[tokio::test]
    async fn whoever_takes_a_byte_now_and_then_is_not_sent_to_for_ever() {
        let (near, mut far) = tokio::io::duplex(1);
        let mut near = Stalling::new(Box::new(near), LONG, Duration::from_millis(50));
        let takes = tokio::spawn(async move { while far.read_u8().await.is_ok() {} });
        // It is taken for as long as it lasts.
        let sends = async { while near.write_all(b"some").await.is_ok() {} };
        let ended = tokio::time::timeout(Duration::from_secs(10), sends).await;
        assert!(ended.is_ok(), "it is sent to for ever");
        takes.abort();
    }

    #[tokio::test]
    async fn each_answer_has_its_own_time() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Stalling::new(Box::new(near), LONG, LONG);
        near.write_all(b"one").await.unwrap();
        assert!(near.sent.is_some());
        near.flush().await.unwrap();
        assert!(near.sent.is_none());
        far.read_exact(&mut [0; 3]).await.unwrap();
    }
}
