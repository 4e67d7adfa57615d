//! Any CPU: tiles of a few rows by 8 outputs in plain arrays, which compilers turn into vectors.

use super::{Block, PANEL, ROW_STRIDE, Tile, split_rows};
use crate::cpu::NATIVE_FMA;
use crate::math::mul_add;

/// Rows of a tile: as many as the registers of the usual targets hold.
const ROWS: usize = if cfg!(target_arch = "aarch64") { 8 } else { 4 };
const LANES: usize = 8;

pub(super) fn multiply(tile: &mut Tile<'_>) {
    let Tile { a, k, resume, .. } = *tile;
    let (b, index) = match tile.b {
        Block::Rows(b) => (b, None),
        Block::Indexed(b, index) => (b, Some(index)),
        Block::Words(_) => unreachable!("refused by the caller"),
    };
    for start in (0..tile.outputs).step_by(LANES) {
        let c = &mut *tile.c;
        split_rows(tile.rows, ROWS, |first, count| {
            let (a, c) = (&a[first * ROW_STRIDE..], &mut c[first * PANEL + start..]);
            // The lanes of each depth; two loops, so that the plain one has no look-up.
            let (rows, _) = b.as_chunks::<PANEL>();
            let lanes = |row: &[f32; PANEL]| -> [f32; LANES] { std::array::from_fn(|lane| row[start + lane]) };
            match index {
                Some(index) => dispatch(count, a, index.iter().map(|&row| lanes(&rows[row as usize])), k, c, resume),
                None => dispatch(count, a, rows.iter().map(lanes), k, c, resume),
            }
        });
    }
}

fn dispatch(rows: usize, a: &[f32], b: impl Iterator<Item = [f32; LANES]>, k: usize, c: &mut [f32], resume: bool) {
    match rows {
        1 => part::<1>(a, b, k, c, resume),
        2 => part::<2>(a, b, k, c, resume),
        3 => part::<3>(a, b, k, c, resume),
        4 => part::<4>(a, b, k, c, resume),
        5 => part::<5>(a, b, k, c, resume),
        6 => part::<6>(a, b, k, c, resume),
        7 => part::<7>(a, b, k, c, resume),
        _ => part::<8>(a, b, k, c, resume),
    }
}

fn part<const M: usize>(a: &[f32], b: impl Iterator<Item = [f32; LANES]>, k: usize, c: &mut [f32], resume: bool) {
    let mut sums = [[0.0_f32; LANES]; M];
    let rows: [&[f32]; M] = std::array::from_fn(|i| &a[i * ROW_STRIDE..][..k]);
    for (k, lanes) in (0..k).zip(b) {
        for (sums, row) in sums.iter_mut().zip(&rows) {
            for (sum, &b) in sums.iter_mut().zip(&lanes) {
                *sum = mul_add::<NATIVE_FMA>(row[k], b, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (c, sum) in c[i * PANEL..][..LANES].iter_mut().zip(sums) {
            *c = if resume { *c + sum } else { *sum };
        }
    }
}
