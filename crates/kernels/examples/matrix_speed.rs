//! Prints GFLOP/s of the matrix products for the shapes of small and base encoders, and their share of the multiply-add
//! peak measured in the same run. `cargo run --release -p finegates-kernels --example matrix_speed`

use std::hint::black_box;
use std::time::Instant;

use finegates_kernels::cpu;
use finegates_kernels::matrix::{self, Activation, Input, Output, PackedMatrix};
use finegates_kernels::random;

/// The time so far: with one thread what it spent computing, where the system tells, so that other programs do not count.
fn now() -> f64 {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    // The count is brought up to date when the thread yields.
    let busy = || {
        std::thread::yield_now();
        std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse::<f64>().ok()
    };
    let busy = if rayon::current_num_threads() == 1 { busy() } else { None };
    busy.map_or_else(|| START.elapsed().as_secs_f64(), |busy| busy / 1e9)
}

/// Speed in GFLOP/s of work that does `operations`, and its share of the peak, both medians over short runs that alternate
/// with runs of the peak loop: other programs and clock changes then hit both.
fn measure(operations: f64, mut work: impl FnMut()) -> (f64, f64) {
    let mut batch = 1;
    let mut time = |batch: usize| {
        let start = now();
        (0..batch).for_each(|_| work());
        (now() - start) / batch as f64
    };
    while time(batch) * (batch as f64) < 0.004 {
        batch *= 2;
    }
    let peak = || {
        let start = now();
        let operations: f64 = rayon::broadcast(|_| peak_loop()).iter().sum();
        operations / (now() - start)
    };
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let mut before = peak();
    let samples = (0..40).map(|_| {
        let speed = operations / time(batch);
        let after = peak();
        let share = speed / (0.5 * (before + after));
        before = after;
        (speed / 1e9, share)
    });
    let (speeds, shares): (Vec<f64>, Vec<f64>) = samples.unzip();
    (median(speeds), median(shares))
}

/// Multiply-adds that never leave the registers; answers the operations done.
#[cfg(target_arch = "x86_64")]
fn peak_loop() -> f64 {
    use std::arch::x86_64::*;
    const ROUNDS: usize = 200_000;
    #[target_feature(enable = "avx512f")]
    fn avx512() {
        let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1e-3)));
        let mut sums = [b; 16];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
    #[target_feature(enable = "avx2,fma")]
    fn avx2() {
        let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-3)));
        let mut sums = [b; 12];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
    #[target_feature(enable = "sse2")]
    fn sse2() {
        let (a, b) = (_mm_set1_ps(black_box(0.999)), _mm_set1_ps(black_box(1e-3)));
        let mut sums = [b; 12];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm_add_ps(_mm_mul_ps(*sum, a), b);
            }
        }
        black_box(sums);
    }
    // SAFETY: the instruction set was detected; SSE2 is part of x86-64.
    unsafe {
        match cpu::isa() {
            cpu::Isa::Avx512 => (avx512(), 2.0 * 256.0 * ROUNDS as f64).1,
            cpu::Isa::Avx2 => (avx2(), 2.0 * 96.0 * ROUNDS as f64).1,
            cpu::Isa::Portable => (sse2(), 2.0 * 48.0 * ROUNDS as f64).1,
        }
    }
}

/// Multiply-adds that never leave the registers; answers the operations done.
#[cfg(not(target_arch = "x86_64"))]
fn peak_loop() -> f64 {
    const ROUNDS: usize = 200_000;
    let (a, b) = (black_box(0.999_f32), black_box(1e-3_f32));
    let mut sums = [[1.0_f32; 4]; 16];
    for _ in 0..ROUNDS {
        for sums in &mut sums {
            *sums = sums.map(|sum| sum.mul_add(a, b));
        }
    }
    black_box(sums);
    2.0 * 64.0 * ROUNDS as f64
}

fn main() {
    println!("{}", cpu::describe());
    rayon::scope(|_| {
        let shapes = [
            (1024, 384, 384),
            (1024, 384, 1536),
            (1024, 1536, 384),
            (1024, 768, 768),
            (1024, 768, 3072),
            (1024, 3072, 768),
            (1024, 230, 922),
            (256, 384, 384),
            (64, 384, 384),
            (64, 768, 3072),
            (32, 384, 1536),
            (16, 384, 384),
            (16, 768, 768),
            (16, 384, 1536),
            (1, 384, 1536),
            (4, 768, 768),
        ];
        println!(
            "{:>24} {:>9} {:>7} {:>9} {:>7} {:>9} {:>7}",
            "T x K -> N", "multiply", "", "gathered", "", "transposed", ""
        );
        for (t, k, n) in shapes {
            let mut x = vec![0.0; t * k];
            let mut w = vec![0.0; n * k];
            let mut y = vec![0.0; t * n];
            random::fill_normal(1, 0.0, 1.0, &mut x);
            random::fill_normal(2, 0.0, 1.0, &mut w);
            let packed = PackedMatrix::rows(&w, n, k, None);
            let bias = vec![0.1; n];
            let operations = 2.0 * (t * k * n) as f64;
            let plain = measure(operations, || {
                let input = Input { data: &x, rows: t, stride: k, columns: None, scale: None };
                let mut output = Output {
                    data: &mut y,
                    stride: n,
                    columns: None,
                    bias: Some(&bias),
                    scale: None,
                    activation: Activation::None,
                    add: false,
                };
                matrix::multiply(&input, &packed, None, &mut output);
            });
            let kept: Vec<u32> = (0..k as u32).filter(|k| k % 5 != 2).collect();
            let rows: Vec<u32> = (0..n as u32).filter(|n| n % 5 != 3).collect();
            let scale = vec![0.9; kept.len()];
            let packed_rows = PackedMatrix::rows(&w, n, k, Some(&rows));
            let gathered_operations = 2.0 * (t * kept.len() * rows.len()) as f64;
            let gathered = measure(gathered_operations, || {
                let input = Input { data: &x, rows: t, stride: k, columns: Some(&kept), scale: Some(&scale) };
                let mut output = Output {
                    data: &mut y,
                    stride: n,
                    columns: Some(&rows),
                    bias: None,
                    scale: None,
                    activation: Activation::None,
                    add: false,
                };
                matrix::multiply(&input, &packed_rows, Some(&kept), &mut output);
            });
            let transposed = measure(operations, || matrix::multiply_transposed(&y, n, n, &x, k, k, t, &mut w));
            print!("{:>24}", format!("{t} x {k} -> {n}"));
            for (speed, share) in [plain, gathered, transposed] {
                print!(" {speed:>9.1} {:>5.1} %", 100.0 * share);
            }
            println!();
        }
        for (rows, columns) in [(384, 384), (1536, 384), (3072, 768)] {
            let mut w = vec![0.0; rows * columns];
            random::fill_normal(2, 0.0, 1.0, &mut w);
            let bytes = 4.0 * w.len() as f64;
            let by_rows = measure(bytes, || _ = black_box(PackedMatrix::rows(&w, rows, columns, None))).0;
            let by_columns = measure(bytes, || _ = black_box(PackedMatrix::columns(&w, rows, columns, None))).0;
            println!("packing {rows} x {columns}: rows {by_rows:.1} GB/s, columns {by_columns:.1} GB/s");
        }
    });
}
