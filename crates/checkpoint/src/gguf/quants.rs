//! The block formats of GGUF tensors and their values: what `dequantize_row_*` of ggml computes, in the order of
//! operations that makes every value the same to the last bit.

use half::{bf16, f16};

/// Values of a block of the K formats.
const SUPER_BLOCK: usize = 256;
/// Values of a block of the older formats.
const BLOCK: usize = 32;

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(non_camel_case_types, reason = "the names that every GGUF tool uses")]
pub enum Quantisation {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// The upper half of an f32.
    BF16,
    /// 8 bits and a scale.
    Q8_0,
    /// 4 bits and a scale.
    Q4_0,
    /// 4 bits, a scale and a minimum.
    Q4_1,
    /// 5 bits and a scale.
    Q5_0,
    /// 5 bits, a scale and a minimum.
    Q5_1,
    /// 4 bits, with 6-bit scales and minima of 8 groups.
    Q4_K,
    /// 5 bits, with 6-bit scales and minima of 8 groups.
    Q5_K,
    /// 6 bits, with 8-bit scales of 16 groups.
    Q6_K,
}

impl Quantisation {
    /// All that are read.
    pub const ALL: [Quantisation; 11] = [
        Quantisation::F32,
        Quantisation::F16,
        Quantisation::BF16,
        Quantisation::Q8_0,
        Quantisation::Q4_0,
        Quantisation::Q4_1,
        Quantisation::Q5_0,
        Quantisation::Q5_1,
        Quantisation::Q4_K,
        Quantisation::Q5_K,
        Quantisation::Q6_K,
    ];

    /// The name that GGUF tools use.
    pub fn name(self) -> &'static str {
        match self {
            Quantisation::F32 => "F32",
            Quantisation::F16 => "F16",
            Quantisation::BF16 => "BF16",
            Quantisation::Q8_0 => "Q8_0",
            Quantisation::Q4_0 => "Q4_0",
            Quantisation::Q4_1 => "Q4_1",
            Quantisation::Q5_0 => "Q5_0",
            Quantisation::Q5_1 => "Q5_1",
            Quantisation::Q4_K => "Q4_K",
            Quantisation::Q5_K => "Q5_K",
            Quantisation::Q6_K => "Q6_K",
        }
    }

    /// `ggml_type`.
    pub(super) fn code(self) -> u32 {
        match self {
            Quantisation::F32 => 0,
            Quantisation::F16 => 1,
            Quantisation::Q4_0 => 2,
            Quantisation::Q4_1 => 3,
            Quantisation::Q5_0 => 6,
            Quantisation::Q5_1 => 7,
            Quantisation::Q8_0 => 8,
            Quantisation::Q4_K => 12,
            Quantisation::Q5_K => 13,
            Quantisation::Q6_K => 14,
            Quantisation::BF16 => 30,
        }
    }

    pub(super) fn from_code(code: u32) -> Option<Quantisation> {
        Quantisation::ALL.into_iter().find(|quantisation| quantisation.code() == code)
    }

    /// The values of a block.
    pub fn block_values(self) -> usize {
        match self {
            Quantisation::F32 | Quantisation::F16 | Quantisation::BF16 => 1,
            Quantisation::Q4_K | Quantisation::Q5_K | Quantisation::Q6_K => SUPER_BLOCK,
            _ => BLOCK,
        }
    }

    /// The bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Quantisation::F32 => 4,
            Quantisation::F16 | Quantisation::BF16 => 2,
            Quantisation::Q8_0 => 2 + 32,
            Quantisation::Q4_0 => 2 + 16,
            Quantisation::Q4_1 => 4 + 16,
            Quantisation::Q5_0 => 2 + 4 + 16,
            Quantisation::Q5_1 => 4 + 4 + 16,
            Quantisation::Q4_K => 4 + 12 + 128,
            Quantisation::Q5_K => 4 + 12 + 32 + 128,
            Quantisation::Q6_K => 128 + 64 + 16 + 2,
        }
    }

    /// Appends the values of whole blocks to `values`; bytes after the last whole block are left alone.
    pub fn dequantise(self, blocks: &[u8], values: &mut Vec<f32>) {
        values.reserve(blocks.len() / self.block_bytes() * self.block_values());
        for block in blocks.chunks_exact(self.block_bytes()) {
            match self {
                Quantisation::F32 => values.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
                Quantisation::F16 => values.push(half_at(block, 0)),
                Quantisation::BF16 => values.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
                Quantisation::Q8_0 => {
                    let scale = half_at(block, 0);
                    values.extend(block[2..].iter().map(|&byte| f32::from(byte as i8) * scale));
                }
                Quantisation::Q4_0 => {
                    let scale = half_at(block, 0);
                    values.extend(nibbles(&block[2..]).map(|nibble| scale * (f32::from(nibble) - 8.0)));
                }
                Quantisation::Q4_1 => {
                    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
                    values.extend(nibbles(&block[4..]).map(|nibble| scale * f32::from(nibble) + minimum));
                }
                Quantisation::Q5_0 => {
                    let scale = half_at(block, 0);
                    let fives = with_fifth_bit(&block[2..6], &block[6..]);
                    values.extend(fives.map(|five| scale * (f32::from(five) - 16.0)));
                }
                Quantisation::Q5_1 => {
                    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
                    let fives = with_fifth_bit(&block[4..8], &block[8..]);
                    values.extend(fives.map(|five| scale * f32::from(five) + minimum));
                }
                Quantisation::Q4_K => q4_k(block, values),
                Quantisation::Q5_K => q5_k(block, values),
                Quantisation::Q6_K => q6_k(block, values),
            }
        }
    }
}

fn half_at(block: &[u8], place: usize) -> f32 {
    f16::from_le_bytes([block[place], block[place + 1]]).to_f32()
}

/// The low halves of the bytes, then the high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

/// Nibbles with a fifth bit from 32 bits beside them.
fn with_fifth_bit(high: &[u8], low: &[u8]) -> impl Iterator<Item = u8> {
    nibbles(low).enumerate().map(|(place, nibble)| nibble | (((high[place / 8] >> (place % 8)) & 1) << 4))
}

/// Scale and minimum of one of the 8 groups of a K block: 6 bits each, in 12 bytes.
fn scale_and_minimum(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (
            (packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4),
            (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4),
        ),
    };
    (f32::from(scale), f32::from(minimum))
}

fn q4_k(block: &[u8], values: &mut Vec<f32>) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    // A run of 32 bytes holds two groups: the low nibbles, then the high ones.
    for (pair, bytes) in block[16..].chunks_exact(32).enumerate() {
        for (group, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
            let (of_group, minimum_of_group) = scale_and_minimum(&block[4..16], group);
            let (scale, minimum) = (scale * of_group, minimum * minimum_of_group);
            values.extend(bytes.iter().map(|byte| scale * f32::from((byte >> shift) & 15) - minimum));
        }
    }
}

fn q5_k(block: &[u8], values: &mut Vec<f32>) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let high = &block[16..48];
    for (pair, bytes) in block[48..].chunks_exact(32).enumerate() {
        for (group, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
            let (of_group, minimum_of_group) = scale_and_minimum(&block[4..16], group);
            let (scale, minimum) = (scale * of_group, minimum * minimum_of_group);
            let fives =
                bytes.iter().zip(high).map(|(byte, high)| ((byte >> shift) & 15) | (((high >> group) & 1) << 4));
            values.extend(fives.map(|five| scale * f32::from(five) - minimum));
        }
    }
}

fn q6_k(block: &[u8], values: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    // Two halves of 128 values; each in four runs of 32, which take a nibble of 64 bytes and two bits of 32.
    for part in 0..2 {
        let (low, high) = (&low[64 * part..64 * part + 64], &high[32 * part..32 * part + 32]);
        for run in 0..4 {
            let nibbles = &low[32 * (run % 2)..32 * (run % 2) + 32];
            for (place, (byte, high)) in nibbles.iter().zip(high).enumerate() {
                let nibble = (byte >> (4 * (run / 2))) & 15;
                let six = nibble | (((high >> (2 * run)) & 3) << 4);
                let group = scales[8 * part + 2 * run + place / 16] as i8;
                values.push(scale * f32::from(group) * (f32::from(six) - 32.0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::SafeTensors;

    use super::*;

    /// `tools/make_gguf_goldens.py` has the `gguf` package of llama.cpp's authors dequantise random blocks.
    #[test]
    fn every_format_gives_the_reference_values_to_the_bit() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf/quants.safetensors");
        let bytes = std::fs::read(path).expect("the fixture");
        let golden = SafeTensors::deserialize(&bytes).expect("safetensors");
        for quantisation in Quantisation::ALL {
            let blocks = golden.tensor(&format!("{}.blocks", quantisation.name())).expect("a tensor");
            let expected = golden.tensor(&format!("{}.values", quantisation.name())).expect("a tensor");
            let mut values = Vec::new();
            quantisation.dequantise(blocks.data(), &mut values);
            assert!(values.len() >= 64, "{quantisation:?}");
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let first = bytes.chunks(4).zip(expected.data().chunks(4)).position(|(found, expected)| found != expected);
            assert_eq!((first, bytes.len()), (None, expected.data().len()), "{quantisation:?}");
        }
    }

    #[test]
    fn a_partial_block_gives_nothing() {
        for quantisation in Quantisation::ALL {
            let mut values = Vec::new();
            quantisation.dequantise(&vec![0; quantisation.block_bytes() - 1], &mut values);
            assert!(values.is_empty(), "{quantisation:?}");
            quantisation.dequantise(&vec![0; quantisation.block_bytes()], &mut values);
            assert_eq!(values.len(), quantisation.block_values(), "{quantisation:?}");
        }
    }
}
