//! The compact checkpoint format: which rows and columns of each projection are left, and the checks that make the
//! rest of the program believe it. Specified in `docs/compact-format.md`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::Error;
use crate::error::shorten;
use crate::tensors::TensorFile;

/// The version this program writes; it reads this one and all before it.
pub const FORMAT_VERSION: u64 = 1;

/// Most rows or columns a projection may have had.
const SIZE_LIMIT: u64 = 1 << 24;

/// The `finegates` object of a compact checkpoint's `config.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactInfo {
    /// For each projection, by module path, the rows and columns it had before compression.
    pub projections: BTreeMap<String, (usize, usize)>,
}

/// What is left of one projection.
#[derive(Clone, Debug, PartialEq)]
pub struct CompactProjection {
    /// The rows before compression.
    pub rows: usize,
    /// The columns before compression.
    pub columns: usize,
    /// `[kept_rows.len(), kept_columns.len()]`.
    pub weight: Vec<f32>,
    /// `[kept_rows.len()]`, when the projection has a bias.
    pub bias: Option<Vec<f32>>,
    /// The rows that are left, ascending.
    pub kept_rows: Vec<u32>,
    /// The columns that are left, ascending.
    pub kept_columns: Vec<u32>,
}

impl CompactInfo {
    /// The value of the `finegates` key.
    pub fn to_json(&self) -> Value {
        let projections: Map<String, Value> = self
            .projections
            .iter()
            .map(|(path, (rows, columns))| (path.clone(), json!({"rows": rows, "columns": columns})))
            .collect();
        json!({"format_version": FORMAT_VERSION, "projections": projections})
    }

    /// Reads the value of the `finegates` key; `path` is the config file, for messages.
    ///
    /// # Errors
    /// When it is of a newer version or not as specified.
    pub fn from_json(path: &Path, value: &Value) -> Result<CompactInfo, Error> {
        let describe = |value: &Value| shorten(&value.to_string());
        let wrong = |field: &str, expected: &str, found: String| Error::field(path, field, expected, found);
        let version = value.get("format_version").unwrap_or(&Value::Null);
        match version.as_u64() {
            Some(found) if found > FORMAT_VERSION => {
                return Err(Error::NewerFormat { path: path.to_path_buf(), found, supported: FORMAT_VERSION });
            }
            Some(1..) => {}
            _ => return Err(wrong("finegates.format_version", "an integer of at least 1", describe(version))),
        }
        let Some(listed) = value.get("projections").and_then(Value::as_object) else {
            let found = value.get("projections").map_or("nothing".to_owned(), describe);
            return Err(wrong("finegates.projections", "an object from module paths to sizes", found));
        };
        let mut projections = BTreeMap::new();
        for (module, sizes) in listed {
            let size = |key: &str| {
                let found = sizes.get(key).unwrap_or(&Value::Null);
                found.as_u64().filter(|n| (1..=SIZE_LIMIT).contains(n)).map(|n| n as usize).ok_or_else(|| {
                    let field = format!("finegates.projections.{}.{key}", shorten(module));
                    wrong(&field, &format!("an integer from 1 to {SIZE_LIMIT}"), describe(found))
                })
            };
            projections.insert(module.clone(), (size("rows")?, size("columns")?));
        }
        Ok(CompactInfo { projections })
    }

    /// Reads one projection and checks that its parts agree.
    ///
    /// # Errors
    /// When the projection is not listed, a tensor of it is missing or wrong, or its indices are not ascending, unique
    /// and within the original size.
    pub fn read(&self, tensors: &TensorFile, module: &str) -> Result<CompactProjection, Error> {
        let kept = self.kept(tensors, module)?;
        let shape = [kept.rows.len(), kept.columns.len()];
        let weight = tensors.read(&format!("{module}.weight"), &shape)?;
        let bias_name = format!("{module}.bias");
        let bias = if tensors.contains(&bias_name) { Some(tensors.read(&bias_name, &shape[..1])?) } else { None };
        let (rows, columns) = kept.original;
        Ok(CompactProjection { rows, columns, weight, bias, kept_rows: kept.rows, kept_columns: kept.columns })
    }

    fn kept(&self, tensors: &TensorFile, module: &str) -> Result<Kept, Error> {
        let Some(&original) = self.projections.get(module) else {
            let reason =
                "no such projection in the finegates object of config.json; was it compressed from another model?";
            return Err(Error::tensor(tensors.path(), module, reason));
        };
        let rows = indices(tensors, &format!("{module}.kept_rows"), original.0)?;
        let columns = indices(tensors, &format!("{module}.kept_columns"), original.1)?;
        Ok(Kept { original, rows, columns })
    }
}

struct Kept {
    original: (usize, usize),
    rows: Vec<u32>,
    columns: Vec<u32>,
}

/// Checks every projection of a compact checkpoint without reading its weights.
///
/// # Errors
/// As [`CompactInfo::read`], and when indices are there for a projection that is not listed.
pub fn validate(info: &CompactInfo, tensors: &TensorFile) -> Result<(), Error> {
    for module in info.projections.keys() {
        let kept = info.kept(tensors, module)?;
        let weight = format!("{module}.weight");
        check_shape(tensors, &weight, &[kept.rows.len(), kept.columns.len()])?;
        let bias = format!("{module}.bias");
        if tensors.contains(&bias) {
            check_shape(tensors, &bias, &[kept.rows.len()])?;
        }
    }
    for name in tensors.names() {
        let module = name.strip_suffix(".kept_rows").or_else(|| name.strip_suffix(".kept_columns"));
        if module.is_some_and(|module| !info.projections.contains_key(module)) {
            let reason =
                "config.json lists no such projection in finegates.projections; do the two files belong together?";
            return Err(Error::tensor(&tensors.path_of(name), name, reason));
        }
    }
    Ok(())
}

fn check_shape(tensors: &TensorFile, name: &str, expected: &[usize]) -> Result<(), Error> {
    tensors.check(name, expected, "; its kept_rows and kept_columns say otherwise")
}

/// Reads indices that must ascend without repetition and stay below `original`.
fn indices(tensors: &TensorFile, name: &str, original: usize) -> Result<Vec<u32>, Error> {
    let found = tensors.shape(name).map_or(0, |shape| shape.iter().product());
    if found > original {
        let reason = format!("expected at most {original} indices, found {found}");
        return Err(Error::tensor(&tensors.path_of(name), name, reason));
    }
    let kept = tensors.read_u32(name)?;
    for (position, pair) in kept.windows(2).enumerate() {
        if pair[0] >= pair[1] {
            let reason =
                format!("expected ascending indices, found {} after {} at position {}", pair[1], pair[0], position + 1);
            return Err(Error::tensor(&tensors.path_of(name), name, reason));
        }
    }
    if let Some(&last) = kept.last().filter(|&&last| last as usize >= original) {
        let reason = format!("expected indices below {original}, found {last}");
        return Err(Error::tensor(&tensors.path_of(name), name, reason));
    }
    Ok(kept)
}
