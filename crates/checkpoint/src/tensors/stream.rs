//! Writing a safetensors file whose tensors are made one after another and need never be in memory together.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::str::FromStr;

use half::{bf16, f16};

use super::write::{HeaderEntry, count, header};
use crate::Error;
use crate::write::write_atomic_with;

/// The number type of weights in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FloatType {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with 5 of exponent: up to 65,504.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl FloatType {
    /// The name of transformers' `torch_dtype`.
    pub fn torch_name(self) -> &'static str {
        match self {
            FloatType::F32 => "float32",
            FloatType::F16 => "float16",
            FloatType::Bf16 => "bfloat16",
        }
    }

    /// The bytes of one number.
    pub fn size_bytes(self) -> usize {
        match self {
            FloatType::F32 => 4,
            FloatType::F16 | FloatType::Bf16 => 2,
        }
    }

    fn header_name(self) -> &'static str {
        match self {
            FloatType::F32 => "F32",
            FloatType::F16 => "F16",
            FloatType::Bf16 => "BF16",
        }
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            FloatType::F32 => "f32",
            FloatType::F16 => "f16",
            FloatType::Bf16 => "bf16",
        })
    }
}

impl FromStr for FloatType {
    type Err = String;

    /// # Errors
    /// The names there are.
    fn from_str(text: &str) -> Result<FloatType, String> {
        let all = [FloatType::F32, FloatType::F16, FloatType::Bf16];
        all.into_iter().find(|float| float.to_string() == text).ok_or_else(|| "expected f32, f16 or bf16".to_owned())
    }
}

/// A tensor to be written, before its numbers are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamedTensor {
    /// The name in the file.
    pub name: String,
    /// The length along each axis.
    pub shape: Vec<usize>,
}

impl StreamedTensor {
    /// How many numbers the shape holds, if they can be counted.
    pub fn count(&self) -> Option<usize> {
        count(&self.shape)
    }
}

/// Writes `tensors`, all of one number type, to the safetensors file `path`, atomically and in the order of their names.
/// `produce` is asked for one tensor after another, by its place in `tensors`, and gives the numbers to the sink in
/// as many pieces as it likes.
///
/// # Errors
/// When a name occurs twice, `produce` fails or gives another number of values than the shape holds, a value does not fit
/// the number type, or the file cannot be written.
pub fn write_streamed(
    path: &Path,
    tensors: &[StreamedTensor],
    float: FloatType,
    metadata: &BTreeMap<String, String>,
    produce: &mut dyn FnMut(usize, &mut Sink) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by(|&a, &b| tensors[a].name.cmp(&tensors[b].name));
    let entries = order.iter().map(|&place| HeaderEntry {
        name: &tensors[place].name,
        dtype: float.header_name(),
        shape: &tensors[place].shape,
        number_bytes: float.size_bytes(),
    });
    let header = header(path, entries, metadata)?;
    // The atomic writer knows errors of the operating system only; others wait here.
    let mut failed = None;
    let written = write_atomic_with(path, |file| {
        let mut sink =
            Sink { path, out: BufWriter::with_capacity(1 << 20, file), float, name: "", count: 0, bytes: Vec::new() };
        sink.out.write_all(&(header.len() as u64).to_le_bytes())?;
        sink.out.write_all(&header)?;
        for &place in &order {
            sink.name = &tensors[place].name;
            sink.count = 0;
            let expected = tensors[place].count();
            let outcome = produce(place, &mut sink).and_then(|()| match expected == Some(sink.count) {
                true => Ok(()),
                false => Err(Error::tensor(
                    path,
                    sink.name,
                    format!("shape {:?} does not hold {} numbers", tensors[place].shape, sink.count),
                )),
            });
            if let Err(error) = outcome {
                failed = Some(error);
                return Err(io::Error::other("stopped"));
            }
        }
        sink.out.flush()
    });
    match failed {
        Some(error) => Err(error),
        None => written,
    }
}

/// Where the numbers of a tensor go while they are made.
#[derive(Debug)]
pub struct Sink<'a> {
    path: &'a Path,
    out: BufWriter<&'a mut File>,
    float: FloatType,
    name: &'a str,
    count: usize,
    bytes: Vec<u8>,
}

impl Sink<'_> {
    /// Writes the tensor's next values.
    ///
    /// # Errors
    /// When one does not fit the number type, or the file cannot be written.
    pub fn write(&mut self, values: &[f32]) -> Result<(), Error> {
        self.count = self.count.saturating_add(values.len());
        for part in values.chunks(1 << 12) {
            self.bytes.clear();
            match self.float {
                FloatType::F32 => self.bytes.extend(part.iter().flat_map(|value| value.to_le_bytes())),
                FloatType::Bf16 => {
                    for &value in part {
                        let short = bf16::from_f32(value);
                        self.check_fit(value, short.is_infinite(), "f32")?;
                        self.bytes.extend(short.to_le_bytes());
                    }
                }
                FloatType::F16 => {
                    for &value in part {
                        let short = f16::from_f32(value);
                        self.check_fit(value, short.is_infinite(), "bf16 or f32")?;
                        self.bytes.extend(short.to_le_bytes());
                    }
                }
            }
            self.out.write_all(&self.bytes).map_err(Error::io(self.path, "write"))?;
        }
        Ok(())
    }

    /// Refuses a value that only became infinite by being rounded.
    fn check_fit(&self, value: f32, infinite: bool, wider: &str) -> Result<(), Error> {
        if infinite && value.is_finite() {
            let reason = format!("{value} does not fit into {}; use {wider}", self.float);
            return Err(Error::tensor(self.path, self.name, reason));
        }
        Ok(())
    }
}
