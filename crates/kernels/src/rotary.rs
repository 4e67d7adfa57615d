//! Rotary position embeddings: pairs of columns of queries and keys turned by an angle that grows with the position
//! (J. Su et al., 2021), in the halves layout of transformers, forward and backward. How frequencies are scaled for long
//! contexts is the caller's business.

use crate::cpu::{self, kernel};
use crate::math::mul_add;
use crate::parallel::{self, Shared};

/// Where one head's pairs live: columns `start .. start + 2p`, first the `p` first halves, then the `p` second halves;
/// columns `k` and `p + k` of them are together the original pair `pairs[k]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotaryHead<'a> {
    /// First column.
    pub start: usize,
    /// Column of the table for each pair that is there.
    pub pairs: &'a [u32],
}

impl RotaryHead<'_> {
    fn end(&self) -> usize {
        self.start + 2 * self.pairs.len()
    }

    /// Whether the pairs are those of the table from the first on, so that its rows can be used as they are.
    fn in_order(&self) -> bool {
        self.pairs.iter().enumerate().all(|(k, &pair)| pair as usize == k)
    }
}

/// Cosines and sines of all angles, each times a factor; `[positions, pairs]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RotaryTable {
    /// Pairs of an original head: half its dimension.
    pub pairs: usize,
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

impl RotaryTable {
    /// The table of the positions `0 .. positions`. Angles are products in `f32`, as transformers makes them; their cosines
    /// and sines are exact to `f32`, then multiplied by `factor` (1, or the attention factor of a scaling).
    ///
    /// ```
    /// use finegates_kernels::rotary::RotaryTable;
    /// let table = RotaryTable::new(2, &[1.0, 0.01], 1.0);
    /// assert_eq!(table.cos[..2], [1.0, 1.0]);
    /// assert_eq!(table.sin[2], 1.0_f64.sin() as f32);
    /// ```
    pub fn new(positions: usize, inverse_frequencies: &[f32], factor: f32) -> Self {
        Self::of_positions(0..positions, inverse_frequencies, factor)
    }

    /// The rows of [`RotaryTable::new`] for some positions, the first of them as row 0.
    pub fn of_positions(positions: std::ops::Range<usize>, inverse_frequencies: &[f32], factor: f32) -> Self {
        let (begin, positions) = (positions.start, positions.len());
        let pairs = inverse_frequencies.len();
        let mut table = Self { pairs, cos: vec![0.0; positions * pairs], sin: vec![0.0; positions * pairs] };
        let sin = Shared::new(&mut table.sin);
        parallel::rows_mut(&mut table.cos, pairs, |first, cos| {
            // SAFETY: every task has rows of its own.
            let sin = unsafe { sin.slice(first * pairs, cos.len()) };
            let rows = cos.chunks_exact_mut(pairs).zip(sin.chunks_exact_mut(pairs));
            for (position, (cos, sin)) in (begin + first..).zip(rows) {
                for ((cos, sin), &frequency) in cos.iter_mut().zip(sin).zip(inverse_frequencies) {
                    let angle = f64::from(position as f32 * frequency);
                    (*cos, *sin) = (angle.cos() as f32 * factor, angle.sin() as f32 * factor);
                }
            }
        });
        table
    }

    fn positions(&self) -> usize {
        self.cos.len().checked_div(self.pairs).unwrap_or(0)
    }
}

kernel! {
    /// Turns one head's pairs of one row.
    fn rotate_in_order(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let (first, second) = x.split_at_mut(x.len() / 2);
        for (((first, second), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let (a, b, sin) = (*first, *second, sign * sin);
            *first = mul_add::<FMA>(a, cos, -(b * sin));
            *second = mul_add::<FMA>(b, cos, a * sin);
        }
    }

    /// The same for pairs anywhere in the table.
    fn rotate_gathered(x: &mut [f32], pairs: &[u32], cos: &[f32], sin: &[f32], sign: f32) {
        let (first, second) = x.split_at_mut(x.len() / 2);
        for ((first, second), &pair) in first.iter_mut().zip(second).zip(pairs) {
            let (a, b, cos, sin) = (*first, *second, cos[pair as usize], sign * sin[pair as usize]);
            *first = mul_add::<FMA>(a, cos, -(b * sin));
            *second = mul_add::<FMA>(b, cos, a * sin);
        }
    }
}

fn check(what: &str, length: usize, stride: usize, heads: &[RotaryHead<'_>], positions: &[u32], table: &RotaryTable) {
    assert_eq!(length, positions.len() * stride, "{what}: one row of {stride} a position");
    assert_eq!(table.cos.len(), table.positions() * table.pairs, "{what}: whole rows of the table");
    assert_eq!(table.sin.len(), table.cos.len(), "{what}: as many sines as cosines");
    let mut ends: Vec<(usize, usize)> = heads.iter().map(|head| (head.start, head.end())).collect();
    ends.retain(|&(start, end)| end > start);
    if ends.is_empty() {
        return;
    }
    ends.sort_unstable();
    assert!(
        ends.iter().all(|&(_, end)| end <= stride) && ends.is_sorted_by(|a, b| a.1 <= b.0),
        "{what}: heads disjoint and inside the columns"
    );
    let pair = heads.iter().flat_map(|head| head.pairs).max().copied().unwrap_or(0);
    assert!((pair as usize) < table.pairs, "{what}: pair {pair} of a table with {}", table.pairs);
    if let Some(&last) = positions.iter().max() {
        assert!((last as usize) < table.positions(), "{what}: position {last} of a table with {}", table.positions());
    }
}

fn turn(x: &mut [f32], stride: usize, heads: &[RotaryHead<'_>], positions: &[u32], table: &RotaryTable, sign: f32) {
    let isa = cpu::isa();
    let heads: Vec<(&RotaryHead<'_>, bool)> =
        heads.iter().filter(|head| !head.pairs.is_empty()).map(|head| (head, head.in_order())).collect();
    if heads.is_empty() {
        return;
    }
    parallel::rows_mut(x, stride, |first, x| {
        for (x, &position) in x.chunks_exact_mut(stride).zip(&positions[first..]) {
            let row = position as usize * table.pairs..(position as usize + 1) * table.pairs;
            let (cos, sin) = (&table.cos[row.clone()], &table.sin[row]);
            for &(head, in_order) in &heads {
                let x = &mut x[head.start..head.end()];
                if in_order {
                    rotate_in_order(isa, x, cos, sin, sign);
                } else {
                    rotate_gathered(isa, x, head.pairs, cos, sin, sign);
                }
            }
        }
    });
}

/// Turns the pairs of all heads in place: `(a, b) ← (a cos − b sin, b cos + a sin)` with the angle of the row's position.
/// Columns of no head stay as they are.
///
/// # Shapes
/// `x` `[T, stride]`, `positions` `[T]`.
///
/// # Panics
/// If a shape does not fit, or a position or pair is not in the table.
pub fn rotate(x: &mut [f32], stride: usize, heads: &[RotaryHead<'_>], positions: &[u32], table: &RotaryTable) {
    check("rotate", x.len(), stride, heads, positions, table);
    turn(x, stride, heads, positions, table, 1.0);
}

/// From the gradient of [`rotate`]'s result to that of its input, in place: the turn by the opposite angle.
///
/// # Shapes
/// As there.
///
/// # Panics
/// As there.
pub fn rotate_backward(d: &mut [f32], stride: usize, heads: &[RotaryHead<'_>], positions: &[u32], table: &RotaryTable) {
    check("rotate_backward", d.len(), stride, heads, positions, table);
    turn(d, stride, heads, positions, table, -1.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Isa, with_isa};
    use crate::tests::numbers;

    /// Inverse frequencies of a head of `2 · pairs` dimensions.
    fn frequencies(pairs: usize) -> Vec<f32> {
        (0..pairs).map(|k| 1.0 / 10_000_f32.powf(k as f32 / pairs as f32)).collect()
    }

    fn reference(
        x: &[f32],
        stride: usize,
        heads: &[RotaryHead<'_>],
        positions: &[u32],
        f: &[f32],
        sign: f64,
    ) -> Vec<f64> {
        let mut out: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        for (row, &position) in out.chunks_exact_mut(stride.max(1)).zip(positions) {
            for head in heads {
                for (k, &pair) in head.pairs.iter().enumerate() {
                    let (i, j) = (head.start + k, head.start + head.pairs.len() + k);
                    let angle = sign * f64::from(position as f32 * f[pair as usize]);
                    let (a, b) = (row[i], row[j]);
                    row[i] = 1.5 * (a * angle.cos() - b * angle.sin());
                    row[j] = 1.5 * (b * angle.cos() + a * angle.sin());
                }
            }
        }
        out
    }

    #[test]
    fn rotation_and_its_transpose_follow_the_f64_reference() {
        let all: Vec<u32> = (0..32).collect();
        let some = [1, 2, 5, 30];
        let (one, none) = ([31], []);
        let head = |start, pairs| RotaryHead { start, pairs };
        let cases: [(usize, Vec<RotaryHead<'_>>); 4] = [
            (130, vec![head(0, &all), head(65, &all)]),
            (20, vec![head(11, &some[..]), head(0, &some), head(9, &one), head(8, &none)]),
            (3, vec![]),
            (18, vec![head(1, &all[..5]), head(11, &all[..3])]),
        ];
        let inverse = frequencies(32);
        let table = RotaryTable::new(5_000, &inverse, 1.5);
        for isa in Isa::available() {
            for (stride, heads) in &cases {
                for positions in [vec![], vec![4_999], vec![0, 1, 2, 0, 77, 4_000, 77]] {
                    let x = numbers(*stride as u64, positions.len() * stride);
                    for (name, sign) in [("rotate", 1.0), ("rotate_backward", -1.0)] {
                        let mut found = x.clone();
                        let f = if sign > 0.0 { rotate } else { rotate_backward };
                        with_isa(isa, || f(&mut found, *stride, heads, &positions, &table));
                        let expected = reference(&x, *stride, heads, &positions, &inverse, sign);
                        for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
                            // Two products of numbers below about 6, rounded.
                            let error = (f64::from(found) - expected).abs();
                            assert!(error < 2e-6, "{isa} {name} width {stride}, {i}: {found} {expected}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_table_is_exact_far_out() {
        let inverse = frequencies(3);
        let table = RotaryTable::new(40_000, &inverse, 1.0);
        assert_eq!((table.pairs, table.cos.len(), table.sin.len()), (3, 120_000, 120_000));
        for position in [0_usize, 1, 31_999, 39_999] {
            for (k, &frequency) in inverse.iter().enumerate() {
                let angle = f64::from(position as f32 * frequency);
                assert_eq!(table.cos[position * 3 + k], angle.cos() as f32);
                assert_eq!(table.sin[position * 3 + k], angle.sin() as f32);
            }
        }
        assert_eq!(RotaryTable::new(5, &[], 1.0).positions(), 0);
    }

    #[test]
    #[should_panic(expected = "position 2 of a table with 2")]
    fn a_position_beyond_the_table_is_a_bug() {
        let head = RotaryHead { start: 0, pairs: &[0] };
        rotate(&mut [0.0; 2], 2, &[head], &[2], &RotaryTable::new(2, &[1.0], 1.0));
    }
}
