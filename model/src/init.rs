//! Initial values: a pure function of (seed, parameter name, element index), the same bits on every platform and for
//! every number of threads. Only IEEE additions, multiplications, divisions and square roots are used, because the
//! system's `ln` and `sin` differ between platforms (and would take several times as long).

use crate::config::Config;
use crate::params::{Init, ParamSpec, Params, specs};
use engine::Host;
use engine::random::threefry2x32;

/// Numbers made at a time: long enough for the compiler to vectorise each step, short enough for the first cache.
const LANES: usize = 64;

/// Fresh master weights for a seed.
pub fn initial_params(config: &Config, seed: u64) -> Params<Host> {
    specs(config).map(|name, spec| initial_values(name, &spec, seed))
}

/// The same one after another, in the order of the parameters: main memory need not hold more than one.
pub fn initial_weights(config: &Config, seed: u64) -> impl Iterator<Item = Host> + use<> {
    let specs = specs(config).into_flat().into_iter();
    specs.map(move |(name, spec)| initial_values(&name, &spec, seed))
}

/// A part for each core: the first touch of the memory takes as long as the numbers.
fn initial_values(name: &str, spec: &ParamSpec, seed: u64) -> Host {
    let mut host = Host::zeros(spec.ty.clone());
    let values = host.as_mut_slice::<f32>();
    match spec.init {
        Init::Ones => values.fill(1.0),
        Init::Normal { std } => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let part = values.len().div_ceil(cores).next_multiple_of(2 * LANES);
            let key = key(name, seed);
            std::thread::scope(|scope| {
                for (number, values) in values.chunks_mut(part).enumerate() {
                    scope.spawn(move || fill_normal(key, number * part, std as f32, values));
                }
            });
        }
    }
    host
}

/// A stream of its own for each (seed, name): the seed keys a block of Threefry over the name's FNV-1a hash.
fn key(name: &str, seed: u64) -> [u32; 2] {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    threefry2x32(words(seed), words(hash))
}

/// Low and high half.
fn words(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// Fills with normal numbers; `first` is the index of `values[0]` in the parameter and a multiple of `2 * LANES`.
/// Elements `2e` and `2e+1` come from counter `e`.
fn fill_normal(key: [u32; 2], first: usize, std: f32, values: &mut [f32]) {
    let (mut a, mut b) = ([0_u32; LANES], [0_u32; LANES]);
    let (mut x, mut y) = ([0_f32; LANES], [0_f32; LANES]);
    for (block, out) in values.chunks_mut(2 * LANES).enumerate() {
        // A multiple of LANES, so the low word does not overflow within a block.
        let [low, high] = words((first / 2 + block * LANES) as u64);
        // Loops of one step each over plain arrays: the form that the compiler vectorises.
        for (lane, (a, b)) in a.iter_mut().zip(&mut b).enumerate() {
            [*a, *b] = threefry2x32(key, [high, low.wrapping_add(lane as u32)]);
        }
        for (x, &a) in x.iter_mut().zip(&a) {
            *x = radius(a);
        }
        for ((x, y), &b) in x.iter_mut().zip(&mut y).zip(&b) {
            let (sin, cos) = sin_cos_turns(b);
            *y = *x * sin;
            *x *= cos;
        }
        for (pair, (x, y)) in out.chunks_mut(2).zip(x.iter().zip(&y)) {
            pair[0] = x * std;
            if let Some(second) = pair.get_mut(1) {
                *second = y * std;
            }
        }
    }
}

/// Box-Muller's radius `sqrt(-2 ln u)` for the upper 24 bits of a word (and a half) as `u` in (0, 1].
fn radius(a: u32) -> f32 {
    let u = ((a >> 8) as i32 as f32 + 0.5) * (1.0 / 16_777_216.0);
    (-2.0 * ln(u)).sqrt()
}

/// Natural logarithm of a positive normal number to within two units in the last place.
/// Source of the polynomial: Cephes `logf.c`, Stephen Moshier.
fn ln(x: f32) -> f32 {
    // Mantissa into [sqrt(1/2), sqrt(2)): the offset is the bit pattern of sqrt(1/2).
    let bits = x.to_bits().wrapping_sub(0x3F35_04F3);
    let exponent = ((bits as i32) >> 23) as f32;
    let m = f32::from_bits((bits & 0x007F_FFFF).wrapping_add(0x3F35_04F3)) - 1.0;
    let z = m * m;
    // Written out: a loop over the coefficients keeps the compiler from vectorising the caller.
    let y = 7.037_683_6e-2 * m - 1.151_461e-1;
    let y = (y * m + 1.167_699_8e-1) * m - 1.242_014_1e-1;
    let y = (y * m + 1.424_932_3e-1) * m - 1.666_805_7e-1;
    let y = (y * m + 2.000_071_4e-1) * m - 2.499_999_4e-1;
    let y = y * m + 3.333_333e-1;
    // ln 2 in two parts, so that the product with the exponent is exact.
    y * m * z + exponent * -2.121_944_4e-4 - 0.5 * z + m + exponent * 0.693_359_4
}

/// Sine and cosine of `2 pi b / 2^32`. Source of the polynomials: Cephes `sinf.c`.
fn sin_cos_turns(b: u32) -> (f32, f32) {
    // The nearest quarter turn, and the rest of at most an eighth as a signed 2^-32 part of a turn.
    let quarter = b.wrapping_add(1 << 29) >> 30;
    let rest = b.wrapping_sub(quarter << 30) as i32 as f32;
    let x = rest * (std::f32::consts::TAU / 4_294_967_296.0);
    let z = x * x;
    let sin = ((-1.951_529_6e-4 * z + 8.332_161e-3) * z - 1.666_665_5e-1) * z * x + x;
    let cos = ((2.443_315_7e-5 * z - 1.388_731_6e-3) * z + 4.166_664_6e-2) * z * z - 0.5 * z + 1.0;
    // Odd quarters swap the two, without a branch.
    let swap = (sin.to_bits() ^ cos.to_bits()) & 0_u32.wrapping_sub(quarter & 1);
    // Sine is negative in quarters 2 and 3, cosine in 1 and 2.
    let flip = |x: f32, sign: u32| f32::from_bits(x.to_bits() ^ swap ^ ((sign & 1) << 31));
    (flip(sin, quarter >> 1), flip(cos, (quarter >> 1) ^ quarter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;

    #[test]
    fn logarithm_and_circle_are_accurate() {
        for i in 0..100_000_u32 {
            let u = (i as f32 + 0.5) / 100_000.0;
            assert!(
                (f64::from(ln(u)) - f64::from(u).ln()).abs() <= 3e-7 * f64::from(u).ln().abs().max(0.3),
                "ln {u}"
            );
            let b = i.wrapping_mul(2_654_435_761);
            let angle = f64::from(b) / 4_294_967_296.0 * std::f64::consts::TAU;
            let (sin, cos) = sin_cos_turns(b);
            assert!(
                (f64::from(sin) - angle.sin()).abs() < 2e-7 && (f64::from(cos) - angle.cos()).abs() < 2e-7
            );
        }
    }

    #[test]
    fn values_depend_on_seed_name_and_index_only() {
        let config = Config::preset(Preset::Tiny);
        let params = initial_params(&config, 7);
        assert_eq!(params, initial_params(&config, 7));
        assert_ne!(params.layers.q, initial_params(&config, 8).layers.q);
        assert_ne!(params.layers.gate, params.layers.up);
        // Numbers made alone and from another block boundary are the same ones.
        let spec = specs(&config).embed;
        let mut alone = vec![0.0; 1000];
        fill_normal(key("embed", 7), 4096, 0.02, &mut alone);
        assert_eq!(params.embed.as_slice::<f32>()[4096..5096], alone);
        assert_eq!(spec.ty.elements(), 4096 * 128);
    }

    #[test]
    fn distributions_are_the_specified_ones() {
        let config = Config::preset(Preset::Tiny);
        let params = initial_params(&config, 1);
        let moments = |host: &Host| {
            let x = host.to_f64();
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let power = |p| x.iter().map(|x| (x - mean).powi(p)).sum::<f64>() / x.len() as f64;
            (mean, power(2).sqrt(), power(4) / power(2).powi(2))
        };
        for (host, std) in
            [(&params.embed, 0.02), (&params.layers.q, 0.02), (&params.layers.down, 0.02 / 8_f64.sqrt())]
        {
            let (mean, deviation, kurtosis) = moments(host);
            assert!(mean.abs() < 0.01 * std && (deviation / std - 1.0).abs() < 0.01, "{mean} {deviation}");
            assert!((kurtosis - 3.0).abs() < 0.05, "{kurtosis}");
        }
        assert!(params.layers.input_norm.as_slice::<f32>().iter().all(|&x| x == 1.0));
    }
}
