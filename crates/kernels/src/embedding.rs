//! Rows of a table picked by identifier, and the gradient sent back to them. Tables may be plain, rounded to bf16, or a
//! weight that is packed for products.

use crate::cpu::{self, kernel};
use crate::matrix::{PackedMatrix, bf16};
use crate::parallel;

kernel! {
    fn gather_rows(table: &[f32], width: usize, ids: &[u32], out: &mut [f32]) {
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
            for (out, &value) in out.iter_mut().zip(&table[id as usize * width..][..width]) {
                *out += value;
            }
        }
    }

    fn gather_bf16_rows(table: &[u16], width: usize, ids: &[u32], out: &mut [f32]) {
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
            for (out, &value) in out.iter_mut().zip(&table[id as usize * width..][..width]) {
                *out += bf16::widen(value);
            }
        }
    }

    fn narrow(values: &[f32], out: &mut [u16]) {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = bf16::round(value);
        }
    }

    fn scatter_rows(d_out: &[f32], width: usize, ids: &[u32], first: usize, table: &mut [f32]) {
        let rows = table.len() / width;
        for (&id, d_out) in ids.iter().zip(d_out.chunks_exact(width)) {
            let Some(row) = (id as usize).checked_sub(first).filter(|&row| row < rows) else { continue };
            for (table, &value) in table[row * width..][..width].iter_mut().zip(d_out) {
                *table += value;
            }
        }
    }
}

fn check(what: &str, table: usize, width: usize, ids: &[u32], tokens: usize) {
    assert!(width > 0 || tokens == 0, "{what}: rows of at least one element");
    assert_eq!(ids.len() * width, tokens, "{what}: one row of {width} an identifier");
    let rows = table.checked_div(width).unwrap_or(0);
    assert_eq!(rows * width, table, "{what}: whole rows of {width}");
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        panic!("{what}: identifier {id} in a table of {rows} rows");
    }
}

/// `out[t] += table[ids[t]]`.
///
/// # Shapes
/// `table` `[V, width]`, `ids` `[T]`, `out` `[T, width]`.
///
/// # Panics
/// If a shape does not fit or an identifier is outside the table.
pub fn gather_add(table: &[f32], width: usize, ids: &[u32], out: &mut [f32]) {
    check("gather_add", table.len(), width, ids, out.len());
    let isa = cpu::isa();
    parallel::rows_mut(out, width, |row, out| gather_rows(isa, table, width, &ids[row..][..out.len() / width], out));
}

/// A table rounded to bf16, for [`gather_add_bf16`].
pub fn rounded_to_bf16(table: &[f32]) -> Vec<u16> {
    let isa = cpu::isa();
    let mut rounded = vec![0; table.len()];
    parallel::row_results_mut(&mut rounded, 1, |first, out| narrow(isa, &table[first..][..out.len()], out));
    rounded
}

/// As [`gather_add`], from a table rounded to bf16.
///
/// # Shapes
/// As there.
///
/// # Panics
/// As there.
pub fn gather_add_bf16(table: &[u16], width: usize, ids: &[u32], out: &mut [f32]) {
    check("gather_add_bf16", table.len(), width, ids, out.len());
    let isa = cpu::isa();
    parallel::rows_mut(out, width, |row, out| {
        gather_bf16_rows(isa, table, width, &ids[row..][..out.len() / width], out);
    });
}

/// As [`gather_add`], from a table `[V, width]` packed with its rows as outputs.
///
/// # Shapes
/// As there.
///
/// # Panics
/// As there.
pub fn gather_add_packed(table: &PackedMatrix, ids: &[u32], out: &mut [f32]) {
    let width = table.depth();
    check("gather_add_packed", table.outputs() * width, width, ids, out.len());
    parallel::rows_mut(out, width, |row, out| {
        for (&id, out) in ids[row..].iter().zip(out.chunks_exact_mut(width)) {
            table.add_row(id as usize, out);
        }
    });
}

/// `d_table[ids[t]] += d_out[t]`, in the order of the tokens.
///
/// # Shapes
/// `d_out` `[T, width]`, `ids` `[T]`, `d_table` `[V, width]`.
///
/// # Panics
/// If a shape does not fit or an identifier is outside the table.
pub fn scatter_add(d_out: &[f32], width: usize, ids: &[u32], d_table: &mut [f32]) {
    check("scatter_add", d_table.len(), width, ids, d_out.len());
    if d_table.is_empty() {
        return;
    }
    let isa = cpu::isa();
    let threads = if d_out.len() < parallel::TASK_ELEMENTS { 1 } else { rayon::current_num_threads() };
    // Each task owns a run of the table's rows and goes through all tokens: the order of additions is the tokens' own.
    let rows = (d_table.len() / width).div_ceil(threads);
    let table = parallel::Shared::new(d_table);
    let total = ids.iter().map(|&id| id as usize + 1).max().unwrap_or(0);
    parallel::tasks(total.div_ceil(rows), threads > 1, |task| {
        let first = task * rows;
        let count = rows.min(total - first);
        // SAFETY: every task has rows of its own.
        let part = unsafe { table.slice(first * width, count * width) };
        scatter_rows(isa, d_out, width, ids, first, part);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Isa, with_isa};
    use crate::matrix::Precision;
    use crate::tests::numbers;

    #[test]
    fn rows_are_picked_and_gradients_return_to_them_in_order() {
        for isa in Isa::available() {
            for (rows, width, tokens) in [(1, 1, 0), (1, 1, 1), (7, 5, 3), (50, 33, 900), (9, 64, 2000)] {
                with_isa(isa, || check(rows, width, tokens));
            }
        }
    }

    fn check(rows: usize, width: usize, tokens: usize) {
        let table = numbers(1, rows * width);
        let ids: Vec<u32> = (0..tokens as u64).map(|t| (crate::random::mix(2, t) % rows as u64) as u32).collect();
        let before = numbers(3, tokens * width);
        let mut out = before.clone();
        gather_add(&table, width, &ids, &mut out);
        let sums = |from: &dyn Fn(&mut [f32])| {
            let mut out = before.clone();
            from(&mut out);
            out
        };
        for precision in [Precision::F32, Precision::Bf16] {
            let held: Vec<f32> = table.iter().map(|&value| precision.round(value)).collect();
            let packed = PackedMatrix::rows_in(precision, &held, rows, width, None);
            let expected = sums(&|out| gather_add(&held, width, &ids, out));
            assert_eq!(sums(&|out| gather_add_packed(&packed, &ids, out)), expected, "packed in {precision}");
            if precision == Precision::Bf16 {
                let rounded = rounded_to_bf16(&table);
                assert_eq!(sums(&|out| gather_add_bf16(&rounded, width, &ids, out)), expected, "rounded");
            }
        }
        let mut d_table = numbers(4, rows * width);
        let mut expected = d_table.clone();
        scatter_add(&before, width, &ids, &mut d_table);
        for (t, &id) in ids.iter().enumerate() {
            for c in 0..width {
                assert_eq!(out[t * width + c], before[t * width + c] + table[id as usize * width + c]);
                expected[id as usize * width + c] += before[t * width + c];
            }
        }
        assert_eq!(d_table, expected, "sums in the order of the tokens");
    }

    #[test]
    #[should_panic(expected = "gather_add_packed: identifier 3 in a table of 3 rows")]
    fn an_identifier_outside_a_packed_table_is_named() {
        gather_add_packed(&PackedMatrix::rows(&[0.0; 6], 3, 2, None), &[3], &mut [0.0; 2]);
    }

    #[test]
    #[should_panic(expected = "identifier 3 in a table of 3 rows")]
    fn an_identifier_outside_the_table_is_named() {
        gather_add(&[0.0; 6], 2, &[3], &mut [0.0; 2]);
    }
}
