//! One projection made small: gate values folded into weight and bias, dead rows and columns left out.

use crate::liveness::OpenSets;

/// A projection's tensors as they are given: whole, and not yet gated.
#[derive(Clone, Copy, Debug)]
pub struct Whole<'a> {
    /// `[out, in]`, row-major.
    pub weight: &'a [f32],
    /// `[out]`, if there is one.
    pub bias: Option<&'a [f32]>,
    /// `ω_r` and `ω_c`, `[out]` and `[in]`; `None` without gates.
    pub gates: Option<(&'a [f32], &'a [f32])>,
}

/// What is left of a projection.
#[derive(Clone, Debug, PartialEq)]
pub struct Folded {
    /// `[rows left, columns left]`, row-major.
    pub weight: Vec<f32>,
    /// `[rows left]`.
    pub bias: Option<Vec<f32>>,
    /// Original indices of the rows left, ascending.
    pub kept_rows: Vec<u32>,
    /// Original indices of the columns left, ascending.
    pub kept_columns: Vec<u32>,
}

/// `W' = diag(ω_r) W diag(ω_c)` and `b' = ω_r ⊙ b` (METHOD.md §1), restricted to what is live.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn fold(whole: &Whole<'_>, live: &OpenSets) -> Folded {
    let (rows, columns) = (live.rows.len(), live.columns.len());
    assert_eq!(whole.weight.len(), rows * columns, "the weight is [out, in]");
    assert!(whole.bias.is_none_or(|bias| bias.len() == rows), "one bias a row");
    if let Some((row_gates, column_gates)) = whole.gates {
        assert_eq!((row_gates.len(), column_gates.len()), (rows, columns), "one gate a row and a column");
    }
    let (kept_rows, kept_columns) = (live.row_indices(), live.column_indices());
    let row_gate = |row: u32| whole.gates.map_or(1.0, |(gates, _)| gates[row as usize]);
    let mut weight = Vec::with_capacity(kept_rows.len() * kept_columns.len());
    for &row in &kept_rows {
        let values = &whole.weight[row as usize * columns..][..columns];
        match whole.gates {
            None => weight.extend(kept_columns.iter().map(|&column| values[column as usize])),
            // One rounding for both gates: the product is formed in f64.
            Some((_, gates)) => weight.extend(kept_columns.iter().map(|&column| {
                let gate = f64::from(row_gate(row)) * f64::from(gates[column as usize]);
                (gate * f64::from(values[column as usize])) as f32
            })),
        }
    }
    let bias = whole.bias.map(|bias| fold_bias(bias, whole.gates.map(|(gates, _)| gates), live));
    Folded { weight, bias, kept_rows, kept_columns }
}

/// `b' = ω_r ⊙ b`, restricted to what is live.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn fold_bias(bias: &[f32], row_gates: Option<&[f32]>, live: &OpenSets) -> Vec<f32> {
    assert_eq!(bias.len(), live.rows.len(), "one bias a row");
    let gate = |row: usize| row_gates.map_or(1.0, |gates| gates[row]);
    live.row_indices().into_iter().map(|row| gate(row as usize) * bias[row as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEIGHT: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

    fn live(rows: &[bool], columns: &[bool]) -> OpenSets {
        OpenSets { rows: rows.to_vec(), columns: columns.to_vec() }
    }

    #[test]
    fn row_gates_scale_weight_and_bias_and_column_gates_the_weight_alone() {
        let whole = Whole { weight: &WEIGHT, bias: Some(&[10.0, 20.0]), gates: Some((&[0.5, 1.0], &[1.0, 0.0, 0.25])) };
        let folded = fold(&whole, &live(&[true, true], &[true, false, true]));
        assert_eq!(folded.weight, [0.5, 0.375, 4.0, 1.5]);
        assert_eq!(folded.bias.as_deref(), Some(&[5.0, 20.0][..]));
        assert_eq!((folded.kept_rows, folded.kept_columns), (vec![0, 1], vec![0, 2]));
    }

    #[test]
    fn projection_without_gates_keeps_its_bits() {
        let whole = Whole { weight: &WEIGHT, bias: None, gates: None };
        let folded = fold(&whole, &OpenSets::all(2, 3));
        assert_eq!((folded.weight.as_slice(), folded.bias), (&WEIGHT[..], None));
    }

    #[test]
    fn rows_without_columns_keep_their_bias_and_nothing_may_be_left() {
        let whole = Whole { weight: &WEIGHT, bias: Some(&[10.0, 20.0]), gates: None };
        let folded = fold(&whole, &live(&[false, true], &[false; 3]));
        assert_eq!((folded.weight.len(), folded.bias.as_deref()), (0, Some(&[20.0][..])));
        let folded = fold(&whole, &live(&[false; 2], &[false; 3]));
        assert_eq!((folded.weight.len(), folded.bias.as_deref()), (0, Some(&[][..])));
    }
}
