//! The header of a safetensors file, read and checked against the file's true length.
//!
//! Our own reader instead of `safetensors::SafeTensors`, which wants the whole file in memory and whose errors do not
//! always name the tensor; the number types are that crate's.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::Error;
use crate::error::shorten;

/// As in the `safetensors` crate.
const HEADER_LIMIT_BYTES: u64 = 100_000_000;
/// No tensor of any model has more axes.
const RANK_LIMIT: usize = 16;

/// Where a tensor lies and what it is. `start` counts from the beginning of the file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub start: u64,
    pub length: u64,
}

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    pub entries: BTreeMap<String, Entry>,
    pub metadata: BTreeMap<String, String>,
}

/// Reads the header at the beginning of `file`. On success every entry lies within the file, no two overlap, nothing
/// is left over, and each entry's length is that of its shape and number type.
pub(super) fn read(path: &Path, file: &mut File) -> Result<Header, Error> {
    let broken = |reason: String| Error::Header { path: path.to_path_buf(), reason };
    let about = file.metadata().map_err(Error::io(path, "examine"))?;
    if !about.is_file() {
        return Err(broken("not a regular file".into()));
    }
    let file_length = about.len();
    if file_length < 8 {
        return Err(broken(format!("the file has {file_length} bytes, too few for a header")));
    }
    let mut length = [0u8; 8];
    file.read_exact(&mut length).map_err(Error::io(path, "read"))?;
    let header_length = u64::from_le_bytes(length);
    if header_length > HEADER_LIMIT_BYTES {
        return Err(broken(format!(
            "it claims {header_length} bytes, at most {HEADER_LIMIT_BYTES} are allowed; is this a safetensors file?"
        )));
    }
    if header_length > file_length - 8 {
        return Err(broken(format!(
            "it claims {header_length} bytes, the file has {} after the length; is it cut short?",
            file_length - 8
        )));
    }
    let mut text = vec![0u8; header_length as usize];
    file.read_exact(&mut text).map_err(Error::io(path, "read"))?;
    parse(path, &text, 8 + header_length, file_length - 8 - header_length)
}

fn parse(path: &Path, text: &[u8], data_start: u64, data_length: u64) -> Result<Header, Error> {
    let raw: RawHeader = serde_json::from_slice(text)
        .map_err(|error| Error::Header { path: path.to_path_buf(), reason: shorten(&error.to_string()) })?;
    let mut entries = BTreeMap::new();
    let mut runs: Vec<(u64, u64, &str)> = Vec::with_capacity(raw.tensors.len());
    for (name, tensor) in &raw.tensors {
        let wrong = |reason: String| Error::tensor(path, name, reason);
        let [begin, end] = tensor.data_offsets;
        if begin > end || end > data_length {
            return Err(wrong(format!(
                "data_offsets [{begin}, {end}] lie outside the {data_length} bytes of data; is the file cut short?"
            )));
        }
        if tensor.shape.len() > RANK_LIMIT {
            return Err(wrong(format!("expected at most {RANK_LIMIT} axes, found {}", tensor.shape.len())));
        }
        let needed = size_bytes(tensor.dtype, &tensor.shape).ok_or_else(|| {
            wrong(format!("shape {:?} of {:?} is no whole number of bytes or too large", tensor.shape, tensor.dtype))
        })?;
        if needed != end - begin {
            return Err(wrong(format!(
                "shape {:?} of {:?} needs {needed} bytes, data_offsets span {}",
                tensor.shape,
                tensor.dtype,
                end - begin
            )));
        }
        let shape = tensor
            .shape
            .iter()
            .map(|&n| usize::try_from(n).map_err(|_| wrong(format!("axis of length {n}"))))
            .collect::<Result<_, _>>()?;
        entries
            .insert(name.clone(), Entry { dtype: tensor.dtype, shape, start: data_start + begin, length: end - begin });
        runs.push((begin, end, name));
    }
    runs.sort_unstable();
    let mut covered = 0;
    for &(begin, end, name) in &runs {
        if begin != covered {
            let what = if begin < covered { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(Error::tensor(
                path,
                name,
                format!("data begins at {begin}, which {what} (that ends at {covered})"),
            ));
        }
        covered = end;
    }
    if covered != data_length {
        return Err(Error::Header {
            path: path.to_path_buf(),
            reason: format!("the tensors end at {covered}, the data at {data_length}"),
        });
    }
    Ok(Header { entries, metadata: raw.metadata })
}

/// The bytes a tensor takes, or `None` when that overflows or is no whole number.
fn size_bytes(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    // An axis of length 0 must not hide that the others overflow: the product of the rest is used for strides.
    let mut product: u64 = 1;
    for &n in shape {
        product = product.checked_mul(n.max(1))?;
    }
    let bits = product.checked_mul(dtype.bitsize() as u64)?;
    if shape.contains(&0) {
        return Some(0);
    }
    bits.is_multiple_of(8).then_some(bits / 8)
}

struct RawHeader {
    tensors: BTreeMap<String, RawTensor>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: Dtype,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// By hand, for two reasons: a name that occurs twice is an error, and an error names the tensor.
impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;
            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object with an entry for each tensor")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                use serde::de::Error as _;
                let mut header = RawHeader { tensors: BTreeMap::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<Option<BTreeMap<String, String>>>()?.unwrap_or_default();
                        continue;
                    }
                    let tensor = map
                        .next_value::<RawTensor>()
                        .map_err(|error| A::Error::custom(format!("{}: {error}", shorten(&name))))?;
                    match header.tensors.entry(name) {
                        btree_map::Entry::Vacant(free) => free.insert(tensor),
                        btree_map::Entry::Occupied(taken) => {
                            return Err(A::Error::custom(format!("{} occurs twice", shorten(taken.key()))));
                        }
                    };
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
