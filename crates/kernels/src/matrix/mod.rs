//! Products with a frozen weight: gather and scale the input's columns, multiply, then scale, bias, activation and
//! scatter. The weight is packed once into panels of 32 outputs, in `f32` or bf16; activations and sums are `f32`, but that a
//! unit for bf16 ([`crate::cpu::bf16_unit`]) rounds the activations of a product with a bf16 weight.

pub(crate) mod aligned;
pub mod bf16;
mod driver;
pub(crate) mod operand;
pub(crate) mod packed;
pub(crate) mod pairs;
#[cfg(target_arch = "x86_64")]
mod picks;
mod split;
mod stream;
#[cfg(test)]
mod tests;
pub(crate) mod tile;
pub(crate) mod transpose;
mod weights;

pub use crate::activation::Activation;
pub use packed::{PANEL, PackedMatrix, Precision};

use std::cell::Cell;

use aligned::Aligned;
use driver::{Product, Target};
use operand::{Left, Panels, Right};

use crate::cpu;
use crate::parallel::{self, Shared};

/// The left operand of [`multiply`]: `T` rows of activations.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// `[rows, …]` with rows `stride` apart.
    pub data: &'a [f32],
    /// `T`.
    pub rows: usize,
    /// Distance between rows.
    pub stride: usize,
    /// Which columns of `data` take part, in the order of the depth; `None` = the first `k`.
    pub columns: Option<&'a [u32]>,
    /// A factor for each of the `k` columns.
    pub scale: Option<&'a [f32]>,
}

/// Where and how [`multiply`] writes its result.
#[derive(Debug)]
pub struct Output<'a> {
    /// `[T, …]` with rows `stride` apart.
    pub data: &'a mut [f32],
    /// Distance between rows.
    pub stride: usize,
    /// Column of `data` that output `n` goes to, each at most once; other columns stay as they are. `None` = column `n`.
    pub columns: Option<&'a [u32]>,
    /// Added to the product, one an output.
    pub bias: Option<&'a [f32]>,
    /// Multiplies product and bias, one an output.
    pub scale: Option<&'a [f32]>,
    /// Applied after scale and bias.
    pub activation: Activation,
    /// Whether the result is added to `data` instead of replacing it.
    pub add: bool,
}

/// Runs two pieces of work that each do products of `rows` rows. A few rows take no longer than reading the weights, so that
/// a second hand-over between threads shows: both then go to the pool at once. More rows run one after the other.
pub fn together(rows: usize, one: impl FnOnce() + Send, other: impl FnOnce() + Send) {
    if rows <= stream::most_rows(cpu::isa()) && rayon::current_num_threads() > 1 {
        rayon::join(one, other);
    } else {
        one();
        other();
    }
}

/// `out[t, n] = activation(scale[n] · (Σ_k a[t, k] · B[n, k] + bias[n]))`, or `+=`.
///
/// `a` is `input` after gather and scale. `depth` says which depth rows of the packed weight pair with the `k` columns of the
/// input; `None` = all of them. `k = 0` leaves the bias. With a bf16 weight and more than a few rows `a` is rounded to bf16
/// where there is a unit for it ([`cpu::bf16_unit`]).
///
/// # Panics
/// If a shape does not fit, an index is out of range, or two outputs go to the same column.
pub fn multiply(input: &Input<'_>, weight: &PackedMatrix, depth: Option<&[u32]>, output: &mut Output<'_>) {
    let k = depth.map_or(weight.depth(), <[u32]>::len);
    check_input(input, k);
    check_output(output, input.rows, weight.outputs());
    if let Some(row) = depth.and_then(|depth| depth.iter().find(|&&row| row as usize >= weight.depth())) {
        panic!("multiply: depth row {row} of {}", weight.depth());
    }
    let product = Product {
        rows: input.rows,
        depth: k,
        outputs: weight.outputs(),
        left: Left::Rows { data: input.data, stride: input.stride, columns: input.columns, scale: input.scale },
        right: weight.operand(depth),
        target: Target {
            out: Shared::new(output.data),
            stride: output.stride,
            rows: None,
            columns: output.columns,
            bias: output.bias,
            scale: output.scale,
            activation: output.activation,
            add: output.add,
        },
    };
    // SAFETY: the output is borrowed exclusively, its rows do not overlap and no two outputs share a column (`check_output`).
    unsafe { product.run(cpu::isa(), cpu::bf16_unit()) };
}

fn check_input(input: &Input<'_>, k: usize) {
    let width = match input.columns {
        Some(columns) => {
            assert_eq!(columns.len(), k, "multiply: one input column a depth row");
            columns.iter().max().map_or(0, |&column| column as usize + 1)
        }
        None => k,
    };
    if let Some(scale) = input.scale {
        assert_eq!(scale.len(), k, "multiply: one scale an input column");
    }
    check_rows("multiply: input", input.data.len(), input.rows, input.stride, width);
}

fn check_output(output: &Output<'_>, rows: usize, outputs: usize) {
    let width = match output.columns {
        Some(columns) => {
            assert_eq!(columns.len(), outputs, "multiply: one column an output");
            let width = columns.iter().max().map_or(0, |&column| column as usize + 1);
            if !columns.is_sorted_by(|a, b| a < b) {
                let mut taken = vec![false; width];
                for &column in columns {
                    assert!(
                        !std::mem::replace(&mut taken[column as usize], true),
                        "multiply: two outputs in column {column}"
                    );
                }
            }
            width
        }
        None => outputs,
    };
    for (name, values) in [("bias", output.bias), ("scale", output.scale)] {
        assert!(values.is_none_or(|values| values.len() == outputs), "multiply: one {name} value an output");
    }
    check_rows("multiply: output", output.data.len(), rows, output.stride, width);
}

fn check_rows(what: &str, length: usize, rows: usize, stride: usize, width: usize) {
    assert!(width <= stride || rows <= 1, "{what}: rows of {width} columns and stride {stride}");
    assert!(
        rows == 0 || width == 0 || (rows - 1) * stride + width <= length,
        "{what}: {rows} rows of {width} columns (stride {stride}) in {length} elements"
    );
}

/// One side of a weight's gradient: columns of `T` rows of activations or their gradients.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// `[t, width]`.
    pub data: &'a [f32],
    /// Columns in all, as many as the weight has on this side.
    pub width: usize,
    /// Which of them take part, ascending; `None` = all.
    pub columns: Option<&'a [u32]>,
    /// A factor for each that takes part.
    pub scale: Option<&'a [f32]>,
}

impl Side<'_> {
    fn count(&self) -> usize {
        self.columns.map_or(self.width, <[u32]>::len)
    }

    fn check(&self, name: &str, t: usize) {
        check_rows(name, self.data.len(), t, self.width, self.width);
        if let Some(columns) = self.columns {
            assert!(columns.is_sorted_by(|a, b| a < b), "{name}: ascending columns");
            let last = columns.last().map_or(0, |&column| column as usize + 1);
            assert!(last <= self.width, "{name}: column {last} of {}", self.width);
        }
        assert!(self.scale.is_none_or(|scale| scale.len() == self.count()), "{name}: one scale a column");
    }
}

/// `out[n, k] += Σ_t (s_n a[t, n]) (s_k b[t, k])` for the columns of both sides that take part: the gradient of a weight.
///
/// # Shapes
/// `out` `[a.width, b.width]`; where either column takes no part it stays as it is.
///
/// # Panics
/// If a shape does not fit, or columns are not ascending.
pub fn multiply_transposed(a: &Side<'_>, b: &Side<'_>, t: usize, out: &mut [f32]) {
    a.check("multiply_transposed: a", t);
    b.check("multiply_transposed: b", t);
    let (n, k) = (a.count(), b.count());
    assert_eq!(out.len(), a.width * b.width, "multiply_transposed: out of {} rows and {} columns", a.width, b.width);
    if n * k == 0 {
        return;
    }
    let isa = cpu::isa();
    let (mut panels, mut gathered) = (PACKED.take(), GATHERED.take());
    let shared = Shared::new(out);
    for first in (0..t).step_by(TOKENS) {
        let depth = TOKENS.min(t - first);
        let packed = panels.room(k.div_ceil(PANEL) * depth * PANEL);
        packed::pack_columns(&b.data[first * b.width..], b.width, depth, k, b.columns, packed);
        let mut left = &a.data[first * a.width..][..depth * a.width];
        if a.columns.is_some() || a.scale.is_some() {
            let room = &mut gathered.room(depth * n)[..depth * n];
            parallel::rows_mut(room, n, |row, out| {
                for (row, out) in left[row * a.width..].chunks_exact(a.width).zip(out.chunks_exact_mut(n)) {
                    operand::copy_row(isa, row, a.columns, a.scale, 0..n, out);
                }
            });
            left = room;
        }
        let product = Product {
            rows: n,
            depth,
            outputs: k,
            left: Left::Transposed { data: left, stride: n },
            right: Right { panels: Panels::F32(packed), stored_depth: depth, index: None },
            target: Target {
                out: shared,
                stride: b.width,
                rows: a.columns,
                columns: b.columns,
                bias: None,
                scale: b.scale,
                activation: Activation::None,
                add: true,
            },
        };
        // SAFETY: the output is borrowed exclusively and `[a.width, b.width]`; rows and columns are ascending and inside it.
        unsafe { product.run(isa, None) };
    }
    PACKED.set(panels);
    GATHERED.set(gathered);
}

/// Tokens that [`multiply_transposed`] packs at a time.
const TOKENS: usize = 2048;

thread_local! {
    static PACKED: Cell<Aligned> = Cell::default();
    static GATHERED: Cell<Aligned> = Cell::default();
}
