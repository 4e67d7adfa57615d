//! Element-wise activations, forward and backward, and the enum that names them also for the epilogue of a matrix product.

use crate::cpu::{self, kernel};
use crate::math::{self, mul_add};
use crate::parallel;

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

kernel! {
    fn forward(kind: Activation, x: &mut [f32]) {
        apply::<FMA>(kind, x);
    }

    fn backward(kind: Activation, x: &[f32], d: &mut [f32]) {
        match kind {
            Activation::None => {}
            Activation::Gelu => map_gradient!(x, d, gelu_slope::<FMA>),
            Activation::GeluTanh => map_gradient!(x, d, gelu_tanh_slope::<FMA>),
            Activation::Relu => map_gradient!(x, d, relu_slope),
            Activation::Silu => map_gradient!(x, d, silu_slope::<FMA>),
            Activation::Tanh => map_gradient!(x, d, tanh_slope::<FMA>),
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
