//! The structure of a GGUF file: header, metadata, tensor entries; each checked against the file's true length before
//! anything is allocated by it. Tensor data is read on demand.
//!
//! Our own reader: of the crates that read GGUF, `gguf-rs` and `gguf` dequantise nothing (how they take hostile files was
//! not checked), `ggml-quants` leaves the K formats undone, and candle is a tensor framework.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::metadata::{Metadata, Value};
use super::quants::Quantisation;
use crate::Error;
use crate::error::shorten;

/// Most bytes that the metadata may take in memory; a vocabulary of a quarter of a million has a tenth of it.
const METADATA_LIMIT_BYTES: u64 = 256 << 20;
/// Most keys, and most tensors.
const ENTRIES_LIMIT: u64 = 1 << 16;
/// Longest key or tensor name.
const NAME_LIMIT_BYTES: u64 = 1 << 16;
/// Most axes of a tensor, as in ggml.
const RANK_LIMIT: u32 = 4;
/// What data is aligned to where the file does not say.
const DEFAULT_ALIGNMENT: usize = 32;

/// Where a tensor lies and what it is.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub quantisation: Quantisation,
    /// Row-major, as everywhere in this crate: the reverse of the file's order.
    pub shape: Vec<usize>,
    /// From the beginning of the file.
    start: u64,
    length: u64,
}

impl Entry {
    /// The values of a row: the axis that blocks lie along.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// How many values there are.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An opened GGUF file.
#[derive(Debug)]
pub(super) struct Gguf {
    pub metadata: Metadata,
    pub tensors: BTreeMap<String, Entry>,
    path: PathBuf,
    file: File,
}

impl Gguf {
    /// Reads everything but the tensors' data. On success every entry lies within the file, no two overlap, and each has
    /// the length of its shape and format.
    pub fn open(path: &Path) -> Result<Gguf, Error> {
        let mut file = File::open(path).map_err(Error::io(path, "open"))?;
        let about = file.metadata().map_err(Error::io(path, "examine"))?;
        if !about.is_file() {
            return Err(Error::Gguf { path: path.to_path_buf(), reason: "not a regular file".to_owned() });
        }
        let mut cursor = Cursor {
            path,
            input: BufReader::with_capacity(1 << 16, &mut file),
            position: 0,
            length: about.len(),
            budget_bytes: METADATA_LIMIT_BYTES,
        };
        let (metadata, tensors) = cursor.read_all()?;
        Ok(Gguf { metadata, tensors, path: path.to_path_buf(), file })
    }

    /// Gives the values of `count` rows from the row `first` on to `values`, in place of what it held.
    pub fn read_rows(
        &mut self,
        entry: &Entry,
        first: usize,
        count: usize,
        bytes: &mut Vec<u8>,
        values: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let format = entry.quantisation;
        let row_bytes = entry.columns() / format.block_values() * format.block_bytes();
        let start = entry.start + first as u64 * row_bytes as u64;
        bytes.resize(count * row_bytes, 0);
        self.file.seek(SeekFrom::Start(start)).map_err(Error::io(&self.path, "seek in"))?;
        self.file.read_exact(bytes).map_err(Error::io(&self.path, "read"))?;
        values.clear();
        format.dequantise(bytes, values);
        Ok(())
    }
}

/// The file while its structure is read.
struct Cursor<'a> {
    path: &'a Path,
    input: BufReader<&'a mut File>,
    position: u64,
    length: u64,
    /// What the metadata may still take.
    budget_bytes: u64,
}

impl Cursor<'_> {
    fn read_all(&mut self) -> Result<(Metadata, BTreeMap<String, Entry>), Error> {
        let magic = self.bytes::<4>("the magic number")?;
        if &magic != b"GGUF" {
            return Err(self.broken("it does not begin with GGUF; is it another kind of file?"));
        }
        match self.u32("the version")? {
            2 | 3 => {}
            1 => return Err(self.broken("version 1 is not read; convert the model again with a present llama.cpp")),
            other if (2..=3).contains(&other.swap_bytes()) => {
                return Err(self.broken("it is big-endian, which is not read; convert it on a little-endian machine"));
            }
            other => return Err(self.broken(format!("expected version 2 or 3, found {other}"))),
        }
        // The least that an entry takes: a name's length, a rank, an axis, a type and an offset.
        let tensors = self.count("tensors", 8 + 4 + 8 + 4 + 8)?;
        let keys = self.count("keys", 8 + 4 + 1)?;
        let mut metadata = Metadata { path: self.path.to_path_buf(), ..Metadata::default() };
        for _ in 0..keys {
            let key = self.text("a key", NAME_LIMIT_BYTES)?;
            let kind = self.u32(&key)?;
            let value = self.value(&key, kind)?;
            if metadata.values.insert(key.clone(), value).is_some() {
                return Err(self.broken(format!("the key {} occurs twice", shorten(&key))));
            }
        }
        let alignment = metadata.integer("general.alignment", 1, 1 << 20)?.unwrap_or(DEFAULT_ALIGNMENT) as u64;
        if !alignment.is_power_of_two() {
            return Err(metadata.wrong("general.alignment", "a power of two", alignment.to_string()));
        }
        let mut raw = BTreeMap::new();
        for _ in 0..tensors {
            let name = self.text("a tensor's name", NAME_LIMIT_BYTES)?;
            let tensor = self.tensor(&name)?;
            match raw.entry(name) {
                btree_map::Entry::Vacant(free) => free.insert(tensor),
                btree_map::Entry::Occupied(taken) => {
                    return Err(self.broken(format!("the tensor {} occurs twice", shorten(taken.key()))));
                }
            };
        }
        let data_start = self.position.next_multiple_of(alignment);
        let tensors = self.place(raw, data_start, alignment)?;
        Ok((metadata, tensors))
    }

    /// One tensor's entry, its offset still counted from the beginning of the data.
    fn tensor(&mut self, name: &str) -> Result<Entry, Error> {
        let rank = self.u32(name)?;
        if !(1..=RANK_LIMIT).contains(&rank) {
            let reason = format!("expected from 1 to {RANK_LIMIT} axes, found {rank}");
            return Err(Error::tensor(self.path, name, reason));
        }
        let mut lengths = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            lengths.push(self.u64(name)?);
        }
        let code = self.u32(name)?;
        let start = self.u64(name)?;
        let wrong = |reason: String| Error::tensor(self.path, name, reason);
        let quantisation = Quantisation::from_code(code).ok_or_else(|| {
            let known = Quantisation::ALL.map(Quantisation::name).join(", ");
            wrong(format!(
                "expected one of the formats {known}, found {}; take the model in another quantisation, such as Q8_0",
                other_format(code)
            ))
        })?;
        let count = lengths.iter().try_fold(1u64, |product, &n| product.checked_mul(n)).filter(|&count| count > 0);
        let blocks = count.filter(|_| lengths[0].is_multiple_of(quantisation.block_values() as u64));
        let length = blocks
            .and_then(|count| {
                (count / quantisation.block_values() as u64).checked_mul(quantisation.block_bytes() as u64)
            })
            .ok_or_else(|| {
                let (name, values) = (quantisation.name(), quantisation.block_values());
                wrong(format!("expected axes {lengths:?} to hold whole blocks of {values} values in {name}"))
            })?;
        let shape = lengths.iter().rev().map(|&n| usize::try_from(n).map_err(|_| wrong(format!("axis of length {n}"))));
        Ok(Entry { quantisation, shape: shape.collect::<Result<_, _>>()?, start, length })
    }

    /// Puts the entries to their places in the file.
    fn place(
        &self,
        mut entries: BTreeMap<String, Entry>,
        data_start: u64,
        alignment: u64,
    ) -> Result<BTreeMap<String, Entry>, Error> {
        let data_length = self.length.saturating_sub(data_start);
        for (name, entry) in &mut entries {
            let wrong = |reason: String| Error::tensor(self.path, name, reason);
            if !entry.start.is_multiple_of(alignment) {
                return Err(wrong(format!(
                    "expected an offset that is a multiple of {alignment}, found {}",
                    entry.start
                )));
            }
            if entry.start.checked_add(entry.length).is_none_or(|end| end > data_length) {
                return Err(wrong(format!(
                    "{} bytes from offset {} on lie outside the {data_length} bytes of data; is the file cut short?",
                    entry.length, entry.start
                )));
            }
            entry.start += data_start;
        }
        let mut runs: Vec<(u64, u64, &str)> =
            entries.iter().map(|(name, entry)| (entry.start, entry.start + entry.length, name.as_str())).collect();
        runs.sort_unstable();
        if let Some(pair) = runs.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            let reason = format!("its data overlaps that of {}", shorten(pair[0].2));
            return Err(Error::tensor(self.path, pair[1].2, reason));
        }
        Ok(entries)
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value, Error> {
        Ok(match kind {
            0..=5 | 10 | 11 => Value::Integer(self.integer(key, kind)?),
            6 | 12 => Value::Float(self.float(key, kind)?),
            7 => Value::Flag(self.flag(key)?),
            8 => Value::Text(self.text(key, METADATA_LIMIT_BYTES)?),
            9 => self.list(key)?,
            other => return Err(self.broken(format!("{}: no value has the type {other}", shorten(key)))),
        })
    }

    fn list(&mut self, key: &str) -> Result<Value, Error> {
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(self.broken(format!("{}: lists of lists are not read", shorten(key)))),
            other => return Err(self.broken(format!("{}: no value has the type {other}", shorten(key)))),
        };
        if count > (self.length - self.position) / least {
            return Err(self.broken(format!(
                "{}: {count} values do not fit into the {} bytes left; is it cut short?",
                shorten(key),
                self.length - self.position
            )));
        }
        // In memory an element takes at least this much; texts pay for their letters when they are read.
        self.spend(key, count.saturating_mul(if kind == 7 { 1 } else { 8 }))?;
        Ok(match kind {
            6 | 12 => Value::Floats((0..count).map(|_| self.float(key, kind)).collect::<Result<_, _>>()?),
            7 => Value::Flags((0..count).map(|_| self.flag(key)).collect::<Result<_, _>>()?),
            8 => Value::Texts((0..count).map(|_| self.text(key, METADATA_LIMIT_BYTES)).collect::<Result<_, _>>()?),
            _ => {
                let mut list = Vec::new();
                for _ in 0..count {
                    let number = self.integer(key, kind)?;
                    let fits = i64::try_from(number);
                    list.push(fits.map_err(|_| self.broken(format!("{}: {number} is too large", shorten(key))))?);
                }
                Value::Integers(list)
            }
        })
    }

    fn integer(&mut self, key: &str, kind: u32) -> Result<i128, Error> {
        Ok(match kind {
            0 => i128::from(u8::from_le_bytes(self.bytes(key)?)),
            1 => i128::from(i8::from_le_bytes(self.bytes(key)?)),
            2 => i128::from(u16::from_le_bytes(self.bytes(key)?)),
            3 => i128::from(i16::from_le_bytes(self.bytes(key)?)),
            4 => i128::from(u32::from_le_bytes(self.bytes(key)?)),
            5 => i128::from(i32::from_le_bytes(self.bytes(key)?)),
            10 => i128::from(u64::from_le_bytes(self.bytes(key)?)),
            _ => i128::from(i64::from_le_bytes(self.bytes(key)?)),
        })
    }

    fn float(&mut self, key: &str, kind: u32) -> Result<f64, Error> {
        Ok(match kind {
            6 => f64::from(f32::from_le_bytes(self.bytes(key)?)),
            _ => f64::from_le_bytes(self.bytes(key)?),
        })
    }

    fn flag(&mut self, key: &str) -> Result<bool, Error> {
        match self.bytes::<1>(key)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.broken(format!("{}: expected a flag of 0 or 1, found {other}", shorten(key)))),
        }
    }

    fn text(&mut self, what: &str, limit_bytes: u64) -> Result<String, Error> {
        let length = self.u64(what)?;
        let left = self.length - self.position;
        if length > left || length > limit_bytes {
            return Err(self.broken(format!(
                "{}: a text of {length} bytes, where {left} are left and {limit_bytes} allowed; is it cut short?",
                shorten(what)
            )));
        }
        // With what a text takes beside its letters.
        self.spend(what, length + 24)?;
        let mut bytes = vec![0; length as usize];
        self.input.read_exact(&mut bytes).map_err(Error::io(self.path, "read"))?;
        self.position += length;
        String::from_utf8(bytes).map_err(|_| self.broken(format!("{}: expected UTF-8 text", shorten(what))))
    }

    /// A number of entries, each of which takes at least `least` bytes of the file.
    fn count(&mut self, what: &str, least: u64) -> Result<u64, Error> {
        let count = self.u64(what)?;
        let left = self.length - self.position;
        if count > ENTRIES_LIMIT || count > left / least {
            return Err(self.broken(format!(
                "it claims {count} {what}, where {ENTRIES_LIMIT} are allowed and {left} bytes are left; is it cut short?"
            )));
        }
        Ok(count)
    }

    fn spend(&mut self, what: &str, bytes: u64) -> Result<(), Error> {
        match self.budget_bytes.checked_sub(bytes) {
            Some(rest) => {
                self.budget_bytes = rest;
                Ok(())
            }
            None => {
                let reason = format!("{}: its metadata takes more than {METADATA_LIMIT_BYTES} bytes", shorten(what));
                Err(self.broken(reason))
            }
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32, Error> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, Error> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        if self.length - self.position < N as u64 {
            return Err(self.broken(format!("it ends within {}; is it cut short?", shorten(what))));
        }
        self.input.read_exact(&mut bytes).map_err(Error::io(self.path, "read"))?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn broken(&self, reason: impl Into<String>) -> Error {
        Error::Gguf { path: self.path.to_path_buf(), reason: reason.into() }
    }
}

/// The name of a format of ggml that is not read.
fn other_format(code: u32) -> String {
    let name = match code {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=27 => "integers",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("format number {code}"),
    };
    name.to_owned()
}
