//! Writing safetensors: f32 weights and u32 indices, atomically, the same bytes for the same tensors.

use std::borrow::Cow;
use std::collections::BTreeMap;
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
    for pair in sorted.windows(2) {
        if pair[0].name == pair[1].name {
            return Err(Error::tensor(path, &pair[0].name, "cannot be written twice into one file"));
        }
    }
    let header = header(path, &sorted, metadata)?;
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

/// The header, padded with spaces so that the numbers after it are aligned for readers that map the file.
fn header(path: &Path, sorted: &[&TensorToWrite], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>, Error> {
    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut start = 0usize;
    for tensor in sorted {
        let product = tensor.shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        if product != Some(tensor.count()) {
            let reason = format!("shape {:?} does not hold {} numbers", tensor.shape, tensor.count());
            return Err(Error::tensor(path, &tensor.name, reason));
        }
        let end = start + tensor.count() * size_of::<f32>();
        let dtype = match tensor.data {
            TensorData::F32(_) => "F32",
            TensorData::U32(_) => "U32",
        };
        let entry = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]});
        entries.insert(tensor.name.clone().into_owned(), entry);
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
