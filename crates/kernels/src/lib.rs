//! CPU arithmetic of finegates: packed matrix products with gather, scale and scatter; attention over ragged
//! sequences; rotary positions, norms, activations, reductions, gates, losses and the optimizer's step. It knows nothing of
//! models.
//!
//! Shape letters: `T` tokens, `N` outputs of a product, `K` its depth, `D` hidden, `S` sequences, `C` classes,
//! `V` vocabulary.
//! Everything is `f32`, row-major. Every public function asserts its shapes; a mismatch is a bug of the caller.
//!
//! Results do not depend on the number of threads: work is split over outputs, and where a sum has to be split, it is
//! split at places fixed by the shape. Parallel work runs in rayon's current pool; small work stays on the caller's thread.
//! The instruction set is chosen once at run time ([`cpu::isa`]).

pub mod cpu;
pub(crate) mod math;
pub mod parallel;
pub mod pool;

pub mod activation;
pub mod attention;
pub mod dropout;
pub mod embedding;
pub mod gate;
pub mod loss;
pub mod matrix;
pub mod norm;
pub mod optimizer;
pub mod peaks;
pub mod random;
pub mod reduce;
pub mod rotary;
pub mod sampling;

#[cfg(test)]
mod tests;
