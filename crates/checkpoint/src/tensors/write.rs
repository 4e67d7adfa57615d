//! Writing safetensors: f32 weights and u32 indices, atomically, the same bytes for the same tensors.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::Error;
use crate::write::write_atomic_with;

/// The numbers of a tensor to write.
#[derive(Clone, Copy, Debug)]
pub enum TensorData<'a> {
    /// Weights, biases, gates.
    F32(&'a [f32]),
    /// Indices.
    U32(&'a [u32]),
}

/// A tensor to write: its name, its shape and as many numbers as the shape says.
#[derive(Clone, Debug)]
pub struct TensorToWrite<'a> {
    /// The name in the file.
    pub name: Cow<'a, str>,
    /// The length along each axis.
    pub shape: Cow<'a, [usize]>,
    /// The numbers, row-major.
    pub data: TensorData<'a>,
}

impl<'a> TensorToWrite<'a> {
    /// A tensor of f32.
    pub fn f32(name: impl Into<Cow<'a, str>>, shape: impl Into<Cow<'a, [usize]>>, data: &'a [f32]) -> Self {
        TensorToWrite { name: name.into(), shape: shape.into(), data: TensorData::F32(data) }
    }

    /// A list of indices.
    pub fn u32(name: impl Into<Cow<'a, str>>, data: &'a [u32]) -> Self {
        TensorToWrite { name: name.into(), shape: Cow::Owned(vec![data.len()]), data: TensorData::U32(data) }
    }

    fn count(&self) -> usize {
        match self.data {
            TensorData::F32(values) => values.len(),
            TensorData::U32(values) => values.len(),
        }
    }
}

/// Writes `tensors` to the safetensors file `path`, atomically. Tensors are stored in the order of their names, and
/// `metadata` (Python readers look for `format` = `pt`) in the order of its keys, so equal input gives equal bytes.
///
/// # Errors
/// When a name occurs twice, a shape disagrees with its numbers, or the file cannot be written.
pub fn write_tensors(path: &Path, tensors: &[TensorToWrite], metadata: &BTreeMap<String, String>) -> Result<(), Error> {
    let mut sorted: Vec<&TensorToWrite> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    for tensor in &sorted {
        if count(&tensor.shape) != Some(tensor.count()) {
            let reason = format!("shape {:?} does not hold {} numbers", tensor.shape, tensor.count());
            return Err(Error::tensor(path, &tensor.name, reason));
        }
    }
    let entries = sorted.iter().map(|tensor| HeaderEntry {
        name: &tensor.name,
        dtype: match tensor.data {
            TensorData::F32(_) => "F32",
            TensorData::U32(_) => "U32",
        },
        shape: &tensor.shape,
        number_bytes: size_of::<f32>(),
    });
    let header = header(path, entries, metadata)?;
    write_atomic_with(path, |file| {
        let mut out = io::BufWriter::with_capacity(1 << 20, file);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for tensor in sorted {
            match tensor.data {
                TensorData::F32(values) => write_numbers(&mut out, values, |value| value.to_le_bytes())?,
                TensorData::U32(values) => write_numbers(&mut out, values, |value| value.to_le_bytes())?,
            }
        }
        out.flush()
    })
}

/// How many numbers a shape holds, if they can be counted.
pub(super) fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n))
}

/// What the header says of one tensor, but for its place.
pub(super) struct HeaderEntry<'a> {
    pub name: &'a str,
    /// The file format's name of the number type.
    pub dtype: &'static str,
    pub shape: &'a [usize],
    /// The bytes of one number.
    pub number_bytes: usize,
}

/// The header of tensors that lie one behind the other, padded with spaces so that the numbers after it are aligned for
/// readers that map the file.
pub(super) fn header<'a>(
    path: &Path,
    tensors: impl Iterator<Item = HeaderEntry<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, Error> {
    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut names = BTreeSet::new();
    let mut start = 0usize;
    for HeaderEntry { name, dtype, shape, number_bytes } in tensors {
        if !names.insert(name) {
            return Err(Error::tensor(path, name, "cannot be written twice into one file"));
        }
        let size = count(shape).and_then(|count| count.checked_mul(number_bytes));
        let Some(end) = size.and_then(|size| start.checked_add(size)) else {
            return Err(Error::tensor(path, name, format!("shape {shape:?} is too large")));
        };
        entries.insert(name.to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
        start = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

fn write_numbers<N: Copy>(out: &mut impl Write, values: &[N], to_bytes: fn(N) -> [u8; 4]) -> io::Result<()> {
    let mut piece = Vec::with_capacity(4 << 12);
    for part in values.chunks(1 << 12) {
        piece.clear();
        piece.extend(part.iter().flat_map(|&value| to_bytes(value)));
        out.write_all(&piece)?;
    }
    Ok(())
}
