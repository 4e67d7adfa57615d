//! Counter-based random numbers: pure functions of a key and an index, with the same bits on every platform. Not for
//! secrets.

/// A well mixed 64-bit number from `key` and `index` (two rounds of the SplitMix64 finaliser).
pub fn mix(key: u64, index: u64) -> u64 {
    let round = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let inner = round(key.wrapping_add(0x9e37_79b9_7f4a_7c15));
    round(inner ^ round(index.wrapping_add(0xd1b5_4a32_d192_ed03)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A key of its own for `label` under `key`.
pub fn derive(key: u64, label: &str) -> u64 {
    let mut state = mix(key, label.len() as u64);
    for chunk in label.as_bytes().chunks(8) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        state = mix(state, u64::from_le_bytes(bytes));
    }
    state
}

/// A number of the open interval (0, 1): the middle of one of 2^53 cells, rounded.
fn unit(bits: u64) -> f64 {
    let middle = ((bits >> 11) as f64 + 0.5) * (1.0 / 9_007_199_254_740_992.0);
    // That of the last cell rounds to 1.
    middle.min(1.0_f64.next_down())
}

/// A number of the open interval (0, 1), a function of `key` and `index`.
pub fn uniform(key: u64, index: u64) -> f64 {
    unit(mix(key, index))
}

/// Fills `out` with numbers of `[low, high)`; element `i` is a function of `key` and `i`.
pub fn fill_uniform(key: u64, low: f32, high: f32, out: &mut [f32]) {
    let (low, width) = (f64::from(low), f64::from(high) - f64::from(low));
    for (index, out) in out.iter_mut().enumerate() {
        let value = (low + width * unit(mix(key, index as u64))) as f32;
        // Rounding to f32 may reach the upper end.
        *out = if value < high || width <= 0.0 { value } else { high.next_down() };
    }
}

/// Fills `out` with normally distributed numbers; element `i` is a function of `key` and `i`.
pub fn fill_normal(key: u64, mean: f32, std: f32, out: &mut [f32]) {
    let (mean, std) = (f64::from(mean), f64::from(std));
    for (index, out) in out.iter_mut().enumerate() {
        *out = (mean + std * normal_quantile(unit(mix(key, index as u64)))) as f32;
    }
}

/// A random order of `0..n`.
///
/// # Panics
/// If `n` does not fit in 32 bits.
pub fn permutation(key: u64, n: usize) -> Vec<u32> {
    assert!(u32::try_from(n).is_ok(), "permutation of {n} items: more than 32 bits count");
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        // The high half of a 128-bit product: an unbiased-enough index in 0..=i (bias below 2^-31).
        let j = ((u128::from(mix(key, i as u64)) * (i as u128 + 1)) >> 64) as usize;
        order.swap(i, j);
    }
    order
}

/// The inverse of the normal distribution function (M. J. Wichura, algorithm AS 241, PPND16), from arithmetic that every
/// platform rounds alike.
fn normal_quantile(p: f64) -> f64 {
    let polynomial = |coefficients: &[f64; 8], x: f64| coefficients.iter().rev().fold(0.0, |sum, &c| sum * x + c);
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180_625 - q * q;
        return q * polynomial(&CENTRE.0, r) / polynomial(&CENTRE.1, r);
    }
    let tail = if q < 0.0 { p } else { 1.0 - p };
    let r = (-natural_logarithm(tail)).sqrt();
    let value = if r <= 5.0 {
        polynomial(&MIDDLE.0, r - 1.6) / polynomial(&MIDDLE.1, r - 1.6)
    } else {
        polynomial(&TAIL.0, r - 5.0) / polynomial(&TAIL.1, r - 5.0)
    };
    if q < 0.0 { -value } else { value }
}

/// `ln x` for a normal positive `x`, to about 1e-16: `x = 2^e m`, `ln m = 2 artanh((m-1)/(m+1))` as a series.
fn natural_logarithm(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let series = (0..12).rev().fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 1));
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * series
}

type Fraction = ([f64; 8], [f64; 8]);

const CENTRE: Fraction = (
    [
        3.387_132_872_796_366_5,
        1.331_416_678_917_843_8e2,
        1.971_590_950_306_551_3e3,
        1.373_169_376_550_946e4,
        4.592_195_393_154_987e4,
        6.726_577_092_700_87e4,
        3.343_057_558_358_813e4,
        2.509_080_928_730_122_7e3,
    ],
    [
        1.0,
        4.231_333_070_160_091e1,
        6.871_870_074_920_579e2,
        5.394_196_021_424_751e3,
        2.121_379_430_158_66e4,
        3.930_789_580_009_271e4,
        2.872_908_573_572_194_3e4,
        5.226_495_278_852_545e3,
    ],
);
const MIDDLE: Fraction = (
    [
        1.423_437_110_749_683_5,
        4.630_337_846_156_546,
        5.769_497_221_460_691,
        3.647_848_324_763_204_5,
        1.270_458_252_452_368_4,
        2.417_807_251_774_506e-1,
        2.272_384_498_926_918_4e-2,
        7.745_450_142_783_414e-4,
    ],
    [
        1.0,
        2.053_191_626_637_759,
        1.676_384_830_183_803_8,
        6.897_673_349_851e-1,
        1.481_039_764_274_800_8e-1,
        1.519_866_656_361_645_7e-2,
        5.475_938_084_995_345e-4,
        1.050_750_071_644_416_9e-9,
    ],
);
const TAIL: Fraction = (
    [
        6.657_904_643_501_103,
        5.463_784_911_164_114,
        1.784_826_539_917_291_3,
        2.965_605_718_285_049e-1,
        2.653_218_952_657_612_4e-2,
        1.242_660_947_388_078_4e-3,
        2.711_555_568_743_487_6e-5,
        2.010_334_399_292_288_1e-7,
    ],
    [
        1.0,
        5.998_322_065_558_88e-1,
        1.369_298_809_227_358e-1,
        1.487_536_129_085_061_5e-2,
        7.868_691_311_456_133e-4,
        1.846_318_317_510_054_8e-5,
        1.421_511_758_316_446e-7,
        2.044_263_103_389_939_8e-15,
    ],
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_pinned_for_every_platform() {
        assert_eq!(mix(1, 2), mix(1, 2));
        let mut normal = [0.0; 4];
        fill_normal(7, 0.0, 1.0, &mut normal);
        let mut longer = [0.0; 9];
        fill_normal(7, 0.0, 1.0, &mut longer);
        assert_eq!(normal, longer[..4], "an element does not depend on the length");
        assert_ne!(derive(1, "a"), derive(1, "b"));
        assert_ne!(derive(1, "a"), derive(2, "a"));
        assert_ne!(derive(1, ""), derive(1, "\0"));
        assert_eq!(
            [mix(1, 2), mix(0, 0), derive(42, "gates")],
            PINNED_BITS,
            "{:#x?}",
            [mix(1, 2), mix(0, 0), derive(42, "gates")]
        );
        assert_eq!(normal.map(f32::to_bits), PINNED_NORMAL, "{:#x?}", normal.map(f32::to_bits));
        let mut uniform = [0.0; 4];
        fill_uniform(7, -1.0, 3.0, &mut uniform);
        assert_eq!(uniform.map(f32::to_bits), PINNED_UNIFORM, "{:#x?}", uniform.map(f32::to_bits));
        assert_eq!(permutation(7, 8), PINNED_ORDER);
    }

    #[test]
    fn the_ends_of_the_unit_interval_are_never_reached() {
        assert!(unit(0) > 0.0 && unit(u64::MAX) < 1.0, "{} {}", unit(0), unit(u64::MAX));
        assert!(normal_quantile(unit(u64::MAX)).is_finite() && normal_quantile(unit(0)).is_finite());
    }

    #[test]
    fn moments_and_quantiles_are_those_of_the_distributions() {
        let n = 200_000;
        let mut x = vec![0.0; n];
        fill_normal(3, 2.0, 3.0, &mut x);
        let z: Vec<f64> = x.iter().map(|&x| (f64::from(x) - 2.0) / 3.0).collect();
        let moment = |power: i32| z.iter().map(|z| z.powi(power)).sum::<f64>() / n as f64;
        // Five standard errors each: √(1/n), √(2/n), √(15/n), √(96/n).
        assert!(moment(1).abs() < 0.012 && (moment(2) - 1.0).abs() < 0.016, "{} {}", moment(1), moment(2));
        assert!(moment(3).abs() < 0.045 && (moment(4) - 3.0).abs() < 0.11, "{} {}", moment(3), moment(4));
        let beyond = z.iter().filter(|z| z.abs() > 3.0).count() as f64 / n as f64;
        assert!((beyond - 0.0027).abs() < 0.0006, "{beyond}");
        fill_uniform(4, -1.0, 3.0, &mut x);
        assert!(x.iter().all(|x| (-1.0..3.0).contains(x)));
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        assert!((mean - 1.0).abs() < 0.013, "{mean}");
        let together: f64 = x.windows(2).map(|pair| f64::from((pair[0] - 1.0) * (pair[1] - 1.0))).sum();
        assert!((together / n as f64).abs() < 0.016, "neighbours are not correlated: {together}");
    }

    #[test]
    fn the_quantile_inverts_the_distribution_function() {
        for i in 1..2000 {
            let z = f64::from(i - 1000) * 0.006;
            let p = 0.5 * (1.0 + crate::tests::erf(z / std::f64::consts::SQRT_2));
            assert!((normal_quantile(p) - z).abs() < 1e-7 / (-0.5 * z * z).exp().max(1e-6), "{z}");
        }
        for x in [1e-300, 1e-16, 0.3, 1.0, 1.5, 7.0, 1e20] {
            assert!((natural_logarithm(x) - x.ln()).abs() <= 1e-15 * x.ln().abs().max(1.0), "{x}");
        }
    }

    #[test]
    fn a_permutation_holds_every_index_once_and_moves_them_evenly() {
        assert_eq!(permutation(1, 0), Vec::<u32>::new());
        assert_eq!(permutation(1, 1), vec![0]);
        let mut order = permutation(5, 1000);
        assert_ne!(order, permutation(6, 1000));
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(i, &x)| i == x as usize));
        let mut counts = [0; 5];
        for key in 0..5000 {
            counts[permutation(key, 5)[2] as usize] += 1;
        }
        // Five standard deviations of a binomial of 5,000 draws at 1/5.
        assert!(counts.iter().all(|&count: &i32| (count - 1000).abs() < 142), "{counts:?}");
    }

    // From the definitions, written again in Python with its `statistics.NormalDist.inv_cdf`.
    const PINNED_BITS: [u64; 3] = [0x5eaf_8091_d304_bf55, 0x01d2_b46e_ac14_222d, 0xff44_50e9_597a_0534];
    const PINNED_NORMAL: [u32; 4] = [0xbefb_6a0c, 0x402e_3d05, 0xbe9e_2bab, 0x3fa3_b8cf];
    const PINNED_UNIFORM: [u32; 4] = [0x3e7c_b6e5, 0x403f_2bae, 0x3f03_c6f0, 0x4026_49e6];
    const PINNED_ORDER: [u32; 8] = [0, 2, 5, 4, 7, 1, 3, 6];
}
