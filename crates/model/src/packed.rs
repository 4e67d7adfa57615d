//! A packed weight that follows its gates: what is closed for good is left out of it.

use std::sync::Arc;

use finegates_kernels::matrix::PackedMatrix;

use crate::gate::Gate;

/// A weight packed for one direction, perhaps without outputs that are closed for now.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    pub(crate) matrix: Arc<PackedMatrix>,
    /// Outputs that are packed, ascending; `None` means all.
    pub(crate) kept: Option<Vec<u32>>,
}

impl Packed {
    pub(crate) fn whole(matrix: PackedMatrix) -> Self {
        Packed { matrix: Arc::new(matrix), kept: None }
    }

    /// Packs other values of the same weight: `fill` does it for the outputs that are packed.
    pub(crate) fn refill(&mut self, fill: impl FnOnce(&mut PackedMatrix, Option<&[u32]>)) {
        fill(Arc::make_mut(&mut self.matrix), self.kept.as_deref());
    }

    fn covers(&self, open: &[u32]) -> bool {
        let Some(kept) = &self.kept else { return true };
        let mut kept = kept.iter();
        open.iter().all(|index| kept.any(|candidate| candidate == index))
    }

    /// Packs anew when an open output is missing or a twentieth of what is packed is closed for good: from all there was,
    /// or by leaving out more of what is packed.
    pub(crate) fn follow(&mut self, gate: &Gate, build: Option<impl FnOnce(Option<&[u32]>) -> PackedMatrix>) {
        let (possible, packed) = (gate.possible(), self.matrix.outputs());
        if self.covers(gate.open()) && possible.len() * 20 >= packed * 19 {
            return;
        }
        let kept = (possible.len() < gate.values().len()).then(|| possible.to_vec());
        let matrix = match (build, &kept) {
            (Some(build), kept) => build(kept.as_deref()),
            // What opens again is not there any more, which gates that close for good do not.
            (None, _) if !self.covers(possible) => return,
            (None, None) => return,
            (None, Some(kept)) => match &self.kept {
                None => self.matrix.repack(Some(kept)),
                Some(before) => {
                    let mut places = 0..before.len() as u32;
                    let at = |index| places.find(|&place| before[place as usize] == index);
                    let among: Vec<u32> = kept.iter().copied().filter_map(at).collect();
                    self.matrix.repack(Some(&among))
                }
            },
        };
        self.matrix = Arc::new(matrix);
        self.kept = kept;
    }
}
