//! Stochastic gates and their sparsity penalty (METHOD.md §2–3), one vector at a time. Which gates belong to which layer
//! is the model's business.

use rayon::prelude::*;

use crate::cpu::{self, kernel};
use crate::math;

kernel! {
    fn values_part(theta: &[f32], out: &mut [f32]) {
        for (out, &theta) in out.iter_mut().zip(theta) {
            *out = math::limit(math::tanh::<FMA>(theta) + 0.5, 0.0, 1.0);
        }
    }

    fn noisy_values_part(theta: &[f32], noise: &[f32], out: &mut [f32]) {
        for ((out, &theta), &noise) in out.iter_mut().zip(theta).zip(noise) {
            *out = math::limit(math::tanh::<FMA>(theta) + noise + 0.5, 0.0, 1.0);
        }
    }

    fn probability_part(theta: &[f32], out: &mut [f32]) {
        for (out, &theta) in out.iter_mut().zip(theta) {
            *out = math::normal_probability::<FMA>(2.0 * math::tanh::<FMA>(theta) + 1.0);
        }
    }

    /// `dP/dθ = 2 φ(2μ + 1) (1 − μ²)`.
    fn probability_slope_part(theta: &[f32], out: &mut [f32]) {
        for (out, &theta) in out.iter_mut().zip(theta) {
            let mean = math::tanh::<FMA>(theta);
            *out = 2.0 * math::normal_density::<FMA>(2.0 * mean + 1.0) * (1.0 - mean * mean);
        }
    }

    fn backward_part(theta: &[f32], noise: &[f32], d_gate: &[f32], d_theta: &mut [f32]) {
        for (index, ((d_theta, &theta), &d_gate)) in d_theta.iter_mut().zip(theta).zip(d_gate).enumerate() {
            let mean = math::tanh::<FMA>(theta);
            let before = mean + if noise.is_empty() { 0.0 } else { noise[index] } + 0.5;
            // As torch.clamp: the bounds themselves pass the gradient.
            if (0.0..=1.0).contains(&before) || before.is_nan() {
                *d_theta += d_gate * (1.0 - mean * mean);
            }
        }
    }
}

/// `ω = clamp(tanh θ + ε + ½, 0, 1)`; without noise the values at evaluation.
///
/// # Panics
/// If the lengths differ.
pub fn gate_values(theta: &[f32], noise: Option<&[f32]>, out: &mut [f32]) {
    assert_eq!(out.len(), theta.len(), "gate_values: one value a gate");
    match noise {
        Some(noise) => {
            assert_eq!(noise.len(), theta.len(), "gate_values: one noise value a gate");
            noisy_values_part(cpu::isa(), theta, noise, out);
        }
        None => values_part(cpu::isa(), theta, out),
    }
}

/// `d_θ += d_ω · 1[0 ≤ tanh θ + ε + ½ ≤ 1] · (1 − tanh² θ)`.
///
/// # Panics
/// If the lengths differ.
pub fn gate_backward(theta: &[f32], noise: Option<&[f32]>, d_gate: &[f32], d_theta: &mut [f32]) {
    assert_eq!(d_gate.len(), theta.len(), "gate_backward: one gradient a gate");
    assert_eq!(d_theta.len(), theta.len(), "gate_backward: one result a gate");
    if let Some(noise) = noise {
        assert_eq!(noise.len(), theta.len(), "gate_backward: one noise value a gate");
    }
    backward_part(cpu::isa(), theta, noise.unwrap_or_default(), d_gate, d_theta);
}

/// `P = Φ((tanh θ + ½) / ½)`, the probability that a gate is open.
///
/// # Panics
/// If the lengths differ.
pub fn open_probability(theta: &[f32], out: &mut [f32]) {
    assert_eq!(out.len(), theta.len(), "open_probability: one value a gate");
    probability_part(cpu::isa(), theta, out);
}

/// `m = Σ κ_i P_i`, the mean probability that a gate of the vector is open; `κ = 1/n` without weights. 0 for no gates.
///
/// # Panics
/// If the lengths differ.
pub fn penalty_vector(theta: &[f32], weights: Option<&[f32]>) -> f64 {
    let mut probability = vec![0.0; theta.len()];
    open_probability(theta, &mut probability);
    match weights {
        Some(weights) => {
            assert_eq!(weights.len(), theta.len(), "penalty_vector: one weight a gate");
            probability.iter().zip(weights).map(|(&p, &weight)| f64::from(p) * f64::from(weight)).sum()
        }
        None => probability.iter().map(|&p| f64::from(p)).sum::<f64>() / theta.len().max(1) as f64,
    }
}

/// `d_θ += factor · κ_i · dP_i/dθ_i`, with `factor = dL/dm`.
///
/// # Panics
/// If the lengths differ.
pub fn penalty_backward(theta: &[f32], weights: Option<&[f32]>, factor: f32, d_theta: &mut [f32]) {
    assert_eq!(d_theta.len(), theta.len(), "penalty_backward: one gradient a gate");
    let mut slope = vec![0.0; theta.len()];
    probability_slope_part(cpu::isa(), theta, &mut slope);
    match weights {
        Some(weights) => {
            assert_eq!(weights.len(), theta.len(), "penalty_backward: one weight a gate");
            for ((d, &slope), &weight) in d_theta.iter_mut().zip(&slope).zip(weights) {
                *d += factor * weight * slope;
            }
        }
        None => {
            let factor = factor / theta.len().max(1) as f32;
            for (d, &slope) in d_theta.iter_mut().zip(&slope) {
                *d += factor * slope;
            }
        }
    }
}

/// Pearson kurtosis `m4 / m2²` from the sums of the first four powers of the deviations from some origin.
fn kurtosis(n: f64, sums: [f64; 4]) -> f32 {
    let [s1, s2, s3, s4] = sums.map(|sum| sum / n);
    let m2 = s2 - s1 * s1;
    let m4 = s4 - 4.0 * s1 * s3 + 6.0 * s1 * s1 * s2 - 3.0 * s1.powi(4);
    // Rounding leaves a variance of about 1e-16 of the square; what is smaller is a constant vector.
    if m2 <= 1e-14 * s2 { 3.0 } else { (m4 / (m2 * m2)) as f32 }
}

kernel! {
    fn row_power_sums(row: &[f32], x_mean: &[f32], origin: f64) -> [f64; 4] {
        let mut lanes = [[0.0_f64; 8]; 4];
        let (w_chunks, w_tail) = row.as_chunks::<8>();
        let (x_chunks, x_tail) = x_mean.as_chunks::<8>();
        for (w, x) in w_chunks.iter().zip(x_chunks) {
            for lane in 0..8 {
                let v = f64::from(w[lane]) * f64::from(x[lane]) - origin;
                let square = v * v;
                lanes[0][lane] += v;
                lanes[1][lane] += square;
                lanes[2][lane] += square * v;
                lanes[3][lane] += square * square;
            }
        }
        let mut sums = lanes.map(|lanes| lanes.iter().sum::<f64>());
        for (&w, &x) in w_tail.iter().zip(x_tail) {
            let v = f64::from(w) * f64::from(x) - origin;
            let square = v * v;
            for (sum, power) in sums.iter_mut().zip([v, square, square * v, square * square]) {
                *sum += power;
            }
        }
        sums
    }

    fn column_power_sums(weight: &[f32], columns: usize, start: usize, sums: &mut [[f64; 4]]) {
        let origin = &weight[start..start + sums.len()];
        for row in weight.chunks_exact(columns) {
            for ((&w, &origin), sums) in row[start..].iter().zip(origin).zip(sums.iter_mut()) {
                let v = f64::from(w) - f64::from(origin);
                let square = v * v;
                sums[0] += v;
                sums[1] += square;
                sums[2] += square * v;
                sums[3] += square * square;
            }
        }
    }
}

/// Pearson kurtosis `m4 / m2²` of every row of `x̄ ⊙ W`, in one pass and without making the product.
///
/// A row that is constant has none and gets 3, a normal distribution's. Rounding near constancy counts as constant.
///
/// # Shapes
/// `weight` `[rows, columns]`, `x_mean` `[columns]`, `row_kurtosis` `[rows]`.
///
/// # Panics
/// If a shape does not fit.
pub fn row_column_kurtosis(weight: &[f32], rows: usize, columns: usize, x_mean: &[f32], row_kurtosis: &mut [f32]) {
    assert_eq!(weight.len(), rows * columns, "row_column_kurtosis: weight of {rows} rows and {columns} columns");
    assert_eq!(x_mean.len(), columns, "row_column_kurtosis: one mean a column");
    assert_eq!(row_kurtosis.len(), rows, "row_column_kurtosis: one result a row");
    if columns == 0 {
        return row_kurtosis.fill(3.0);
    }
    let isa = cpu::isa();
    row_kurtosis.par_iter_mut().zip(weight.par_chunks_exact(columns)).with_min_len(16).for_each(|(out, row)| {
        // The first element as origin keeps a large common value from drowning the moments.
        let origin = f64::from(row[0]) * f64::from(x_mean[0]);
        *out = kurtosis(columns as f64, row_power_sums(isa, row, x_mean, origin));
    });
}

/// Pearson kurtosis of every column of `W`; a constant column gets 3.
///
/// Kurtosis does not change with scale, so this is that of the columns of `x̄ ⊙ W` wherever `x̄` is not 0.
///
/// # Shapes
/// `weight` `[rows, columns]`, `out` `[columns]`.
///
/// # Panics
/// If a shape does not fit.
pub fn column_kurtosis(weight: &[f32], rows: usize, columns: usize, out: &mut [f32]) {
    assert_eq!(weight.len(), rows * columns, "column_kurtosis: weight of {rows} rows and {columns} columns");
    assert_eq!(out.len(), columns, "column_kurtosis: one result a column");
    if rows == 0 {
        return out.fill(3.0);
    }
    let isa = cpu::isa();
    out.par_chunks_mut(64).enumerate().for_each(|(index, out)| {
        let mut sums = [[0.0; 4]; 64];
        let sums = &mut sums[..out.len()];
        column_power_sums(isa, weight, columns, index * 64, sums);
        for (out, &sums) in out.iter_mut().zip(sums.iter()) {
            *out = kurtosis(rows as f64, sums);
        }
    });
}

/// `κ = softmax(−√Kurt / τ)` over the open gates, 0 elsewhere; all 0 when none is open.
///
/// # Panics
/// If the lengths differ.
pub fn softmax_of_kurtosis(kurtosis: &[f32], open: &[bool], temperature: f32, out: &mut [f32]) {
    assert_eq!(open.len(), kurtosis.len(), "softmax_of_kurtosis: one flag a gate");
    assert_eq!(out.len(), kurtosis.len(), "softmax_of_kurtosis: one weight a gate");
    let score = |kurtosis: f32| -f64::from(kurtosis).sqrt() / f64::from(temperature);
    let scores = || kurtosis.iter().zip(open).filter(|&(_, &open)| open).map(|(&kurtosis, _)| score(kurtosis));
    let maximum = scores().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores().map(|score| (score - maximum).exp()).sum();
    for ((out, &kurtosis), &open) in out.iter_mut().zip(kurtosis).zip(open) {
        *out = if open { ((score(kurtosis) - maximum).exp() / sum) as f32 } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Isa, with_isa};
    use crate::tests::{erf, numbers};

    fn exact_value(theta: f64, noise: f64) -> f64 {
        (theta.tanh() + noise + 0.5).clamp(0.0, 1.0)
    }

    fn exact_probability(theta: f64) -> f64 {
        0.5 * (1.0 + erf((theta.tanh() + 0.5) * std::f64::consts::SQRT_2))
    }

    #[test]
    fn values_probabilities_and_gradients_follow_the_equations() {
        for isa in Isa::available() {
            for n in [0, 1, 17, 400] {
                with_isa(isa, || check(n, isa));
            }
        }
    }

    fn check(n: usize, isa: Isa) {
        let theta = numbers(1, n);
        let noise: Vec<f32> = numbers(2, n).iter().map(|x| 0.1 * x).collect();
        let d_gate = numbers(3, n);
        let (mut values, mut noisy, mut open) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        gate_values(&theta, None, &mut values);
        gate_values(&theta, Some(&noise), &mut noisy);
        open_probability(&theta, &mut open);
        let mut d_theta = vec![1.0; n];
        gate_backward(&theta, Some(&noise), &d_gate, &mut d_theta);
        let weights: Vec<f32> = (0..n).map(|i| (i as f32 + 1.0) / n as f32).collect();
        let (mut d_plain, mut d_weighted) = (vec![1.0; n], vec![1.0; n]);
        penalty_backward(&theta, None, 3.0, &mut d_plain);
        penalty_backward(&theta, Some(&weights), 3.0, &mut d_weighted);
        for i in 0..n {
            let (x, e) = (f64::from(theta[i]), f64::from(noise[i]));
            assert!((f64::from(values[i]) - exact_value(x, 0.0)).abs() < 3e-7, "{isa}");
            assert!((f64::from(noisy[i]) - exact_value(x, e)).abs() < 3e-7, "{isa}");
            assert!((f64::from(open[i]) - exact_probability(x)).abs() < 3e-7, "{isa}");
            let h = 1e-5;
            if (exact_value(x, e) - exact_value(x + h, e)).abs() > 0.0 || noisy[i] == 0.0 || noisy[i] == 1.0 {
                let slope = (exact_value(x + h, e) - exact_value(x - h, e)) / (2.0 * h);
                assert!((f64::from(d_theta[i]) - 1.0 - f64::from(d_gate[i]) * slope).abs() < 1e-5, "{isa}");
            }
            let slope = (exact_probability(x + h) - exact_probability(x - h)) / (2.0 * h);
            assert!((f64::from(d_plain[i]) - 1.0 - 3.0 * slope / n as f64).abs() < 1e-5, "{isa}");
            assert!((f64::from(d_weighted[i]) - 1.0 - 3.0 * f64::from(weights[i]) * slope).abs() < 2e-5, "{isa}");
        }
        let mean = theta.iter().map(|&x| exact_probability(f64::from(x))).sum::<f64>() / n.max(1) as f64;
        assert!((penalty_vector(&theta, None) - mean).abs() < 1e-7);
        let weighted: f64 =
            theta.iter().zip(&weights).map(|(&x, &w)| f64::from(w) * exact_probability(f64::from(x))).sum();
        assert!((penalty_vector(&theta, Some(&weights)) - weighted).abs() < 1e-6 * weighted.max(1.0));
    }

    #[test]
    fn the_bounds_of_the_clamp_pass_the_gradient_as_in_pytorch() {
        // tanh(0) + ½ + ε is exactly 0 and exactly 1.
        for isa in Isa::available() {
            let mut d = [0.0; 4];
            with_isa(isa, || gate_backward(&[0.0; 4], Some(&[-0.5, 0.5, -0.6, 0.6]), &[1.0; 4], &mut d));
            assert_eq!(d, [1.0, 1.0, 0.0, 0.0], "{isa}");
        }
    }

    fn exact_kurtosis(x: &[f64]) -> f64 {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let moment = |power: i32| x.iter().map(|x| (x - mean).powi(power)).sum::<f64>() / n;
        if moment(2) == 0.0 { 3.0 } else { moment(4) / moment(2).powi(2) }
    }

    #[test]
    fn kurtosis_of_rows_and_columns_follows_its_definition() {
        for isa in Isa::available() {
            for (rows, columns) in [(1, 1), (3, 2), (70, 37), (5, 400)] {
                let mut weight: Vec<f32> = numbers(1, rows * columns).iter().map(|x| 5.0 + 0.1 * x).collect();
                weight[..columns].fill(2.0);
                let mut x_mean = numbers(2, columns);
                x_mean[0] = 0.0;
                let (mut by_row, mut by_column) = (vec![0.0; rows], vec![0.0; columns]);
                with_isa(isa, || {
                    row_column_kurtosis(&weight, rows, columns, &x_mean, &mut by_row);
                    column_kurtosis(&weight, rows, columns, &mut by_column);
                });
                for (row, &found) in by_row.iter().enumerate() {
                    let product: Vec<f64> =
                        (0..columns).map(|c| f64::from(weight[row * columns + c]) * f64::from(x_mean[c])).collect();
                    let expected = exact_kurtosis(&product);
                    assert!(
                        (f64::from(found) - expected).abs() < 1e-6 * expected,
                        "{isa} row {row}: {found} {expected}"
                    );
                }
                for (column, &found) in by_column.iter().enumerate() {
                    let values: Vec<f64> = (0..rows).map(|r| f64::from(weight[r * columns + column])).collect();
                    let expected = exact_kurtosis(&values);
                    assert!(
                        (f64::from(found) - expected).abs() < 1e-6 * expected,
                        "{isa} {column}: {found} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn weights_of_kurtosis_are_a_softmax_over_open_gates() {
        let mut weights = [1.0; 4];
        softmax_of_kurtosis(&[3.0, 9.0, 4.0, 100.0], &[true, true, true, false], 10.0, &mut weights);
        let score = |kurtosis: f64| (-kurtosis.sqrt() / 10.0).exp();
        let sum = score(3.0) + score(9.0) + score(4.0);
        for (found, expected) in weights.iter().zip([score(3.0) / sum, score(9.0) / sum, score(4.0) / sum, 0.0]) {
            assert!((f64::from(*found) - expected).abs() < 1e-7, "{found} {expected}");
        }
        softmax_of_kurtosis(&[3.0], &[false], 10.0, &mut weights[..1]);
        assert_eq!(weights[0], 0.0);
    }
}
