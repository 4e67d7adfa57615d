//! What decoders add to the element-wise kernels, norms and losses, against f64 and its differences, on every instruction
//! set, with sizes 0, 1 and ragged tails.

use proptest::prelude::*;

use super::{KINDS, numbers, reference};
use crate::activation::{Activation, gated, gated_backward};
use crate::cpu::{Isa, with_isa};
use crate::loss::{IGNORED, token_cross_entropy, token_distillation, token_losses};
use crate::norm::{rms_norm_backward, rms_norm_forward};

fn exact(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// `f` at `x` with element `i` moved up and down: the central difference.
fn difference(x: &[f64], i: usize, f: impl Fn(&[f64]) -> f64) -> f64 {
    let at = |step: f64| {
        let mut x = x.to_vec();
        x[i] += step;
        f(&x)
    };
    (at(1e-5) - at(-1e-5)) / 2e-5
}

fn close(found: impl Into<f64>, expected: f64, tolerance: f64) -> bool {
    (found.into() - expected).abs() <= tolerance * expected.abs().max(1.0)
}

fn rms_norm(x: &[f64], gamma: &[f64], eps: f64) -> Vec<f64> {
    let factor = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt();
    x.iter().zip(gamma).map(|(x, g)| x * factor * g).collect()
}

#[test]
fn rms_norm_and_its_gradients_follow_the_f64_reference() {
    for isa in Isa::available() {
        for d in [1, 2, 15, 16, 33, 384] {
            for rows in [0, 1, 5] {
                with_isa(isa, || check_rms_norm(d, rows, &format!("{isa}, {rows} rows of {d}")));
            }
        }
        with_isa(isa, || rms_norm_forward(&[], 0, &[], 1e-5, &mut [], Some(&mut [])));
    }
}

fn check_rms_norm(d: usize, rows: usize, what: &str) {
    let x: Vec<f32> = numbers(1, rows * d).iter().map(|x| 3.0 * x + 1.0).collect();
    let (gamma, d_y, before) = (numbers(2, d), numbers(3, rows * d), numbers(4, rows * d));
    let eps = 0.1_f32;
    let (mut y, mut saved) = (vec![f32::NAN; rows * d], vec![f32::NAN; rows]);
    rms_norm_forward(&x, d, &gamma, eps, &mut y, Some(&mut saved));
    let mut unsaved = vec![f32::NAN; rows * d];
    rms_norm_forward(&x, d, &gamma, eps, &mut unsaved, None);
    assert_eq!(y, unsaved, "{what}");
    let (mut d_x, mut d_gamma) = (before.clone(), vec![0.5; d]);
    rms_norm_backward(&x, d, &gamma, &saved, &d_y, &mut d_x, Some(&mut d_gamma));
    let mut without = before.clone();
    rms_norm_backward(&x, d, &gamma, &saved, &d_y, &mut without, None);
    assert_eq!(d_x, without, "{what}");
    let (gamma, eps) = (exact(&gamma), f64::from(eps));
    let mut expected_d_gamma = vec![0.5; d];
    for row in 0..rows {
        let range = row * d..(row + 1) * d;
        let (x, d_y) = (exact(&x[range.clone()]), exact(&d_y[range.clone()]));
        let expected = rms_norm(&x, &gamma, eps);
        for (&found, expected) in y[range.clone()].iter().zip(&expected) {
            assert!(close(found, *expected, 1e-6), "{what}: {found} {expected}");
        }
        let loss = |x: &[f64], gamma: &[f64]| rms_norm(x, gamma, eps).iter().zip(&d_y).map(|(y, d)| y * d).sum::<f64>();
        for i in 0..d.min(20) {
            let expected = f64::from(before[row * d + i]) + difference(&x, i, |x| loss(x, &gamma));
            let found = d_x[row * d + i];
            assert!(close(found, expected, 1e-5), "{what}: d_x {found} {expected}");
            expected_d_gamma[i] += difference(&gamma, i, |gamma| loss(&x, gamma));
        }
    }
    for (&found, expected) in d_gamma.iter().zip(&expected_d_gamma).take(20) {
        assert!(close(found, *expected, 1e-5), "{what}: d_gamma {found} {expected}");
    }
}

#[test]
fn gating_and_its_gradients_follow_the_f64_reference() {
    for isa in Isa::available() {
        for kind in KINDS {
            for length in [0, 1, 16, 1_203] {
                with_isa(isa, || check_gated(kind, length, &format!("{isa} {kind:?} {length}")));
            }
        }
    }
}

fn check_gated(kind: Activation, length: usize, what: &str) {
    // Away from ReLU's corner.
    let gate: Vec<f32> = (0..length).map(|i| (i as f32 - 600.0) * 0.011 + 0.003_7).collect();
    let (up, d_out) = (numbers(1, length), numbers(2, length));
    let [mut out, mut d_gate, mut d_up] = [(); 3].map(|()| vec![f32::NAN; length]);
    gated(kind, &gate, &up, &mut out);
    gated_backward(kind, &gate, &up, &d_out, &mut d_gate, &mut d_up);
    for i in 0..length {
        let [x, up, d_out] = [gate[i], up[i], d_out[i]].map(f64::from);
        let h = 1e-5;
        let (value, slope) = (reference(kind, x), (reference(kind, x + h) - reference(kind, x - h)) / (2.0 * h));
        assert!(close(out[i], value * up, 2e-6), "{what} {i}: {} {}", out[i], value * up);
        assert!(close(d_up[i], value * d_out, 2e-6), "{what} {i}: d_up {} {}", d_up[i], value * d_out);
        let expected = slope * up * d_out;
        assert!(close(d_gate[i], expected, 1e-5), "{what} {i}: d_gate {} {expected}", d_gate[i]);
    }
}

#[test]
fn far_gates_stay_finite_and_nan_shows() {
    let (gate, up, d) = ([1e30, -1e30, f32::NAN, 0.0], [1.0; 4], [1.0; 4]);
    for isa in Isa::available() {
        let [mut out, mut d_gate, mut d_up] = [[7.0; 4]; 3];
        with_isa(isa, || {
            gated(Activation::Silu, &gate, &up, &mut out);
            gated_backward(Activation::Silu, &gate, &up, &d, &mut d_gate, &mut d_up);
        });
        for (found, expected) in [(out, [1e30, 0.0, 0.0]), (d_up, [1e30, 0.0, 0.0]), (d_gate, [1.0, 0.0, 0.5])] {
            assert_eq!([found[0], found[1], found[3]], expected, "{isa}");
            assert!(found[2].is_nan(), "{isa}");
        }
    }
}

fn log_softmax(x: &[f64]) -> Vec<f64> {
    let maximum = x.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
    let log_sum = maximum + x.iter().map(|x| (x - maximum).exp()).sum::<f64>().ln();
    x.iter().map(|x| x - log_sum).collect()
}

fn divergence(teacher: &[f64], student: &[f64], temperature: f64) -> f64 {
    let log = |x: &[f64]| log_softmax(&x.iter().map(|x| x / temperature).collect::<Vec<_>>());
    let (teacher, student) = (log(teacher), log(student));
    let terms = teacher.iter().zip(&student).map(|(t, s)| if t.exp() > 0.0 { t.exp() * (t - s) } else { 0.0 });
    temperature * temperature * terms.sum::<f64>()
}

fn check_losses(rows: usize, v: usize, spread: f32, key: u64, what: &str) {
    let spread_out = |x: Vec<f32>| x.into_iter().map(|x| spread * x).collect::<Vec<f32>>();
    let (logits, teacher) = (spread_out(numbers(key, rows * v)), spread_out(numbers(key + 1, rows * v)));
    let target = |row: usize| if v == 0 || row % 4 == 1 { IGNORED } else { (row * 7 % v) as u32 };
    let targets: Vec<u32> = (0..rows).map(target).collect();
    let (mut gradients, mut student) = (logits.clone(), logits.clone());
    let [mut losses, mut again, mut divergences] = [(); 3].map(|()| vec![f64::NAN; rows]);
    token_losses(&logits, &targets, v, &mut losses);
    token_cross_entropy(&mut gradients, &targets, v, 0.3, &mut again);
    assert_eq!(losses, again, "{what}: both count the same");
    token_distillation(&mut student, &teacher, &targets, v, 1.7, 0.3, &mut divergences);
    let temperature = f64::from(1.7_f32);
    for row in 0..rows {
        let range = row * v..(row + 1) * v;
        let (x, y) = (exact(&logits[range.clone()]), exact(&teacher[range.clone()]));
        let log_probabilities = log_softmax(&x);
        let expected = if targets[row] == IGNORED { 0.0 } else { -log_probabilities[targets[row] as usize] };
        assert!(close(losses[row], expected, 1e-6), "{what}: loss {} {expected}", losses[row]);
        let ignored = targets[row] == IGNORED;
        let expected = if ignored { 0.0 } else { divergence(&y, &x, temperature) };
        // Differences of logits as they are, weighted and summed in f32.
        let tolerance = 1e-6 * f64::from(spread).max(1.0);
        assert!(close(divergences[row], expected, tolerance), "{what}: divergence {} {expected}", divergences[row]);
        let scaled = |x: &[f64]| log_softmax(&x.iter().map(|x| x / temperature).collect::<Vec<_>>());
        let (student_log, teacher_log) = (scaled(&x), scaled(&y));
        for i in 0..v {
            let onehot = if targets[row] as usize == i { 1.0 } else { 0.0 };
            let share = if targets[row] == IGNORED { 0.0 } else { log_probabilities[i].exp() - onehot };
            let found = gradients[row * v + i];
            assert!(close(found, f64::from(0.3_f32) * share, 3e-7), "{what}: gradient {found} {share}");
            let difference = if ignored { 0.0 } else { student_log[i].exp() - teacher_log[i].exp() };
            let expected = f64::from(0.3_f32) * temperature * difference;
            let found = student[row * v + i];
            // Exponents of some tens are rounded before the exponential.
            assert!(close(found, expected, 3e-7 * f64::from(spread).max(1.0)), "{what}: student {found} {expected}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn losses_of_tokens_follow_the_f64_reference(
        rows in 0..6_usize,
        v in prop_oneof![Just(0_usize), Just(1), 2..40_usize, 1_000..1_060_usize, 5_000..5_010_usize],
        spread in prop_oneof![Just(1.0_f32), Just(8.0)],
        key in any::<u64>(),
    ) {
        for isa in Isa::available() {
            with_isa(isa, || check_losses(rows, v, spread, key >> 1, &format!("{isa} {rows} rows of {v}")));
        }
    }
}

#[test]
fn a_whole_vocabulary_keeps_its_precision() {
    for isa in Isa::available() {
        with_isa(isa, || check_losses(2, 128_256, 1.0, 5, &format!("{isa}")));
    }
}

#[test]
fn gradients_of_the_losses_are_differences_of_their_values() {
    let (v, x, y) = (9, exact(&numbers(1, 9)), exact(&numbers(2, 9)));
    let as_f32 = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let (mut gradient, mut student, mut loss) = (as_f32(&x), as_f32(&x), [0.0]);
    token_cross_entropy(&mut gradient, &[4], v, 0.3, &mut loss);
    token_distillation(&mut student, &as_f32(&y), &[4], v, 2.5, 0.3, &mut loss);
    for i in 0..v {
        let expected = 0.3 * difference(&x, i, |x| -log_softmax(x)[4]);
        assert!(close(gradient[i], expected, 1e-6), "{i}: {} {expected}", gradient[i]);
        let expected = 0.3 * difference(&x, i, |x| divergence(&y, x, 2.5));
        assert!(close(student[i], expected, 1e-6), "{i}: {} {expected}", student[i]);
    }
}

#[test]
fn ruled_out_tokens_are_no_harm_and_nan_shows() {
    let infinite = f32::NEG_INFINITY;
    for isa in Isa::available() {
        with_isa(isa, || {
            let (mut logits, mut losses) = ([1.0, infinite, 1.0, 5.0, f32::NAN, 0.0], [9.0; 2]);
            token_cross_entropy(&mut logits[..3], &[0], 3, 1.0, &mut losses[..1]);
            assert!((losses[0] - 2.0_f64.ln()).abs() < 1e-7 && logits[..3] == [-0.5, 0.0, 0.5], "{isa} {logits:?}");
            token_cross_entropy(&mut logits[3..], &[0], 3, 1.0, &mut losses[1..]);
            assert!(losses[1].is_nan() && logits[3..].iter().any(|x| x.is_nan()), "{isa}");
            let (teacher, mut student, mut loss) = ([0.0, infinite, 0.0], [2.0, infinite, 2.0], [9.0]);
            token_distillation(&mut student, &teacher, &[0], 3, 2.0, 1.0, &mut loss);
            assert!(loss[0].abs() < 1e-7 && student == [0.0; 3], "{isa} {loss:?} {student:?}");
            let mut student = [2.0, f32::NAN, 2.0];
            token_distillation(&mut student, &teacher, &[0], 3, 2.0, 1.0, &mut loss);
            assert!(loss[0].is_nan(), "{isa}");
        });
    }
}

#[test]
#[should_panic(expected = "target 3 of 3 tokens")]
fn a_target_beyond_the_vocabulary_is_a_bug() {
    token_losses(&[0.0; 3], &[3], 3, &mut [0.0]);
}
