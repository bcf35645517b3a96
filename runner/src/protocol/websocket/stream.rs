//! An open WebSocket: reads and writes frames on a connection.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    failure::Failure,
    net::stream::MeteredStream,
    protocol::websocket::frames::{FrameReader, FrameWriter, IncomingFrame, OutgoingMessage},
};

/// Number of bytes that are read at once. A session that waits keeps no more.
const READ_SIZE: usize = 1 << 10;

/// The code of a close frame without a code.
const NO_CLOSE_CODE: u16 = 1005;

/// An event of a session.
#[derive(Debug)]
pub(crate) enum SocketEvent {
    /// A text or binary message.
    Message(Bytes),
    /// The reply to a ping.
    Pong,
    /// A ping, which has been answered.
    Ping,
    /// The target closed the session: its code and its reason.
    Closed(u16, String),
    /// The connection ended without a close frame.
    Ended,
}

/// An open WebSocket.
#[derive(Debug)]
pub(crate) struct WebSocket<S = MeteredStream> {
    stream: S,
    input: BytesMut,
    /// Bytes that are not written yet.
    output: BytesMut,
    reader: FrameReader,
    writer: FrameWriter,
    has_sent_close: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Takes over a connection that was upgraded. `input` are bytes that arrived with the response.
    pub(crate) fn new(stream: S, input: BytesMut, reader: FrameReader, mask_seed: u32) -> Self {
        Self {
            stream,
            input,
            output: BytesMut::new(),
            reader,
            writer: FrameWriter::new(mask_seed),
            has_sent_close: false,
        }
    }

    /// Reads the next event, and answers pings and close frames.
    pub(crate) fn poll_event(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<SocketEvent, Failure>> {
        loop {
            if let Some(frame) = self.reader.next_frame(&mut self.input)? {
                let event = self.answer(frame);
                // An answer that can't be written now is written with the next one.
                if let Poll::Ready(Err(failure)) = self.poll_write_output(context)
                    && !matches!(event, SocketEvent::Closed(..))
                {
                    return Poll::Ready(Err(failure));
                }
                return Poll::Ready(Ok(event));
            }
            self.input.reserve(READ_SIZE);
            let read = ready!(pin!(self.stream.read_buf(&mut self.input)).poll(context));
            if read.map_err(|error| Failure::from_io_error(&error))? == 0 {
                return Poll::Ready(Ok(SocketEvent::Ended));
            }
        }
    }

    /// Awaits the next event.
    pub(crate) async fn next_event(&mut self) -> Result<SocketEvent, Failure> {
        poll_fn(|context| self.poll_event(context)).await
    }

    fn answer(&mut self, frame: IncomingFrame) -> SocketEvent {
        match frame {
            IncomingFrame::Message(content) => SocketEvent::Message(content),
            IncomingFrame::Ping(content) => {
                self.writer.write_pong(&content, &mut self.output);
                SocketEvent::Ping
            }
            IncomingFrame::Pong => SocketEvent::Pong,
            IncomingFrame::Close(code, reason) => {
                if !self.has_sent_close {
                    self.has_sent_close = true;
                    self.writer.write_close(code, &mut self.output);
                }
                SocketEvent::Closed(code.unwrap_or(NO_CLOSE_CODE), reason)
            }
        }
    }

    fn poll_write_output(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.output));
            let written = written.map_err(|error| Failure::from_io_error(&error))?;
            self.output.advance(written);
        }
        Pin::new(&mut self.stream)
            .poll_flush(context)
            .map_err(|error| Failure::from_io_error(&error))
    }

    async fn write_output(&mut self) -> Result<(), Failure> {
        let Self { stream, output, .. } = self;
        let written = async {
            stream.write_all_buf(output).await?;
            stream.flush().await
        };
        let result = written.await.map_err(|error| Failure::from_io_error(&error));
        // A session that waits holds no buffer.
        self.output = BytesMut::new();
        result
    }

    /// Returns the connection.
    #[cfg(feature = "fuzzing")]
    pub(crate) const fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Sends a message.
    pub(crate) async fn send(&mut self, message: &OutgoingMessage) -> Result<(), Failure> {
        self.writer.write_message(message, &mut self.output);
        self.write_output().await
    }

    /// Sends a ping.
    pub(crate) async fn send_ping(&mut self) -> Result<(), Failure> {
        self.writer.write_ping(&mut self.output);
        self.write_output().await
    }

    /// Sends a close frame without a code.
    pub(crate) async fn send_close(&mut self) -> Result<(), Failure> {
        self.has_sent_close = true;
        self.writer.write_close(None, &mut self.output);
        self.write_output().await
    }
}
