//! The one transposition that packing needs: eight rows become eight neighbouring lanes.

use crate::cpu::Isa;

/// Rows that are transposed at a time.
pub(crate) const GROUP: usize = 8;

/// `out[k * stride + i] = rows[i][k]` for eight rows of one length.
///
/// # Panics
/// If the rows differ in length or `out` is too short.
pub(crate) fn transpose_group(isa: Isa, rows: &[&[f32]; GROUP], out: &mut [f32], stride: usize) {
    let length = rows[0].len();
    assert!(rows.iter().all(|row| row.len() == length), "rows of one length");
    assert!(length == 0 || (length - 1) * stride + GROUP <= out.len() && stride >= GROUP, "room for the result");
    #[allow(unused_mut)]
    let mut start = 0;
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Portable {
        // SAFETY: the instruction sets other than portable include AVX2; lengths are asserted above.
        start = unsafe { avx2(rows, out, stride) };
    }
    let _ = isa;
    for k in start..length {
        for (i, row) in rows.iter().enumerate() {
            out[k * stride + i] = row[k];
        }
    }
}

/// Transposes whole blocks of eight columns and answers how many columns that were.
///
/// # Safety
/// All rows are of one length and `out` holds `(length - 1) * stride + 8` elements.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(rows: &[&[f32]; GROUP], out: &mut [f32], stride: usize) -> usize {
    use std::arch::x86_64::*;
    let blocks = rows[0].len() / 8;
    for block in 0..blocks {
        // SAFETY: columns `8 * block .. 8 * block + 8` exist in every row.
        let r = rows.map(|row| unsafe { _mm256_loadu_ps(row.as_ptr().add(8 * block)) });
        let low = |a, b| _mm256_unpacklo_ps(a, b);
        let high = |a, b| _mm256_unpackhi_ps(a, b);
        let t = [
            low(r[0], r[1]),
            high(r[0], r[1]),
            low(r[2], r[3]),
            high(r[2], r[3]),
            low(r[4], r[5]),
            high(r[4], r[5]),
            low(r[6], r[7]),
            high(r[6], r[7]),
        ];
        let s = [
            _mm256_shuffle_ps::<0x44>(t[0], t[2]),
            _mm256_shuffle_ps::<0xee>(t[0], t[2]),
            _mm256_shuffle_ps::<0x44>(t[1], t[3]),
            _mm256_shuffle_ps::<0xee>(t[1], t[3]),
            _mm256_shuffle_ps::<0x44>(t[4], t[6]),
            _mm256_shuffle_ps::<0xee>(t[4], t[6]),
            _mm256_shuffle_ps::<0x44>(t[5], t[7]),
            _mm256_shuffle_ps::<0xee>(t[5], t[7]),
        ];
        for i in 0..4 {
            let near = _mm256_permute2f128_ps::<0x20>(s[i], s[i + 4]);
            let far = _mm256_permute2f128_ps::<0x31>(s[i], s[i + 4]);
            // SAFETY: rows `8 * block + i` and `+ i + 4` of the result lie inside `out` by the caller's promise.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr().add((8 * block + i) * stride), near);
                _mm256_storeu_ps(out.as_mut_ptr().add((8 * block + i + 4) * stride), far);
            }
        }
    }
    blocks * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_rows_become_eight_lanes_at_every_length() {
        for isa in Isa::available() {
            for length in 0..40 {
                let rows: Vec<Vec<f32>> = (0..8).map(|i| (0..length).map(|k| (i * 100 + k) as f32).collect()).collect();
                let views: [&[f32]; 8] = std::array::from_fn(|i| rows[i].as_slice());
                let mut out = vec![-1.0; length * 11 + 8];
                transpose_group(isa, &views, &mut out, 11);
                for k in 0..length {
                    for (i, row) in rows.iter().enumerate() {
                        assert_eq!(out[k * 11 + i], row[k], "{isa} {length} {i} {k}");
                    }
                    assert_eq!(out[k * 11 + 8..k * 11 + 11], [-1.0; 3]);
                }
            }
        }
    }
}
