//! TensorBoard event files: TFRecord framing around two small protobuf messages, written by hand.
//!
//! Sources: tensorflow/core/lib/io/record_writer.cc (framing, mask), tensorflow/core/util/event.proto and
//! tensorflow/core/framework/summary.proto (field numbers).

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The event file in `folder` of a run that is at `step`, and what it begins with. TensorBoard is told to forget what older
/// files say of later steps.
pub fn event_file(folder: &Path, step: u64) -> (PathBuf, Vec<u8>) {
    let now = now();
    // TensorBoard reads files in the order of their names and finds them by the word `tfevents`.
    let name = format!("events.out.tfevents.{:010}.{}.{step}", now as u64, std::process::id());
    let mut head = record(&version_event(now));
    if step > 0 {
        head.extend(record(&restart_event(now, step + 1)));
    }
    (folder.join(name), head)
}

/// The record of scalars of a step.
pub fn scalars(step: u64, scalars: &[(&str, f64)]) -> Vec<u8> {
    record(&scalar_event(now(), step, scalars))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Frames a message: length, its checksum, the message, its checksum; all little-endian.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), message, &masked_crc(message)].concat()
}

/// The checksum of the format: CRC-32C, rotated and shifted so that checksums of checksums stay independent.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Event { 1: wall_time (double), 3: file_version }.
fn version_event(time: f64) -> Vec<u8> {
    [double(1, time), bytes(3, b"brain.Event:2")].concat()
}

/// Event { 1: wall_time, 2: step, 7: SessionLog { 1: status = START } }.
fn restart_event(time: f64, step: u64) -> Vec<u8> {
    [double(1, time), varint(2, step), bytes(7, &varint(1, 1))].concat()
}

/// Event { 1: wall_time, 2: step, 5: Summary { repeated 1: Value { 1: tag, 2: simple_value (float) } } }.
fn scalar_event(time: f64, step: u64, scalars: &[(&str, f64)]) -> Vec<u8> {
    let value = |&(tag, x): &(&str, f64)| bytes(1, &[bytes(1, tag.as_bytes()), float(2, x as f32)].concat());
    let summary: Vec<u8> = scalars.iter().flat_map(value).collect();
    [double(1, time), varint(2, step), bytes(5, &summary)].concat()
}

// Protobuf's wire types: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes. Field numbers here are below 16, so
// that the tag is one byte.

fn varint(field: u8, value: u64) -> Vec<u8> {
    [&[field << 3][..], &raw_varint(value)].concat()
}

fn double(field: u8, value: f64) -> Vec<u8> {
    [&[field << 3 | 1][..], &value.to_le_bytes()].concat()
}

fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    [&[field << 3 | 2][..], &raw_varint(value.len() as u64), value].concat()
}

fn float(field: u8, value: f32) -> Vec<u8> {
    [&[field << 3 | 5][..], &value.to_le_bytes()].concat()
}

fn raw_varint(mut value: u64) -> Vec<u8> {
    let mut encoded = Vec::new();
    while value >= 0x80 {
        encoded.push(value as u8 | 0x80);
        value >>= 7;
    }
    encoded.push(value as u8);
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first bytes of every event file that TensorFlow writes: 24 bytes of message and their checksum.
    #[test]
    fn the_first_record_is_tensorflows() {
        let record = record(&version_event(1.5));
        assert_eq!(record[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(record[12..21], [0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f]);
        assert_eq!(record[21..36], *b"\x1a\x0dbrain.Event:2");
        assert_eq!(record.len(), 8 + 4 + 24 + 4);
    }

    #[test]
    fn scalars_are_the_protobuf_bytes() {
        let expected = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f][..],
            &[0x10, 0xac, 0x02],
            &[0x2a, 10, 0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0x20, 0x40],
        ];
        assert_eq!(scalar_event(1.0, 300, &[("a", 2.5)]), expected.concat());
        assert_eq!(restart_event(1.0, 5)[9..], [0x10, 5, 0x3a, 2, 0x08, 1]);
    }

    /// The check value of CRC-32C is 0xE3069283; the mask is record_writer.cc's.
    #[test]
    fn checksums_are_masked() {
        let rotated = (0xE306_9283_u32 >> 15) + (0x1283 << 17);
        assert_eq!(masked_crc(b"123456789"), rotated.wrapping_add(0xa282_ead8).to_le_bytes());
    }
}
