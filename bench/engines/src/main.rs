//! Products of f32 matrices at the shapes of encoders, in candle, burn and finegates, in alternation on the same numbers:
//! `RAYON_NUM_THREADS=2 cargo run --release`. Prints a Markdown table of GFLOP/s, medians.

use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{Tensor as BurnTensor, TensorData};
use candle_core::{Device, Tensor};
use finegates_kernels::matrix::{self, Activation, Input, Output, PackedMatrix};
use finegates_kernels::random;

const ROUNDS: usize = 25;
const SHAPES: [(usize, usize, usize); 5] =
    [(1024, 384, 384), (1024, 384, 1536), (1024, 768, 768), (1024, 768, 3072), (1024, 3072, 768)];

fn numbers(key: u64, count: usize) -> Vec<f32> {
    let mut numbers = vec![0.0; count];
    random::fill_normal(key, 0.0, 1.0, &mut numbers);
    numbers
}

fn main() -> candle_core::Result<()> {
    println!("| tokens × inputs → outputs | candle 0.11.1 | burn-flex 0.22.0 | finegates |\n|---|---|---|---|");
    for (tokens, inputs, outputs) in SHAPES {
        let (x, weight) = (numbers(1, tokens * inputs), numbers(2, outputs * inputs));
        // A linear layer's weight is [out, in]; each library gets it laid out as it likes best, before the clock starts.
        let candle = (
            Tensor::from_slice(&x, (tokens, inputs), &Device::Cpu)?,
            Tensor::from_slice(&weight, (outputs, inputs), &Device::Cpu)?.t()?,
        );
        let device = Default::default();
        let burn = (
            BurnTensor::<2>::from_data(TensorData::new(x.clone(), [tokens, inputs]), &device),
            BurnTensor::<2>::from_data(TensorData::new(weight.clone(), [outputs, inputs]), &device).transpose(),
        );
        let packed = PackedMatrix::rows(&weight, outputs, inputs, None);
        let mut out = vec![0.0; tokens * outputs];
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            let start = Instant::now();
            black_box(candle.0.matmul(&candle.1)?);
            times[0].push(start.elapsed());
            let start = Instant::now();
            black_box(burn.0.clone().matmul(burn.1.clone()));
            times[1].push(start.elapsed());
            let start = Instant::now();
            let input = Input { data: &x, rows: tokens, stride: inputs, columns: None, scale: None };
            let (stride, activation) = (outputs, Activation::None);
            let mut output =
                Output { data: &mut out, stride, columns: None, bias: None, scale: None, activation, add: false };
            matrix::multiply(&input, &packed, None, &mut output);
            black_box(&output.data);
            times[2].push(start.elapsed());
        }
        let speed = times.map(|mut times| {
            times.sort_unstable();
            2.0 * (tokens * inputs * outputs) as f64 / times[ROUNDS / 2].as_secs_f64() / 1e9
        });
        println!("| {tokens} × {inputs} → {outputs} | {:.0} | {:.0} | {:.0} |", speed[0], speed[1], speed[2]);
    }
    Ok(())
}
