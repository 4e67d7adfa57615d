//! Ascending columns as masks over 16 neighbours each, for AVX-512: to gather them is to compress what was loaded, to scatter to
//! them is to expand what is stored. Sparser columns are better taken one by one.

use std::arch::x86_64::*;

/// Columns `start .. start + 16` that `mask` has bits for.
#[derive(Clone, Copy, Default)]
struct Pick {
    start: u32,
    mask: u16,
}

/// At most `N` ascending columns.
pub(crate) struct Picks<const N: usize> {
    picks: [Pick; N],
    count: usize,
    columns: usize,
    /// One more than the last column.
    end: usize,
}

/// Columns that a pick should hold on average.
const DENSE: usize = 3;

impl<const N: usize> Picks<N> {
    /// None where columns are more than `N`, not ascending or too far apart to gain.
    pub(crate) fn of(columns: &[u32]) -> Option<Self> {
        if columns.len() > N || !columns.is_sorted_by(|a, b| a < b) {
            return None;
        }
        let mut picks = [Pick::default(); N];
        let mut count = 0;
        for &column in columns {
            match picks[..count].last_mut() {
                Some(pick) if column - pick.start < 16 => pick.mask |= 1 << (column - pick.start),
                _ => {
                    picks[count] = Pick { start: column, mask: 1 };
                    count += 1;
                }
            }
        }
        let end = columns.last().map_or(0, |&column| column as usize + 1);
        (count * DENSE <= columns.len()).then_some(Self { picks, count, columns: columns.len(), end })
    }

    /// `out[i]` = the `i`-th of the columns of `row`; up to 15 elements after them are overwritten.
    ///
    /// # Panics
    /// If a column is beyond the row or `out` has no room for 15 elements more.
    ///
    /// # Safety
    /// AVX-512 F is available.
    #[target_feature(enable = "avx512f")]
    pub(crate) unsafe fn gather(&self, row: &[f32], out: &mut [f32]) {
        assert!(self.end <= row.len(), "a gathered column beyond the row");
        assert!(self.columns + 15 <= out.len(), "room for the gathered columns");
        let mut place = out.as_mut_ptr();
        for pick in &self.picks[..self.count] {
            // SAFETY: the mask lets only columns through that lie in the row; a pick stores 16 elements from the number of columns
            // before it on, which is below that of all.
            unsafe {
                let values = _mm512_maskz_loadu_ps(pick.mask, row.as_ptr().add(pick.start as usize));
                _mm512_storeu_ps(place, _mm512_maskz_compress_ps(pick.mask, values));
                place = place.add(pick.mask.count_ones() as usize);
            }
        }
    }

    /// The `i`-th of the columns of a row at `place` becomes `values[i]`, or is added to; others stay.
    ///
    /// # Panics
    /// If there are fewer values than columns.
    ///
    /// # Safety
    /// AVX-512 F is available; the columns of the row at `place` are inside a buffer, and nobody else uses them.
    #[target_feature(enable = "avx512f")]
    pub(crate) unsafe fn scatter(&self, values: &[f32], place: *mut f32, add: bool) {
        assert!(self.columns <= values.len(), "a value for every column");
        let mut from = values.as_ptr();
        for pick in &self.picks[..self.count] {
            // SAFETY: as many values are read as the mask has bits, and only columns are touched that it has bits for.
            unsafe {
                let place = place.add(pick.start as usize);
                let mut values = _mm512_maskz_expandloadu_ps(pick.mask, from);
                if add {
                    values = _mm512_add_ps(values, _mm512_maskz_loadu_ps(pick.mask, place));
                }
                _mm512_mask_storeu_ps(place, pick.mask, values);
                from = from.add(pick.mask.count_ones() as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn only_ascending_columns_that_are_close_become_picks() {
        let all: Vec<u32> = (0..33).collect();
        assert!(Picks::<32>::of(&all[..32]).is_some());
        assert!(Picks::<32>::of(&all).is_none(), "more than there is room for");
        assert!(Picks::<32>::of(&[1, 0, 2]).is_none(), "not ascending");
        assert!(Picks::<32>::of(&[1, 1, 2]).is_none(), "twice");
        assert!(Picks::<32>::of(&[0, 20, 40, 60]).is_none(), "far apart");
        assert!(Picks::<32>::of(&[]).is_some());
    }

    #[test]
    fn picks_touch_only_their_columns() {
        if !Isa::available().contains(&Isa::Avx512) {
            return;
        }
        let row: Vec<f32> = (0..53).map(|value| value as f32).collect();
        let kept = |skip: u32| (0..53).filter(move |column| column % skip != 1);
        for columns in [kept(2).collect::<Vec<u32>>(), kept(5).collect(), vec![50, 51, 52], kept(60).take(16).collect()]
        {
            let picks = Picks::<64>::of(&columns).expect("close columns");
            let expected: Vec<f32> = columns.iter().map(|&column| row[column as usize]).collect();
            let mut gathered = vec![f32::NAN; columns.len() + 16];
            // SAFETY: the CPU has AVX-512.
            unsafe { picks.gather(&row, &mut gathered[..columns.len() + 15]) };
            assert_eq!(gathered[..columns.len()], expected);
            assert!(gathered[columns.len() + 15].is_nan(), "beyond the room");
            for add in [false, true] {
                let mut out = vec![0.5; 53];
                // SAFETY: the CPU has AVX-512, and the columns are inside `out`.
                unsafe { picks.scatter(&expected, out.as_mut_ptr(), add) };
                for (column, &found) in out.iter().enumerate() {
                    let wanted = match (columns.contains(&(column as u32)), add) {
                        (false, _) => 0.5,
                        (true, false) => row[column],
                        (true, true) => row[column] + 0.5,
                    };
                    assert_eq!(found, wanted, "{column}");
                }
            }
        }
    }

    #[test]
    fn a_column_beyond_the_row_and_too_little_room_are_refused() {
        if !Isa::available().contains(&Isa::Avx512) {
            return;
        }
        let refused = |columns: &[u32], room: usize| {
            let picks = Picks::<4>::of(columns).expect("close columns");
            // SAFETY: the CPU has AVX-512.
            std::panic::catch_unwind(|| unsafe { picks.gather(&[0.0; 8], &mut [0.0; 32][..room]) }).is_err()
        };
        assert!(refused(&[6, 7, 8], 18), "column 8 of 8");
        assert!(refused(&[5, 6, 7], 17), "room for 14 elements more");
        assert!(!refused(&[5, 6, 7], 18));
    }
}
