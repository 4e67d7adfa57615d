//! Tensors in safetensors files: one file, or shards with an index; read one at a time, written atomically.
//!
//! The header is read with the file's length at hand, so that no entry can point outside the file or make more be
//! allocated than the file holds. Nothing is mapped into memory: a tensor is read from the file when it is asked for.

mod header;
mod index;
mod stream;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use safetensors::Dtype;

use crate::Error;
use crate::error::shorten;
use header::Entry;
pub(crate) use index::{explain_absence, shard_names};
pub use stream::{FloatType, Sink, StreamedTensor, write_streamed};
pub use write::{TensorData, TensorToWrite, write_tensors};

/// A tensor in memory, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The length along each axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// The values, as many as the product of `shape`.
    pub data: Vec<f32>,
}

/// The tensors of a model folder or of one safetensors file. Headers are checked when it is opened, data is read on
/// demand; it can be shared between threads.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    shards: Vec<Shard>,
    entries: BTreeMap<String, (usize, Entry)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: Mutex<File>,
}

impl TensorFile {
    /// Opens `model.safetensors`, or `model.safetensors.index.json` and its shards, in `folder`.
    ///
    /// # Errors
    /// When there is neither (with the command that converts a lone `pytorch_model.bin`), or a header, the index or a
    /// shard is broken.
    pub fn open(folder: &Path) -> Result<TensorFile, Error> {
        let single = folder.join("model.safetensors");
        if single.is_file() {
            return TensorFile::open_file(&single);
        }
        let index = folder.join("model.safetensors.index.json");
        if index.is_file() {
            return index::open(folder, &index);
        }
        Err(explain_absence(folder, "model"))
    }

    /// Opens one safetensors file, whatever its name.
    ///
    /// # Errors
    /// When it cannot be read or its header is broken.
    pub fn open_file(path: &Path) -> Result<TensorFile, Error> {
        let (shard, header) = Shard::open(path)?;
        let entries = header.entries.into_iter().map(|(name, entry)| (name, (0, entry))).collect();
        Ok(TensorFile { path: path.to_path_buf(), shards: vec![shard], entries, metadata: header.metadata })
    }

    /// The file, or the index file of shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The `__metadata__` strings of the file; empty for shards.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The first of `candidates` that is there.
    pub fn find<'c>(&self, candidates: &[&'c str]) -> Option<&'c str> {
        candidates.iter().copied().find(|name| self.contains(name))
    }

    /// The shape of a tensor, or `None` when it is not there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|(_, entry)| entry.shape.as_slice())
    }

    /// Whether [`TensorFile::read`] can read the tensor: F32, F16, BF16 or F64.
    pub fn is_float(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|(_, entry)| is_float(entry.dtype))
    }

    /// The sum of the sizes of all tensors in the file, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.entries.values().map(|(_, entry)| entry.length).sum()
    }

    /// Reads a tensor of exactly `expected_shape` as f32; F16, BF16 and F64 are converted.
    ///
    /// # Errors
    /// When it is missing, has another shape or number type, or the file ends early.
    pub fn read(&self, name: &str, expected_shape: &[usize]) -> Result<Vec<f32>, Error> {
        self.check(name, expected_shape, "")?;
        Ok(self.read_tensor(name)?.data)
    }

    /// Checks by the header alone that a tensor is there, of exactly `expected_shape` and of numbers that
    /// [`TensorFile::read`] can read. `hint` is put after the message about another shape.
    ///
    /// # Errors
    /// As [`TensorFile::read`], but for a file that ends early.
    pub fn check(&self, name: &str, expected_shape: &[usize], hint: &str) -> Result<(), Error> {
        let (_, entry) = self.entry(name)?;
        if entry.shape != expected_shape {
            return Err(Error::Shape {
                path: self.path_of(name),
                name: shorten(name),
                expected: expected_shape.to_vec(),
                found: entry.shape.clone(),
                hint: hint.to_owned(),
            });
        }
        if is_float(entry.dtype) { Ok(()) } else { Err(self.not_a_float(name)) }
    }

    /// Reads a tensor of whatever shape as f32; F16, BF16 and F64 are converted.
    ///
    /// # Errors
    /// When it is missing, has another number type, or the file ends early.
    pub fn read_tensor(&self, name: &str) -> Result<Tensor, Error> {
        let (shard, entry) = self.entry(name)?;
        let convert: fn(&[u8], &mut Vec<f32>) = match entry.dtype {
            Dtype::F32 => |bytes, out| out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            Dtype::F16 => |bytes, out| out.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
            Dtype::BF16 => {
                |bytes, out| out.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()))
            }
            Dtype::F64 => |bytes, out| out.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32)),
            _ => return Err(self.not_a_float(name)),
        };
        let data = self.shards[*shard].read(name, entry, convert)?;
        Ok(Tensor { shape: entry.shape.clone(), data })
    }

    /// Reads a one-dimensional tensor of indices: U32, I32 or I64, none negative, none above `u32::MAX`.
    ///
    /// # Errors
    /// When it is missing, has another rank, number type or a value out of range, or the file ends early.
    pub fn read_u32(&self, name: &str) -> Result<Vec<u32>, Error> {
        let (shard, entry) = self.entry(name)?;
        if entry.shape.len() != 1 {
            return Err(Error::tensor(
                &self.path_of(name),
                name,
                format!("expected a one-dimensional list of indices, found shape {:?}", entry.shape),
            ));
        }
        let convert: fn(&[u8], &mut Vec<i64>) = match entry.dtype {
            Dtype::U32 => {
                |bytes, out| out.extend(bytes.as_chunks().0.iter().map(|b| i64::from(u32::from_le_bytes(*b))))
            }
            Dtype::I32 => {
                |bytes, out| out.extend(bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))))
            }
            Dtype::I64 => |bytes, out| out.extend(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b))),
            other => {
                return Err(Error::NumberType {
                    path: self.path_of(name),
                    name: shorten(name),
                    expected: "U32, I32 or I64",
                    found: format!("{other:?}"),
                });
            }
        };
        let values = self.shards[*shard].read(name, entry, convert)?;
        let index = |(position, value): (usize, i64)| {
            u32::try_from(value).map_err(|_| {
                let reason = format!("expected indices from 0 to {}, found {value} at position {position}", u32::MAX);
                Error::tensor(&self.path_of(name), name, reason)
            })
        };
        values.into_iter().enumerate().map(index).collect()
    }

    /// The file a tensor lies in, for messages.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.entries.get(name).map_or_else(|| self.path.clone(), |(shard, _)| self.shards[*shard].path.clone())
    }

    fn entry(&self, name: &str) -> Result<&(usize, Entry), Error> {
        self.entries.get(name).ok_or_else(|| self.missing(name))
    }

    /// The error for a tensor that is not there.
    fn missing(&self, name: &str) -> Error {
        Error::MissingTensor { path: self.path.clone(), name: shorten(name), hint: self.hint_for_missing(name) }
    }

    /// The error for a tensor whose numbers cannot be weights.
    fn not_a_float(&self, name: &str) -> Error {
        let found = self.entries.get(name).map_or_else(String::new, |(_, entry)| format!("{:?}", entry.dtype));
        Error::NumberType { path: self.path_of(name), name: shorten(name), expected: "F32, F16, BF16 or F64", found }
    }

    /// Names a tensor that ends alike, for prefixes are what usually differs.
    fn hint_for_missing(&self, name: &str) -> String {
        let tail = |text: &str| text.rsplit('.').take(3).map(str::to_owned).collect::<Vec<_>>();
        let wanted = tail(name);
        match self.names().find(|candidate| tail(candidate) == wanted) {
            Some(close) => format!("the closest name there is {}", shorten(close)),
            None => format!("the file holds {} others; was it saved from another kind of model?", self.entries.len()),
        }
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}

impl Shard {
    fn open(path: &Path) -> Result<(Shard, header::Header), Error> {
        let mut file = File::open(path).map_err(Error::io(path, "open"))?;
        let header = header::read(path, &mut file)?;
        Ok((Shard { path: path.to_path_buf(), file: Mutex::new(file) }, header))
    }

    /// Reads one tensor in pieces, so that memory holds little more than the converted values.
    fn read<N>(&self, name: &str, entry: &Entry, convert: fn(&[u8], &mut Vec<N>)) -> Result<Vec<N>, Error> {
        const PIECE_BYTES: u64 = 1 << 20;
        let count: usize = entry.shape.iter().product();
        let mut values = Vec::new();
        values
            .try_reserve_exact(count)
            .map_err(|_| Error::tensor(&self.path, name, format!("{count} values do not fit into memory")))?;
        let fail =
            |source| Error::tensor(&self.path, name, format!("cannot read its data: {source}; is the file cut short?"));
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(entry.start)).map_err(fail)?;
        let mut piece = vec![0u8; entry.length.min(PIECE_BYTES) as usize];
        let mut remaining = entry.length;
        while remaining > 0 {
            let part = &mut piece[..remaining.min(PIECE_BYTES) as usize];
            file.read_exact(part).map_err(fail)?;
            convert(part, &mut values);
            remaining -= part.len() as u64;
        }
        Ok(values)
    }
}
