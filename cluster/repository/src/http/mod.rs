//! Images over HTTP/1.1, on whatever connections there are.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/image/<name, name@version or sha256:digest>` | what a repository knows of an image, as JSON |
//! | `GET /v1/manifest/<manifest>` | the manifest |
//! | `GET /v1/have/<manifest>` | a bit for each chunk that is here |
//! | `GET /v1/chunk/<manifest>/<number>` | the chunk; 404 if it is not here, 503 if too many are asked at once |
//! | `POST /v1/announce/<manifest>/<port>` | who else fetches or has the image, as JSON; the asker is one of them from now on, at this port |
//!
//! There are no request bodies. Who may connect, and whether anybody can listen, is the [`Transport`]'s affair.

mod announced;
mod client;
mod server;
mod stall;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

pub use client::Client;
pub(crate) use client::Got;
pub use server::{Server, ServerConfig};

/// Bytes to and from somebody.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A connection of any kind.
pub type Stream = Box<dyn Connection>;

/// How connections are made and proved.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Connects to somebody. It is given up after [`crate::limits::CONNECT`].
    ///
    /// # Errors
    /// When nobody answers there, or somebody else.
    async fn connect(&self, to: SocketAddr) -> io::Result<Stream>;

    /// Makes a connection of what a listener accepted. It is given up after [`crate::limits::CONNECT`].
    ///
    /// # Errors
    /// When the other side may not connect.
    async fn accepted(&self, stream: TcpStream) -> io::Result<Stream>;
}

/// TCP as it is. For networks in which everybody is known, such as a grid's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

#[async_trait]
impl Transport for Plain {
    async fn connect(&self, to: SocketAddr) -> io::Result<Stream> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn accepted(&self, stream: TcpStream) -> io::Result<Stream> {
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}
