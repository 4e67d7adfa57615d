"""Normal numbers as a pure function of (stream, index), so that another language repeats them without sharing an RNG.

    z      = splitmix64(stream * 2^32 + index)
    normal = (sum of z's four 16-bit parts - 131070) * (sqrt(3) / 65536)          mean 0, variance 1

The sum is an integer and what follows is one f64 product, so the bits agree everywhere. A sum of four uniforms is close
enough to a normal distribution for tests (its tails end at +-3.46); it is not meant for anything else.
"""

import math

import numpy

GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def splitmix64(key):
    """The finalizer of SplitMix64 on an array of u64, wrapping."""
    with numpy.errstate(over="ignore"):
        z = key + numpy.uint64(GOLDEN_GAMMA)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        return z ^ (z >> numpy.uint64(31))


def counter_normal(stream, count, scale=1.0):
    """`count` f32 numbers: normal(stream, 0..count) * scale, the product in f64, then rounded to f32."""
    z = splitmix64(numpy.uint64(stream << 32) + numpy.arange(count, dtype=numpy.uint64))
    parts = sum(((z >> numpy.uint64(shift)) & numpy.uint64(0xFFFF)).astype(numpy.int64) for shift in (0, 16, 32, 48))
    return ((parts - 131070).astype(numpy.float64) * (math.sqrt(3.0) / 65536.0) * scale).astype(numpy.float32)
