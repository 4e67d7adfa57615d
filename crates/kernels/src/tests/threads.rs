//! The same bits for any number of threads, of everything that splits its work, at sizes beyond every threshold below which
//! work stays on one thread.

use super::numbers;
use crate::activation::{Activation, activate, activate_backward, gated, gated_backward};
use crate::attention::{Head, Layout, Mask, attention_backward, attention_forward};
use crate::dropout::{Dropout, dropout};
use crate::matrix::{Side, multiply_transposed};
use crate::optimizer::{AdamW, Moved, Selected, adamw_step};
use crate::parallel::TASK_ELEMENTS;
use crate::rotary::{RotaryHead, RotaryTable, rotate};
use crate::{embedding, loss, norm, random, reduce};

/// Tokens and width of activations that are worth several tasks.
const TOKENS: usize = 700;
const WIDTH: usize = 130;
const _: () = assert!(TOKENS * WIDTH > 4 * TASK_ELEMENTS);

fn assert_same_bits(what: &str, run: impl Fn() -> Vec<Vec<f32>> + Sync) {
    let bits = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
        let results = pool.install(&run);
        results.into_iter().map(|result| result.into_iter().map(f32::to_bits).collect()).collect::<Vec<Vec<u32>>>()
    };
    let one = bits(1);
    assert!(one.iter().flatten().any(|&bits| bits != 0), "{what}: something is computed");
    for threads in [2, 3] {
        assert!(one == bits(threads), "{what}: {threads} threads give other bits than one");
    }
}

#[test]
fn attention_has_the_same_bits_for_any_number_of_threads() {
    let place = |head: usize| (head * 26, 26);
    let heads = |sharing: usize| -> Vec<Head> {
        let head = |head: usize| Head {
            query: place(head),
            key: place(head / sharing),
            value: place(head / sharing),
            output: place(head),
            bias: head,
        };
        (0..5).map(head).collect()
    };
    check_attention("attention", &heads(1), Mask::Full);
    check_attention("grouped causal attention", &heads(2), Mask::Causal { window: None });
    check_attention("attention in a window", &heads(5), Mask::Causal { window: Some(90) });
}

fn check_attention(what: &str, heads: &[Head], mask: Mask) {
    let offsets = [0, 300, 301, 430, 520, 700];
    let max = 300;
    let table = numbers(9, heads.len() * (2 * max - 1));
    let layout = Layout {
        offsets: &offsets,
        heads,
        query_stride: WIDTH,
        key_stride: WIDTH,
        value_stride: WIDTH,
        output_stride: WIDTH,
        scale: 0.2,
        mask,
        position_bias: Some((&table, max)),
        dropout: Some(Dropout { rate: 0.1, key: 3 }),
    };
    let [q, k, v, d_output] = [1, 2, 3, 4].map(|key| numbers(key, TOKENS * WIDTH));
    assert_same_bits(what, || {
        let mut output = vec![0.0; TOKENS * WIDTH];
        let mut saved = vec![0.0; TOKENS * heads.len()];
        attention_forward(&layout, &q, &k, &v, &mut output, Some(&mut saved));
        let [mut d_q, mut d_k, mut d_v] = [(); 3].map(|()| vec![0.0; TOKENS * WIDTH]);
        let mut d_table = vec![0.0; table.len()];
        let d_bias = Some(&mut d_table[..]);
        attention_backward(&layout, &q, &k, &v, &output, &d_output, &saved, &mut d_q, &mut d_k, &mut d_v, d_bias);
        vec![output, saved, d_q, d_k, d_v, d_table]
    });
}

#[test]
fn weight_gradients_have_the_same_bits_for_any_number_of_threads() {
    let (t, n, k) = (2_100, 150, 70);
    let (a, b) = (numbers(1, t * n), numbers(2, t * k));
    assert_same_bits("multiply_transposed", || {
        let mut out = numbers(3, n * k);
        let side = |data, width| Side { data, width, columns: None, scale: None };
        multiply_transposed(&side(&a, n), &side(&b, k), t, &mut out);
        let mut part = numbers(4, n * k);
        let (rows, columns): (Vec<u32>, Vec<u32>) = ((0..n as u32).step_by(2).collect(), (3..k as u32).collect());
        let scale = numbers(5, rows.len());
        let a = Side { columns: Some(&rows), scale: Some(&scale), ..side(&a, n) };
        multiply_transposed(&a, &Side { columns: Some(&columns), ..side(&b, k) }, t, &mut part);
        vec![out, part]
    });
}

#[test]
fn embeddings_have_the_same_bits_for_any_number_of_threads() {
    let rows = 50;
    let ids: Vec<u32> = (0..TOKENS as u64).map(|t| (random::mix(2, t) % rows as u64) as u32).collect();
    let (table, d_out) = (numbers(1, rows * WIDTH), numbers(2, TOKENS * WIDTH));
    assert_same_bits("gather_add and scatter_add", || {
        let (mut out, mut d_table) = (vec![0.0; TOKENS * WIDTH], vec![0.0; rows * WIDTH]);
        embedding::gather_add(&table, WIDTH, &ids, &mut out);
        embedding::scatter_add(&d_out, WIDTH, &ids, &mut d_table);
        vec![out, d_table]
    });
}

#[test]
fn norms_have_the_same_bits_for_any_number_of_threads() {
    let [x, residual, d_y] = [1, 2, 3].map(|key| numbers(key, TOKENS * WIDTH));
    let (gamma, beta) = (numbers(4, WIDTH), numbers(5, WIDTH));
    assert_same_bits("layer norm", || {
        let (mut sum, mut y, mut d_x) = (x.clone(), vec![0.0; x.len()], vec![0.0; x.len()]);
        let (mut mean, mut rstd) = (vec![0.0; TOKENS], vec![0.0; TOKENS]);
        let saved = Some((&mut mean[..], &mut rstd[..]));
        norm::add_layer_norm_forward(&mut sum, &residual, WIDTH, &gamma, &beta, 1e-5, &mut y, saved);
        let (mut d_gamma, mut d_beta) = (numbers(6, WIDTH), numbers(7, WIDTH));
        let parameters = Some((&mut d_gamma[..], &mut d_beta[..]));
        norm::layer_norm_backward(&sum, WIDTH, &gamma, &mean, &rstd, &d_y, &mut d_x, parameters);
        vec![sum, y, mean, rstd, d_x, d_gamma, d_beta]
    });
}

#[test]
fn what_decoders_add_has_the_same_bits_for_any_number_of_threads() {
    let [x, y, d_y] = [1, 2, 3].map(|key| numbers(key, TOKENS * WIDTH));
    let gamma = numbers(4, WIDTH);
    let pairs: Vec<u32> = (0..32).collect();
    let heads = [RotaryHead { start: 1, pairs: &pairs }, RotaryHead { start: 66, pairs: &pairs[5..] }];
    let positions: Vec<u32> = (0..TOKENS as u32).collect();
    assert_same_bits("norm, rotation and gating", || {
        let (mut normed, mut rms, mut d_x, mut d_gamma) =
            (vec![0.0; x.len()], vec![0.0; TOKENS], y.clone(), numbers(5, WIDTH));
        norm::rms_norm_forward(&x, WIDTH, &gamma, 1e-5, &mut normed, Some(&mut rms));
        norm::rms_norm_backward(&x, WIDTH, &gamma, &rms, &d_y, &mut d_x, Some(&mut d_gamma));
        let table = RotaryTable::new(TOKENS, &numbers(6, 32), 1.0);
        let mut rotated = x.clone();
        rotate(&mut rotated, WIDTH, &heads, &positions, &table);
        let [mut out, mut d_gate, mut d_up] = [(); 3].map(|()| vec![0.0; x.len()]);
        gated(Activation::Silu, &x, &y, &mut out);
        gated_backward(Activation::Silu, &x, &y, &d_y, &mut d_gate, &mut d_up);
        vec![normed, rms, d_x, d_gamma, table.cos, table.sin, rotated, out, d_gate, d_up]
    });
    let targets: Vec<u32> = (0..TOKENS as u32).map(|t| if t % 7 == 0 { u32::MAX } else { t % WIDTH as u32 }).collect();
    assert_same_bits("losses of tokens", || {
        let (mut logits, mut student) = (x.clone(), x.clone());
        let mut losses = [(); 3].map(|()| vec![0.0; TOKENS]);
        loss::token_losses(&logits, &targets, WIDTH, &mut losses[0]);
        loss::token_cross_entropy(&mut logits, &targets, WIDTH, 0.1, &mut losses[1]);
        loss::token_distillation(&mut student, &y, &targets, WIDTH, 2.0, 0.1, &mut losses[2]);
        let bits = losses.iter().flatten().flat_map(|loss| [loss.to_bits() as u32, (loss.to_bits() >> 32) as u32]);
        vec![logits, student, bits.map(f32::from_bits).collect()]
    });
}

#[test]
fn updates_have_the_same_bits_for_any_number_of_threads() {
    let length = TOKENS * WIDTH;
    let gradient = numbers(1, length);
    assert_same_bits("the update and what leads to it", || {
        let (mut value, mut first, mut second) = (numbers(2, length), vec![0.0; length], vec![0.0; length]);
        let mut gradient = gradient.clone();
        let norm = reduce::squared_norm(&gradient).sqrt();
        reduce::scale(&mut gradient, (1.0 / norm) as f32);
        for step in [1, 2] {
            let settings = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, learning_rate: 1e-2, step };
            let mut used = gradient.clone();
            let moved = Moved { value: &mut value, gradient: &mut used, first: &mut first, second: &mut second };
            adamw_step(&settings, 0.5, moved, None);
            let rows: Vec<u32> = (0..TOKENS as u32).step_by(3).collect();
            let selected = Selected { width: WIDTH, rows: &rows, columns: None };
            used.copy_from_slice(&gradient);
            let moved = Moved { value: &mut value, gradient: &mut used, first: &mut first, second: &mut second };
            adamw_step(&settings, 0.5, moved, Some(&selected));
        }
        let rows: Vec<u32> = (0..TOKENS as u32).step_by(3).collect();
        let norm = norm + reduce::squared_norm_of_rows(&value, WIDTH, &rows);
        let halves = [norm.to_bits() as u32, (norm.to_bits() >> 32) as u32].map(f32::from_bits);
        vec![value, first, second, halves.to_vec()]
    });
}

#[test]
fn sums_over_tokens_and_elementwise_work_have_the_same_bits_for_any_number_of_threads() {
    let [x, y] = [1, 2].map(|key| numbers(key, TOKENS * WIDTH));
    let scale = numbers(3, WIDTH);
    assert_same_bits("sums, activations and dropout", || {
        let [mut sum, mut scaled, mut dot] = [(); 3].map(|()| vec![0.0; WIDTH]);
        reduce::column_sum(&x, TOKENS, WIDTH, WIDTH, None, &mut sum);
        reduce::column_sum(&x, TOKENS, WIDTH, WIDTH, Some(&scale), &mut scaled);
        reduce::column_dot(&x, &y, TOKENS, WIDTH, WIDTH, &mut dot);
        let (mut activated, mut d) = (vec![0.0; x.len()], y.clone());
        activate(Activation::Gelu, &x, &mut activated);
        activate_backward(Activation::Gelu, &x, &mut d);
        dropout(&mut activated, &Dropout { rate: 0.1, key: 4 });
        reduce::add_scaled_columns(&x, Some(&scale), &mut d, WIDTH);
        reduce::scale_columns(&mut activated, WIDTH, &scale);
        vec![sum, scaled, dot, activated, d]
    });
}
