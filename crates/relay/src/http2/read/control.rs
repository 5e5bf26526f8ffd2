//! Frames that carry no message: what peers tell each other of streams, windows and themselves.

use crate::http2::batch::{BadStream, Batch, Event, Why};
use crate::http2::bounds;
use crate::http2::connection::{Broken, Connection, Ping, Role, ping_payload};
use crate::http2::frame::{self, Code, FrameHead, flag};
use crate::http2::read::lists::dependency;
use crate::http2::settings;
use crate::http2::streams::{Side, Stream};

impl Connection {
    /// Priorities are not followed (RFC 9113 §5.3.2).
    pub(super) fn priority(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Broken> {
        self.calm.spend(1)?;
        let depends = payload.first_chunk().map_or(0, |five| dependency(*five));
        if depends == head.stream {
            return Err(Broken::Protocol("a stream that depends on itself"));
        }
        Ok(())
    }

    pub(super) fn reset(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        batch: &mut Batch,
    ) -> Result<(), Broken> {
        if self.is_idle(head.stream) {
            return Err(Broken::Protocol("a reset of a stream that is none"));
        }
        let Some(stream) = self.streams.find(head.stream) else {
            return Ok(self.calm.spend(1)?);
        };
        let code = Code(number(payload));
        let Some(slot) = self.streams.get(stream) else {
            return Ok(());
        };
        if slot.reset {
            return Ok(self.calm.spend(1)?);
        }
        if slot.receiving == Side::Ended && slot.sending == Side::Ended {
            return Ok(self.calm.spend(1)?);
        }
        // A server that has answered whole may so stop a client that goes on sending (RFC 9113 §8.1).
        let unanswered = match self.role {
            Role::Server => slot.sending != Side::Ended,
            Role::Client => slot.receiving != Side::Ended,
        };
        self.end_stream(stream, Why::Peer(code), batch);
        if unanswered {
            self.resets.count(self.config.limits.resets)?;
        } else {
            self.calm.spend(1)?;
        }
        Ok(())
    }

    pub(super) fn settings(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        if head.has(flag::ACK) {
            return self.acknowledged();
        }
        if self.greeted {
            self.calm.spend(bounds::POINTS_OF_SETTINGS)?;
        }
        self.greeted = true;
        let before = self.peer;
        self.peer.read(payload, self.role == Role::Client)?;
        if self.peer.table_size != before.table_size {
            self.encoder.resize(self.peer.table_size as usize);
        }
        let more = i64::from(self.peer.initial_window) - i64::from(before.initial_window);
        if more != 0 {
            for slot in self.streams.all_mut() {
                let window = i64::from(slot.send_window) + more;
                slot.send_window = i32::try_from(window).map_err(|_| Broken::FlowControl)?;
            }
            self.wake_all();
        }
        settings::acknowledge(out);
        Ok(())
    }

    /// From here the peer keeps to our windows instead of the usual ones.
    fn acknowledged(&mut self) -> Result<(), Broken> {
        if self.unacknowledged == 0 {
            return Ok(self.calm.spend(1)?);
        }
        self.unacknowledged -= 1;
        let window = settings::window(self.config.stream_window);
        let more = window - self.stream_window;
        self.stream_window = window;
        for slot in self.streams.all_mut() {
            slot.receive_window = slot.receive_window.saturating_add(more);
        }
        Ok(())
    }

    pub(super) fn pinged(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        batch: &mut Batch,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        let payload = *payload.first_chunk::<8>().unwrap_or(&[0; 8]);
        if !head.has(flag::ACK) {
            self.calm.spend(1)?;
            frame::ping(true, payload, out);
            return Ok(());
        }
        let place = self
            .pings
            .iter()
            .position(|ping| ping_payload(*ping) == payload);
        match place.and_then(|place| self.pings.remove(place)) {
            Some(Ping::Leaving) => self.leave_now(out),
            Some(Ping::Alive) => batch.events.push(Event::Pong),
            None => self.calm.spend(1)?,
        }
        Ok(())
    }

    pub(super) fn goaway(&mut self, payload: &[u8], batch: &mut Batch) -> Result<(), Broken> {
        self.calm.spend(1)?;
        let last = number(payload) & frame::STREAM_ID_MAX;
        let code = Code(number(payload.get(4..).unwrap_or_default()));
        if self.peer_leaves.is_some_and(|before| last > before) {
            return Err(Broken::Protocol("a goaway that takes back another"));
        }
        let first = self.peer_leaves.replace(last).is_none();
        if self.role == Role::Client {
            let lost: Vec<Stream> = self
                .streams
                .all()
                .filter(|(stream, slot)| stream.id() > last && !slot.reset)
                .map(|(stream, _)| stream)
                .collect();
            for stream in lost {
                self.end_stream(stream, Why::Unprocessed, batch);
            }
        }
        if first {
            batch.events.push(Event::GoAway { code });
        }
        Ok(())
    }

    pub(super) fn window_update(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        batch: &mut Batch,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        self.calm.spend(1)?;
        let more = (number(payload) & frame::STREAM_ID_MAX) as i32;
        if head.stream == 0 {
            if more == 0 {
                return Err(Broken::Protocol("a window update of nothing"));
            }
            let window = self.send_window.checked_add(more);
            self.send_window = window.ok_or(Broken::FlowControl)?;
            return Ok(());
        }
        if self.is_idle(head.stream) {
            return Err(Broken::Protocol("a window of a stream that is none"));
        }
        let Some(stream) = self.streams.find(head.stream) else {
            return Ok(());
        };
        let Some(slot) = self.streams.get(stream) else {
            return Ok(());
        };
        if slot.reset {
            return Ok(());
        }
        if more == 0 {
            return self.break_stream(stream, BadStream::EmptyUpdate, batch, out);
        }
        match slot.send_window.checked_add(more) {
            Some(window) => {
                slot.send_window = window;
                if slot.wants && window > 0 {
                    self.streams.enqueue(stream);
                }
                Ok(())
            }
            None => self.break_stream(stream, BadStream::FlowControl, batch, out),
        }
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |four| u32::from_be_bytes(*four))
}
