//! Element-wise activations, alone and as the gate of a product, forward and backward, and the enum that names them also for the epilogue of a matrix product.

use crate::cpu::{self, kernel};
use crate::math::{self, mul_add};
use crate::parallel::{self, Shared};

/// An element-wise function applied to the output of a linear layer. Each but [`Activation::None`] is bounded or grows
/// at most linearly, and all of them map 0 to 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// `x Φ(x)`, with the error function.
    Gelu,
    /// `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + e^-x)`.
    Silu,
    /// The hyperbolic tangent.
    Tanh,
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
fn gelu_tanh_inner<const FMA: bool>(x: f32) -> f32 {
    SQRT_2_OVER_PI * x * mul_add::<FMA>(CUBIC * x, x, 1.0)
}

#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> f32 {
    x * math::normal_probability::<FMA>(x)
}

#[inline(always)]
fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    0.5 * x * (1.0 + math::tanh::<FMA>(gelu_tanh_inner::<FMA>(x)))
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn relu_slope(x: f32) -> f32 {
    // NaN stays NaN.
    if x > 0.0 {
        1.0
    } else if x <= 0.0 {
        0.0
    } else {
        x
    }
}

#[inline(always)]
fn silu<const FMA: bool>(x: f32) -> f32 {
    x * math::sigmoid::<FMA>(x)
}

#[inline(always)]
fn gelu_slope<const FMA: bool>(x: f32) -> f32 {
    // The density is 0 long before x could overflow the product.
    let x = math::limit(x, -1e4, 1e4);
    mul_add::<FMA>(x, math::normal_density::<FMA>(x), math::normal_probability::<FMA>(x))
}

#[inline(always)]
fn gelu_tanh_slope<const FMA: bool>(x: f32) -> f32 {
    let x = math::limit(x, -1e4, 1e4);
    let t = math::tanh::<FMA>(gelu_tanh_inner::<FMA>(x));
    let inner_slope = SQRT_2_OVER_PI * mul_add::<FMA>(3.0 * CUBIC * x, x, 1.0);
    mul_add::<FMA>(0.5 * x * (1.0 - t * t), inner_slope, 0.5 * (1.0 + t))
}

#[inline(always)]
fn silu_slope<const FMA: bool>(x: f32) -> f32 {
    let x = math::limit(x, -1e4, 1e4);
    let s = math::sigmoid::<FMA>(x);
    s * mul_add::<FMA>(x, 1.0 - s, 1.0)
}

#[inline(always)]
fn tanh_slope<const FMA: bool>(x: f32) -> f32 {
    let t = math::tanh::<FMA>(x);
    1.0 - t * t
}

// Loops are macros: a function handed to a loop would not be compiled for the caller's instruction set.
macro_rules! map {
    ($x:expr, $f:expr) => {
        for x in $x {
            *x = $f(*x);
        }
    };
}

macro_rules! map_gradient {
    ($x:expr, $d:expr, $slope:expr) => {
        for (d, &x) in $d.iter_mut().zip($x) {
            *d *= $slope(x);
        }
    };
}

/// Applies `kind` to a run of values; inlined into other kernels' bodies.
#[inline(always)]
pub(crate) fn apply<const FMA: bool>(kind: Activation, x: &mut [f32]) {
    match kind {
        Activation::None => {}
        Activation::Gelu => map!(x, gelu::<FMA>),
        Activation::GeluTanh => map!(x, gelu_tanh::<FMA>),
        Activation::Relu => map!(x, relu),
        Activation::Silu => map!(x, silu::<FMA>),
        Activation::Tanh => map!(x, math::tanh::<FMA>),
    }
}

/// Multiplies `d` by the slope of `kind` at `x`.
#[inline(always)]
fn apply_slope<const FMA: bool>(kind: Activation, x: &[f32], d: &mut [f32]) {
    match kind {
        Activation::None => {}
        Activation::Gelu => map_gradient!(x, d, gelu_slope::<FMA>),
        Activation::GeluTanh => map_gradient!(x, d, gelu_tanh_slope::<FMA>),
        Activation::Relu => map_gradient!(x, d, relu_slope),
        Activation::Silu => map_gradient!(x, d, silu_slope::<FMA>),
        Activation::Tanh => map_gradient!(x, d, tanh_slope::<FMA>),
    }
}

kernel! {
    fn forward(kind: Activation, x: &mut [f32]) {
        apply::<FMA>(kind, x);
    }

    fn backward(kind: Activation, x: &[f32], d: &mut [f32]) {
        apply_slope::<FMA>(kind, x, d);
    }

    fn gated_forward(kind: Activation, up: &[f32], out: &mut [f32]) {
        if kind == Activation::Silu {
            for (out, &up) in out.iter_mut().zip(up) {
                *out = silu::<FMA>(*out) * up;
            }
            return;
        }
        apply::<FMA>(kind, out);
        for (out, &up) in out.iter_mut().zip(up) {
            *out *= up;
        }
    }

    fn gated_gradients(kind: Activation, gate: &[f32], up: &[f32], d_out: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        let values = gate.iter().zip(up).zip(d_out).zip(d_gate.iter_mut().zip(d_up.iter_mut()));
        if kind == Activation::Silu {
            // One exponential for value and slope.
            for (((&gate, &up), &d_out), (d_gate, d_up)) in values {
                let sigmoid = math::sigmoid::<FMA>(gate);
                let near = math::limit(gate, -1e4, 1e4);
                *d_up = d_out * (gate * sigmoid);
                *d_gate = d_out * up * (sigmoid * mul_add::<FMA>(near, 1.0 - sigmoid, 1.0));
            }
            return;
        }
        for (((&gate, &up), &d_out), (d_gate, d_up)) in values {
            *d_gate = d_out * up;
            *d_up = gate;
        }
        apply_slope::<FMA>(kind, gate, d_gate);
        apply::<FMA>(kind, d_up);
        for (d_up, &d_out) in d_up.iter_mut().zip(d_out) {
            *d_up *= d_out;
        }
    }
}

/// `y = f(x)`.
///
/// # Panics
/// If the lengths differ.
pub fn activate(kind: Activation, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "activate: y as long as x");
    let isa = cpu::isa();
    parallel::rows_mut(y, 1, |start, y| {
        y.copy_from_slice(&x[start..start + y.len()]);
        forward(isa, kind, y);
    });
}

/// `x = f(x)`.
pub fn activate_in_place(kind: Activation, x: &mut [f32]) {
    let isa = cpu::isa();
    parallel::rows_mut(x, 1, |_, x| forward(isa, kind, x));
}

/// `d *= f'(x)`: from the gradient of the output to that of the input `x` (the value before activation).
///
/// # Panics
/// If the lengths differ.
pub fn activate_backward(kind: Activation, x: &[f32], d: &mut [f32]) {
    assert_eq!(x.len(), d.len(), "activate_backward: d as long as x");
    let isa = cpu::isa();
    parallel::rows_mut(d, 1, |start, d| backward(isa, kind, &x[start..start + d.len()], d));
}

/// `out = f(gate) · up` (GLU variants, N. Shazeer, 2020).
///
/// # Panics
/// If the lengths differ.
pub fn gated(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!(gate.len(), out.len(), "gated: out as long as the gate");
    assert_eq!(up.len(), out.len(), "gated: out as long as what is gated");
    let isa = cpu::isa();
    parallel::rows_mut(out, 1, |start, out| {
        let parts = gate[start..].chunks(GATED_AT_ONCE).zip(up[start..].chunks(GATED_AT_ONCE));
        for (out, (gate, up)) in out.chunks_mut(GATED_AT_ONCE).zip(parts) {
            let length = out.len();
            out.copy_from_slice(&gate[..length]);
            gated_forward(isa, activation, &up[..length], out);
        }
    });
}

/// Elements that [`gated`] takes at a time: few, so that they are in the first-level cache when they are computed.
const GATED_AT_ONCE: usize = 1024;

/// Gradients of [`gated`]: `d_gate = d_out · up · f'(gate)` and `d_up = d_out · f(gate)`, both overwritten.
///
/// # Panics
/// If the lengths differ.
pub fn gated_backward(
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    d_out: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
) {
    for (name, length) in [("up", up.len()), ("d_out", d_out.len()), ("d_gate", d_gate.len()), ("d_up", d_up.len())] {
        assert_eq!(length, gate.len(), "gated_backward: {name} as long as the gate");
    }
    let isa = cpu::isa();
    let d_up = Shared::new(d_up);
    parallel::rows_mut(d_gate, 1, |start, d_gate| {
        let part = start..start + d_gate.len();
        // SAFETY: every task has elements of its own.
        let d_up = unsafe { d_up.slice(start, d_gate.len()) };
        gated_gradients(isa, activation, &gate[part.clone()], &up[part.clone()], &d_out[part], d_gate, d_up);
    });
}
