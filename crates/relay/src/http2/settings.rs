//! What each side tells the other of itself.

use super::bounds::Bound;
use super::connection::Broken;
use super::frame::{self, PAYLOAD_MAX, WINDOW_DEFAULT, WINDOW_MAX, flag, kind};

const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;
const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// A peer's, as of now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) table_size: u32,
    pub(super) max_streams: u32,
    pub(super) initial_window: i32,
    pub(super) max_frame: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            table_size: 4096,
            max_streams: u32::MAX,
            initial_window: WINDOW_DEFAULT,
            max_frame: PAYLOAD_MAX,
        }
    }
}

impl Settings {
    /// Takes over what a frame says; of what it says twice the last.
    pub(super) fn read(&mut self, payload: &[u8], from_server: bool) -> Result<(), Broken> {
        let (entries, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(Broken::FrameSize("settings of no whole number"));
        }
        if entries.len() > ENTRIES_MAX {
            return Err(Broken::Bound(Bound::Settings));
        }
        for [k0, k1, v0, v1, v2, v3] in entries {
            let value = u32::from_be_bytes([*v0, *v1, *v2, *v3]);
            match u16::from_be_bytes([*k0, *k1]) {
                HEADER_TABLE_SIZE => self.table_size = value,
                ENABLE_PUSH if value > 1 || (from_server && value == 1) => {
                    return Err(Broken::Protocol("a push setting that is none"));
                }
                MAX_CONCURRENT_STREAMS => self.max_streams = value,
                INITIAL_WINDOW_SIZE => {
                    let window = i32::try_from(value).map_err(|_| Broken::FlowControl)?;
                    self.initial_window = window;
                }
                MAX_FRAME_SIZE if !(PAYLOAD_MAX..1 << 24).contains(&value) => {
                    return Err(Broken::Protocol("a frame size that may not be"));
                }
                MAX_FRAME_SIZE => self.max_frame = value,
                ENABLE_CONNECT_PROTOCOL if value > 1 => {
                    return Err(Broken::Protocol("a connect setting that is none"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What we say of ourselves, and the connection's window if it is larger than the usual one.
pub(super) struct Own {
    /// None for a client, whose peer opens no streams.
    pub(super) max_streams: Option<u32>,
    pub(super) stream_window: i32,
    pub(super) connection_window: i32,
    pub(super) head_bytes: u32,
}

impl Own {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let streams = match self.max_streams {
            Some(streams) => (MAX_CONCURRENT_STREAMS, streams),
            None => (ENABLE_PUSH, 0),
        };
        let entries = [
            streams,
            (INITIAL_WINDOW_SIZE, self.stream_window as u32),
            (MAX_HEADER_LIST_SIZE, self.head_bytes),
        ];
        frame::head(6 * entries.len(), kind::SETTINGS, 0, 0, out);
        for (key, value) in entries {
            out.extend_from_slice(&key.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
        let more = self.connection_window - WINDOW_DEFAULT;
        if more > 0 {
            frame::window_update(0, more as u32, out);
        }
    }
}

pub(super) fn acknowledge(out: &mut Vec<u8>) {
    frame::head(0, kind::SETTINGS, flag::ACK, 0, out);
}

/// A window as configured, within what the protocol has.
pub(super) fn window(bytes: u32) -> i32 {
    i32::try_from(bytes).unwrap_or(WINDOW_MAX).max(1)
}

/// There are ten settings registered; nobody needs to say each more than a few times.
const ENTRIES_MAX: usize = 32;
