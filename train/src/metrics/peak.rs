//! Peak speed of devices by the kind that their PJRT plugin reports: the base of MFU and of rooflines. What is not in the
//! table is unknown, because a wrong MFU is worse than none.

use model::Compute;

/// Dense bf16 operations and bytes of main memory a second by a part of the device kind; the first match counts, so longer
/// names come first. Of a name with memories of several speeds, the fastest. Sources: Google's pages of each TPU generation;
/// NVIDIA's data sheets, figures without sparsity.
const PEAKS: &[(&str, f64, f64)] = &[
    ("TPU v6 lite", 918e12, 1.638e12),
    ("TPU v6e", 918e12, 1.638e12),
    ("TPU v5 lite", 197e12, 0.819e12),
    ("TPU v5e", 197e12, 0.819e12),
    ("TPU v5p", 459e12, 2.765e12),
    ("TPU v5", 459e12, 2.765e12),
    ("TPU v4 lite", 138e12, 0.614e12),
    ("TPU v4", 275e12, 1.228e12),
    ("TPU v3", 123e12, 0.9e12),
    ("TPU v2", 46e12, 0.7e12),
    ("B200", 2250e12, 8e12),
    ("H200", 989.4e12, 4.8e12),
    ("H100 PCIe", 756e12, 2e12),
    ("H100 NVL", 835e12, 3.9e12),
    ("H100", 989.4e12, 3.35e12),
    ("A100", 312e12, 2.039e12),
    ("A10G", 70e12, 0.6e12),
    ("L40S", 362e12, 0.864e12),
    ("L4", 121e12, 0.3e12),
];

/// Peak operations a second of one device; none for kinds and types that are not in the table, such as any CPU.
pub fn peak_flops(device_kind: &str, compute: Compute) -> Option<f64> {
    match compute {
        // Single precision runs on other units, or through several bf16 passes: there is no one peak to compare with.
        Compute::F32 => None,
        Compute::Bf16 => peaks(device_kind).map(|(flops, _)| flops),
    }
}

/// Bytes of its main memory that one device reads and writes in a second.
pub fn bandwidth(device_kind: &str) -> Option<f64> {
    peaks(device_kind).map(|(_, bytes)| bytes)
}

fn peaks(device_kind: &str) -> Option<(f64, f64)> {
    let found = PEAKS.iter().find(|(name, ..)| has_word(device_kind, name));
    found.map(|&(_, flops, bytes)| (flops, bytes))
}

/// Part of the devices' peak that a speed makes use of.
pub fn mfu(tokens_per_second: f64, flops_per_token: f64, peak: Option<f64>, devices: usize) -> Option<f64> {
    peak.map(|peak| tokens_per_second * flops_per_token / (peak * devices as f64))
}

/// Whether `words` occurs in `text` between word boundaries: `L4` is not in `L40`.
fn has_word(text: &str, words: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(words).any(|(at, _)| {
        !is_part(text[..at].chars().next_back()) && !is_part(text[at + words.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_peaks_and_others_have_none() {
        let cases = [
            ("TPU v6 lite", Some(918e12)),
            ("TPU v5 lite", Some(197e12)),
            ("TPU v5", Some(459e12)),
            ("NVIDIA H100 80GB HBM3", Some(989.4e12)),
            ("NVIDIA H100 PCIe", Some(756e12)),
            ("NVIDIA H200", Some(989.4e12)),
            ("NVIDIA L4", Some(121e12)),
            ("NVIDIA L40", None),
            ("cpu", None),
        ];
        for (kind, peak) in cases {
            assert_eq!(peak_flops(kind, Compute::Bf16), peak, "{kind}");
        }
        assert_eq!(peak_flops("NVIDIA H200", Compute::F32), None);
        assert_eq!(
            ["NVIDIA H200", "TPU v6 lite", "cpu"].map(bandwidth),
            [Some(4.8e12), Some(1.638e12), None]
        );
        assert_eq!(mfu(1000.0, 1e9, Some(1e13), 2), Some(0.05));
        assert_eq!(mfu(1000.0, 1e9, None, 1), None);
    }
}
