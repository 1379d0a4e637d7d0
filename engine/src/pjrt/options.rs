//! [`CompileOptions`], and their form as the protobuf `xla.CompileOptionsProto`: a dozen bytes, written by
//! hand.

use super::error::{Error, Result};
use super::value::Value;
use std::collections::BTreeMap;

/// Who splits a program over the partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partitioner {
    /// From `mhlo.sharding` strings only; XLA announces its end.
    Gspmd,
    /// From the `sdy` dialect, or from `mhlo.sharding` strings if the program has any.
    Shardy,
}

/// How to compile a program.
#[derive(Clone, Debug, PartialEq)]
pub struct CompileOptions {
    /// Copies of the program that each see their own data.
    pub replicas: usize,
    /// Devices that share the work of one copy.
    pub partitions: usize,
    /// Who splits the program; `None` for one partition.
    pub partitioner: Option<Partitioner>,
    /// The device of each partition of each replica, `[replica][partition]`; `None` leaves it to the plugin.
    pub devices: Option<Vec<Vec<i64>>>,
    /// Options of the compiler by name, for instance `xla_tpu_scoped_vmem_limit_kib`.
    pub overrides: BTreeMap<String, Value>,
}

impl CompileOptions {
    /// For one device.
    pub fn single() -> CompileOptions {
        CompileOptions {
            replicas: 1,
            partitions: 1,
            partitioner: None,
            devices: None,
            overrides: BTreeMap::new(),
        }
    }

    /// The same program on several devices (`all_reduce` and its kin join them), on devices 0, 1, 2 ...
    pub fn replicated(replicas: usize) -> CompileOptions {
        let devices = (0..replicas as i64).map(|id| vec![id]).collect();
        CompileOptions { replicas, devices: Some(devices), ..CompileOptions::single() }
    }

    /// One program split over several devices, on devices 0, 1, 2 ...
    pub fn partitioned(partitions: usize, partitioner: Partitioner) -> CompileOptions {
        let devices = vec![(0..partitions as i64).collect()];
        CompileOptions {
            partitions,
            partitioner: Some(partitioner),
            devices: Some(devices),
            ..CompileOptions::single()
        }
    }

    /// The protobuf bytes; equal options give equal bytes.
    ///
    /// The field numbers are those of `xla/pjrt/proto/compile_options.proto`.
    ///
    /// # Errors
    /// If `devices` does not have one device for each partition of each replica.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut build = Message::default();
        build.int(4, self.replicas as i64);
        build.int(5, self.partitions as i64);
        if let Some(partitioner) = self.partitioner {
            build.int(6, 1);
            if partitioner == Partitioner::Shardy {
                build.int(19, 1);
            }
        }
        if let Some(devices) = &self.devices {
            if devices.len() != self.replicas
                || devices.iter().any(|replica| replica.len() != self.partitions)
            {
                return Err(Error::Arguments(format!(
                    "compile options: the devices are {devices:?}, wanted {} lists (replicas) of {} (partitions)",
                    self.replicas, self.partitions
                )));
            }
            let mut assignment = Message::default();
            assignment.int(1, self.replicas as i64);
            assignment.int(2, self.partitions as i64);
            // One `computation_devices` for each partition, which lists the device of every replica.
            for partition in 0..self.partitions {
                let mut ids = Message::default();
                for replica in devices {
                    ids.varint(replica[partition] as u64);
                }
                let mut computation = Message::default();
                computation.bytes(1, &ids.0);
                assignment.bytes(3, &computation.0);
            }
            build.bytes(9, &assignment.0);
        }
        let mut options = Message::default();
        options.bytes(3, &build.0);
        for (name, value) in &self.overrides {
            let mut setting = Message::default();
            match value {
                Value::Text(text) => setting.bytes(1, text.as_bytes()),
                Value::Bool(truth) => setting.int(2, (*truth).into()),
                Value::Int(number) => setting.int(3, *number),
                Value::Float(number) => setting.double(4, (*number).into()),
                // The proto has no lists; XLA reads them from text.
                Value::Ints(numbers) => {
                    setting.bytes(
                        1,
                        numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(",").as_bytes(),
                    );
                }
            }
            let mut entry = Message::default();
            entry.bytes(1, name.as_bytes());
            entry.bytes(2, &setting.0);
            options.bytes(7, &entry.0);
        }
        Ok(options.0)
    }
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn int(&mut self, field: u64, number: i64) {
        self.varint(field << 3);
        self.varint(number as u64);
    }

    fn double(&mut self, field: u64, number: f64) {
        self.varint(field << 3 | 1);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that were tried against libtpu and the CPU plugin.
    #[test]
    fn bytes_are_the_ones_that_plugins_accept() {
        assert_eq!(CompileOptions::single().to_bytes().unwrap(), [0x1a, 0x04, 0x20, 1, 0x28, 1]);
        let assigned = CompileOptions { devices: Some(vec![vec![0]]), ..CompileOptions::single() };
        let golden = [0x1a, 0x0f, 0x20, 1, 0x28, 1, 0x4a, 0x09, 8, 1, 0x10, 1, 0x1a, 3, 0x0a, 1, 0];
        assert_eq!(assigned.to_bytes().unwrap(), golden);
        // Protobuf asks for no order of fields; this is the one that was tried.
        let head = [0x1a, 0x23, 0x20, 1, 0x28, 4, 0x30, 1, 0x98, 1, 1, 0x4a, 0x18, 8, 1, 0x10, 4];
        let ids = (0..4).flat_map(|id| [0x1a, 3, 0x0a, 1, id]);
        let golden: Vec<u8> = head.into_iter().chain(ids).collect();
        assert_eq!(CompileOptions::partitioned(4, Partitioner::Shardy).to_bytes().unwrap(), golden);
        let error = CompileOptions { replicas: 2, ..assigned }.to_bytes().unwrap_err();
        assert!(error.to_string().contains("devices are [[0]], wanted 2 lists (replicas) of 1 (partitions)"));
    }

    #[test]
    fn overrides_are_a_map_in_field_7() {
        let overrides = BTreeMap::from([("a".to_string(), Value::Bool(true)), ("b".to_string(), "x".into())]);
        let bytes = CompileOptions { overrides, ..CompileOptions::single() }.to_bytes().unwrap();
        let golden =
            [0x3a, 7, 0x0a, 1, b'a', 0x12, 2, 0x10, 1, 0x3a, 8, 0x0a, 1, b'b', 0x12, 3, 0x0a, 1, b'x'];
        assert_eq!(bytes[6..], golden);
    }
}
