//! HTTP exchanges of one user, whichever version they speak.

use std::{
    borrow::Cow,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::BytesMut;

use crate::{
    failure::{ErrorKind, Failure},
    measure::in_flight::{Flight, Part},
    prepare::{
        PreparedChat, PreparedHttp, Request,
        check::{self, Field},
    },
    protocol::{
        chat::{Answer, Chat},
        connection_pool::{Connection, Http1, Links, Slot},
        gzip::Body,
        http1::{self, Head},
        http2::{self, Http2, Refusal},
    },
};

/// Longest body that checks look into: they run on the thread that paces all users.
const MAX_BODY: usize = 1 << 20;

/// An answer whose body is still to come.
enum Incoming<'a> {
    One(&'a mut Http1, Head),
    Two(http2::Answer),
}

impl Incoming<'_> {
    const fn status(&self) -> u16 {
        match self {
            Self::One(_, head) => head.status,
            Self::Two(answer) => answer.status,
        }
    }

    const fn gzip(&self) -> bool {
        match self {
            Self::One(_, head) => head.gzip,
            Self::Two(answer) => answer.gzip,
        }
    }

    fn take_fields(&mut self) -> Vec<Field> {
        match self {
            Self::One(_, head) => std::mem::take(&mut head.fields),
            Self::Two(answer) => std::mem::take(&mut answer.fields),
        }
    }

    /// Reads the body; the moment its last byte was read.
    async fn drain(
        self,
        buffer: &mut BytesMut,
        mut take: impl FnMut(&[u8], Instant) -> Result<(), Failure>,
    ) -> Result<Instant, Failure> {
        match self {
            Self::One(Http1 { wire, stamps, spent, unread }, head) => {
                // Until all of it is read, nobody knows what comes next.
                (*spent, *unread) = (true, true);
                let read = |data: &[u8]| take(data, stamps.last_read.get());
                let surplus = http1::read_body(wire, buffer, &head, read).await?;
                (*spent, *unread) = (surplus || !head.keep_alive, false);
                // What belongs to no answer is none to the next request.
                buffer.clear();
                Ok(stamps.last_read.get())
            }
            // Its own state is large; those who speak HTTP/1.1 shall not carry it.
            Self::Two(answer) => Box::pin(answer.drain(take)).await,
        }
    }

    /// Reads the body, taken out of its compression.
    async fn read(
        self,
        buffer: &mut BytesMut,
        mut take: impl FnMut(&[u8], Instant) -> Result<(), Failure>,
    ) -> Result<Instant, Failure> {
        let mut body = Body::new(self.gzip());
        let last = self.drain(buffer, |data, at| body.read(data, |plain| take(plain, at))).await?;
        body.finish(|plain| take(plain, last))?;
        Ok(last)
    }
}

/// Sends a request on the slot's connection, or on a new one, and reads the head of the answer.
///
/// A kept connection that the target has closed meanwhile is replaced, if the request could
/// not be written to it: that is no failure of the target.
async fn send<'a>(
    slot: &'a mut Slot,
    links: &Links,
    request: &Request,
    keep: bool,
    buffer: &mut BytesMut,
    flight: &Flight,
) -> Result<Incoming<'a>, Failure> {
    if slot.connection.as_mut().is_some_and(|open| !open.is_open()) {
        slot.lose();
    }
    let mut wrote = None;
    if let Some(Connection::One(open)) = &mut slot.connection {
        let unsent = flight.sent().is_none();
        flight.send();
        let before = open.stamps.sent.get();
        let written = http1::write(&mut open.wire, &request.bytes).await;
        // Once a byte of it is out, the target may act on it: it is not sent again.
        wrote = Some(written).filter(|w| w.is_ok() || open.stamps.sent.get() > before);
        if wrote.is_none() {
            slot.lose();
            if unsent {
                flight.unsend();
            }
        }
    }
    // HTTP/2 again, when the target has not acted on it.
    for last in [false, false, true] {
        if slot.connection.is_none() {
            flight.enter(Part::Connect);
            // Opened once and used long: an idle user shall not carry the state of that.
            Box::pin(slot.open(links, flight)).await?;
        }
        let Some(Connection::Two(two)) = &slot.connection else { break };
        let two = Rc::clone(two);
        match Box::pin(send_http2(&two, request, keep, flight)).await {
            Ok(answer) => return Ok(Incoming::Two(answer)),
            Err(Refusal::Unsent(_)) if !last => {
                two.end();
                slot.lose();
            }
            // In its turn, now that it is known how many there may be.
            Err(Refusal::Refused(_)) if !last => {}
            Err(
                Refusal::Unsent(failure) | Refusal::Refused(failure) | Refusal::Failed(failure),
            ) => return Err(failure),
        }
    }
    let Some(Connection::One(open)) = &mut slot.connection else {
        return Err(Failure::new(ErrorKind::Connect, "no connection"));
    };
    let written = if let Some(written) = wrote {
        written
    } else {
        flight.send();
        http1::write(&mut open.wire, &request.bytes).await
    };
    let stamps = &open.stamps;
    let began = || {
        flight.first_byte(stamps.last_read.get());
        flight.enter(Part::Body);
    };
    let read = http1::read_head(&mut open.wire, buffer, request.is_head, keep, began).await;
    let head = match written {
        Ok(()) => read?,
        // A target that answers before it has read all, and closes, has answered.
        Err(failure) => {
            open.spent = true;
            let mut head = read.map_err(|_| failure)?;
            head.keep_alive = false;
            head
        }
    };
    Ok(Incoming::One(open, head))
}

async fn send_http2(
    two: &Http2,
    request: &Request,
    keep: bool,
    flight: &Flight,
) -> Result<http2::Answer, Refusal> {
    let missing = || Failure::new(ErrorKind::Protocol, "request has no HTTP/2 form");
    let request = request.http2.as_deref().ok_or_else(|| Refusal::Failed(missing()))?;
    flight.enter(Part::Turn);
    let turn = two.turn().await;
    if !two.is_open() {
        let message = "connection ended before it took the request";
        return Err(Refusal::Unsent(Failure::new(ErrorKind::Reset, message)));
    }
    let unsent = flight.sent().is_none();
    flight.send();
    let answer = two.send(turn, request, keep, |at| flight.first_byte(at)).await;
    match &answer {
        Ok(_) => flight.enter(Part::Body),
        Err(Refusal::Unsent(_) | Refusal::Refused(_)) if unsent => flight.unsend(),
        Err(_) => {}
    }
    answer
}

fn expected(prepared: &PreparedHttp, status: u16) -> bool {
    if prepared.expect.is_empty() { status < 400 } else { prepared.expect.contains(&status) }
}

fn unexpected(prepared: &PreparedHttp, status: u16) -> Failure {
    Failure::new(ErrorKind::Http(status), format!("{} answered {status}", prepared.name))
}

/// One HTTP request; the moment the last byte of its answer was read.
pub(crate) async fn request(
    slot: &mut Slot,
    links: &Links,
    prepared: &PreparedHttp,
    buffer: &mut BytesMut,
    flight: &Flight,
) -> Result<Instant, Failure> {
    if !prepared.checks.is_empty() || prepared.redirects.is_some() {
        return Box::pin(examined(slot, links, prepared, buffer, flight)).await;
    }
    let answer = send(slot, links, &prepared.request, false, buffer, flight).await?;
    let status = answer.status();
    let last = answer.drain(buffer, |_, _| Ok(())).await?;
    if expected(prepared, status) { Ok(last) } else { Err(unexpected(prepared, status)) }
}

/// The same, with redirects followed and the answer checked.
async fn examined(
    slot: &mut Slot,
    links: &Links,
    prepared: &PreparedHttp,
    buffer: &mut BytesMut,
    flight: &Flight,
) -> Result<Instant, Failure> {
    let mut redirects = prepared.redirects.clone();
    let mut request = Cow::Borrowed(&prepared.request);
    let reads_body = prepared.checks.iter().any(check::PreparedCheck::reads_body);
    loop {
        let mut answer = send(slot, links, &request, true, buffer, flight).await?;
        let (status, fields) = (answer.status(), answer.take_fields());
        let location = fields.iter().find(|(name, _)| name == "location");
        let leads_on = location.is_some() && matches!(status, 301 | 302 | 303 | 307 | 308);
        let follows = leads_on && redirects.is_some();
        let mut body = Vec::new();
        let last = if reads_body && !follows && expected(prepared, status) {
            let keep = |data: &[u8], _| {
                if body.len() + data.len() > MAX_BODY {
                    let message = "body is over 1 MiB: checks can't look into it";
                    return Err(Failure::new(ErrorKind::CheckBody, message));
                }
                body.extend_from_slice(data);
                Ok(())
            };
            answer.read(buffer, keep).await?
        } else {
            answer.drain(buffer, |_, _| Ok(())).await?
        };
        if let (Some(redirects), Some((_, to)), true) = (&mut redirects, location, follows) {
            request = Cow::Owned(redirects.follow(status, &String::from_utf8_lossy(to))?);
            continue;
        }
        if !expected(prepared, status) {
            return Err(unexpected(prepared, status));
        }
        check::judge(&prepared.checks, &fields, &body)?;
        return Ok(last);
    }
}

/// One chat completion: the moment the last byte of its answer was read, and what it holds.
/// Times between tokens are handed to `gap` as they come.
pub(crate) async fn chat(
    slot: &mut Slot,
    links: &Links,
    prepared: &PreparedChat,
    body: usize,
    buffer: &mut BytesMut,
    flight: &Flight,
    mut gap: impl FnMut(Duration),
) -> Result<(Instant, Answer), Failure> {
    let request = prepared.requests.get(body).unwrap_or(&prepared.http.request);
    let answer = send(slot, links, request, false, buffer, flight).await?;
    let status = answer.status();
    if !expected(&prepared.http, status) {
        answer.drain(buffer, |_, _| Ok(())).await?;
        return Err(unexpected(&prepared.http, status));
    }
    let mut chat = Chat::new(prepared.stream);
    let read = answer.read(buffer, |data, at| {
        chat.read(data, at, &mut gap)?;
        chat.first().into_iter().for_each(|at| flight.first(at));
        Ok(())
    });
    let last = read.await.map_err(|failure| match failure.kind {
        // Whether its chunks or its events break off, a stream that has begun was cut short.
        ErrorKind::Reset if prepared.stream => Failure { kind: ErrorKind::StreamCut, ..failure },
        _ => failure,
    })?;
    let answer = chat.finish(last)?;
    flight.first(answer.first);
    Ok((last, answer))
}
