//! Where heads begin and end in what an HTTP/2 peer sends, read off the frames' own heads: a head that has begun must end
//! in time, and the codec above tells nobody of one that hasn't.

/// Follows the bytes of one connection from its preface on.
pub struct Frames {
    preface_left: usize,
    frame_head: [u8; FRAME_HEAD],
    /// Bytes of `frame_head` that are there.
    have: usize,
    payload_left: usize,
    /// A block of HEADERS and CONTINUATION has begun and not ended.
    block: bool,
    /// Its last frame has begun.
    block_ends: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            preface_left: PREFACE,
            frame_head: [0; FRAME_HEAD],
            have: 0,
            payload_left: 0,
            block: false,
            block_ends: false,
        }
    }
}

impl Frames {
    /// Something was begun that only more bytes can end: a head, a frame's head, or the preface.
    pub fn is_midway(&self) -> bool {
        self.preface_left > 0 || self.have > 0 || self.block
    }

    /// True when something that was midway ended in these bytes.
    pub fn read(&mut self, mut bytes: &[u8]) -> bool {
        let mut ended = false;
        let preface = self.preface_left.min(bytes.len());
        self.preface_left -= preface;
        bytes = bytes.get(preface..).unwrap_or_default();
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload_left > 0 {
                let skipped = self.payload_left.min(bytes.len());
                self.payload_left -= skipped;
                bytes = bytes.get(skipped..).unwrap_or_default();
            } else {
                if let Some(place) = self.frame_head.get_mut(self.have) {
                    *place = *first;
                }
                self.have += 1;
                bytes = rest;
                if self.have == FRAME_HEAD {
                    self.begin();
                    ended = true;
                }
            }
            if self.block_ends && self.payload_left == 0 {
                (self.block, self.block_ends) = (false, false);
                ended = true;
            }
        }
        ended
    }

    fn begin(&mut self) {
        let [l0, l1, l2, kind, flags, ..] = self.frame_head;
        self.have = 0;
        self.payload_left = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.block = true;
            self.block_ends = flags & END_HEADERS != 0;
        }
    }
}

const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_followed_however_the_bytes_are_cut() {
        let mut bytes = vec![0; PREFACE];
        let mut midway = vec![true; PREFACE - 1];
        midway.push(false);
        for (kind, flags, length, block) in [
            (4, 0, 0, false),
            (HEADERS, 0, 3, true),
            (CONTINUATION, 0, 0, true),
            (CONTINUATION, END_HEADERS, 2, true),
            (0, 1, 4, false),
            (HEADERS, END_HEADERS, 0, true),
        ] {
            bytes.extend([0, 0, length, kind, flags, 0, 0, 0, 1]);
            bytes.extend(vec![0; length.into()]);
            midway.extend([true; FRAME_HEAD - 1]);
            let goes_on = block && flags & END_HEADERS == 0;
            midway.extend(vec![block; length.into()]);
            midway.push(goes_on);
        }
        for step in 1..=bytes.len() {
            let mut frames = Frames::default();
            for (index, piece) in bytes.chunks(step).enumerate() {
                frames.read(piece);
                let place = (index * step + piece.len()) - 1;
                assert_eq!(
                    frames.is_midway(),
                    midway[place],
                    "byte {place} in steps of {step}"
                );
            }
        }
    }
}
