//! TLS on top of the bounded socket: the handshake, a look at what has come, and the peer's last word when writing has failed.

use std::io::{self, Read};
use std::sync::Arc;

use super::{BoundedSocket, Socket, is_hang_up};

pub(super) type TlsStream = rustls::StreamOwned<rustls::ClientConnection, BoundedSocket>;

impl Socket {
    /// Shakes hands under the deadline that the socket was opened with.
    pub(crate) fn start_tls(
        self,
        config: Arc<rustls::ClientConfig>,
        name: rustls::pki_types::ServerName<'static>,
    ) -> io::Result<Socket> {
        let Socket::Plain(mut socket) = self else { return Ok(self) };
        let mut session = rustls::ClientConnection::new(config, name).map_err(io::Error::other)?;
        while session.is_handshaking() {
            let (read, written) = session.complete_io(&mut socket).map_err(|error| match error.kind() {
                // Without the server's first message there is no version yet.
                io::ErrorKind::TimedOut if session.protocol_version().is_none() => {
                    io::Error::new(io::ErrorKind::TimedOut, crate::tls::explain::Unanswered(error))
                }
                _ => last_word(&mut session, &mut socket, error),
            })?;
            if read == 0 && written == 0 && session.is_handshaking() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Socket::Tls(Box::new(rustls::StreamOwned::new(session, socket))))
    }
}

/// A server that does not like our certificate says why and closes, while we are writing still. What it said can be read
/// even when writing has failed.
fn last_word(session: &mut rustls::ClientConnection, socket: &mut BoundedSocket, error: io::Error) -> io::Error {
    if is_hang_up(&error) {
        while session.read_tls(socket).is_ok_and(|read| read > 0) {
            if let Err(verdict) = session.process_new_packets() {
                return io::Error::new(io::ErrorKind::InvalidData, verdict);
            }
        }
    }
    error
}

pub(super) fn explained_write(stream: &mut TlsStream, error: io::Error) -> io::Error {
    crate::tls::explain::explain_read(last_word(&mut stream.conn, &mut stream.sock, error))
}

/// Reads from a stream whose writing has failed: asked itself, it would try to write first.
pub(super) fn read_after_failed_write(stream: &mut TlsStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.conn.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
        if stream.conn.read_tls(&mut stream.sock)? == 0 {
            return Ok(0);
        }
        stream.conn.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    }
}

/// Whether there is something to read for the one who stands on TLS; a ticket, for one, is no such thing.
pub(super) fn has_data(stream: &mut TlsStream) -> io::Result<bool> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut state = stream.conn.process_new_packets().map_err(invalid)?;
    while state.plaintext_bytes_to_read() == 0 {
        if state.peer_has_closed() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !stream.sock.has_data()? {
            return Ok(false);
        }
        stream.conn.read_tls(&mut stream.sock)?;
        state = stream.conn.process_new_packets().map_err(invalid)?;
    }
    Ok(true)
}
