//! Rows of Parquet files, read a row group at a time, only the columns asked for. Label names that the Hugging Face hub
//! keeps in a file's metadata are found here too.

use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::{Arc, Once};

use parquet::basic::Compression;
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type};

use crate::records::Value;

/// Reads the rows of a Parquet file. Problems are texts: a file that breaks once cannot be read on.
pub struct ParquetReader {
    reader: Box<dyn FileReader>,
    /// The columns that are read.
    selected: SchemaDescPtr,
    /// The row group that is read next, and what is left of the one before.
    group: usize,
    rows: Option<ReaderIter>,
    columns: Vec<String>,
    metadata: Option<String>,
    schema: Type,
    row: u64,
}

impl ParquetReader {
    /// Opens a file and checks that its compression can be read.
    pub fn open(file: File) -> Result<ParquetReader, String> {
        ParquetReader::from_chunks(file)
    }

    /// Opens anything that can be read at a position.
    pub fn from_chunks<R: ChunkReader + 'static>(chunks: R) -> Result<ParquetReader, String> {
        guarded(move || {
            let reader = SerializedFileReader::new(chunks).map_err(|error| error.to_string())?;
            let metadata = reader.metadata();
            for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
                readable(column.compression())?;
            }
            let file = metadata.file_metadata();
            let schema = file.schema().clone();
            let columns = schema.get_fields().iter().map(|field| field.name().to_owned()).collect();
            let pairs = file.key_value_metadata().map(Vec::as_slice).unwrap_or_default();
            let hub = pairs.iter().find(|pair| pair.key == "huggingface").and_then(|pair| pair.value.clone());
            let selected = file.schema_descr_ptr();
            let reader = Box::new(reader);
            Ok(ParquetReader { reader, selected, group: 0, rows: None, columns, metadata: hub, schema, row: 0 })
        })
    }

    /// The names of the columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The class names that the hub's metadata gives the integers of a column.
    pub fn class_names(&self, column: &str) -> Option<Vec<String>> {
        let metadata: serde_json::Value = serde_json::from_str(self.metadata.as_deref()?).ok()?;
        let names = metadata.get("info")?.get("features")?.get(column)?.get("names")?.as_array()?;
        names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
    }

    /// Reads only these columns from now on, in this order. Only before the first row.
    pub fn select(self, columns: &[&str]) -> Result<ParquetReader, String> {
        let fields = self.schema.get_fields();
        let chosen: Vec<_> = fields.iter().filter(|field| columns.contains(&field.name())).cloned().collect();
        guarded(move || {
            let projection = Type::group_type_builder(self.schema.name())
                .with_fields(chosen)
                .build()
                .map_err(|error| error.to_string())?;
            let selected = Arc::new(SchemaDescriptor::new(Arc::new(projection)));
            Ok(ParquetReader { selected, ..self })
        })
    }

    /// How many rows have been read or passed over.
    pub fn rows_read(&self) -> u64 {
        self.row
    }

    /// Passes over the first rows of the file, whole row groups without reading them. Only before the first row.
    pub fn skip(&mut self, rows: u64) -> Result<(), String> {
        while self.group < self.reader.num_row_groups() {
            let group = self.reader.metadata().row_group(self.group).num_rows();
            let Some(after) = u64::try_from(group).ok().and_then(|group| self.row.checked_add(group)) else {
                return Err(format!("row group {}: {group} rows", self.group));
            };
            if after > rows {
                break;
            }
            self.row = after;
            self.group += 1;
        }
        while self.row < rows {
            match self.read(&[]) {
                Some(row) => row.map(drop)?,
                None => return Err(format!("expected at least {rows} rows, found {}", self.row)),
            }
        }
        Ok(())
    }

    /// The next row's values of `columns`, with its number from 1.
    pub fn read(&mut self, columns: &[String]) -> Option<Result<(u64, Vec<Value>), String>> {
        match guarded(|| self.next_row()) {
            Ok(None) => None,
            Ok(Some(row)) => {
                self.row += 1;
                Some(Ok((self.row, values(row, columns))))
            }
            Err(problem) => Some(Err(format!("row {}: {problem}", self.row + 1))),
        }
    }

    fn next_row(&mut self) -> Result<Option<Row>, String> {
        let text = |error: parquet::errors::ParquetError| error.to_string();
        loop {
            if let Some(row) = self.rows.as_mut().and_then(Iterator::next) {
                return row.map(Some).map_err(text);
            }
            self.rows = None;
            if self.group == self.reader.num_row_groups() {
                return Ok(None);
            }
            let group = self.reader.get_row_group(self.group).map_err(text)?;
            self.group += 1;
            self.rows = Some(TreeBuilder::new().as_iter(Arc::clone(&self.selected), group.as_ref()).map_err(text)?);
        }
    }
}

fn values(row: Row, columns: &[String]) -> Vec<Value> {
    let mut fields = row.into_columns();
    let mut take = |column: &String| match fields.iter_mut().find(|(name, _)| name == column) {
        Some((_, field)) => value(std::mem::replace(field, Field::Null)),
        None => Value::Missing,
    };
    columns.iter().map(&mut take).collect()
}

fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Missing,
        Field::Bool(value) => Value::Text(value.to_string()),
        Field::Byte(value) => Value::Integer(value.into()),
        Field::Short(value) => Value::Integer(value.into()),
        Field::Int(value) => Value::Integer(value.into()),
        Field::Long(value) => Value::Integer(value),
        Field::UByte(value) => Value::Integer(value.into()),
        Field::UShort(value) => Value::Integer(value.into()),
        Field::UInt(value) => Value::Integer(value.into()),
        Field::ULong(value) => i64::try_from(value).map_or_else(|_| Value::Text(value.to_string()), Value::Integer),
        Field::Float16(value) => Value::Float(value.to_f64()),
        // By way of its shortest decimal: 3.8 stays 3.8.
        Field::Float(value) => Value::Float(value.to_string().parse().unwrap_or(f64::from(value))),
        Field::Double(value) => Value::Float(value),
        Field::Str(value) => Value::Text(value),
        Field::Bytes(value) => match std::str::from_utf8(value.data()) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::NotUtf8,
        },
        Field::Group(_) => Value::Other("a group"),
        Field::ListInternal(_) => Value::Other("a list"),
        Field::MapInternal(_) => Value::Other("a map"),
        Field::Decimal(_) => Value::Other("a decimal"),
        _ => Value::Other("a time"),
    }
}

fn readable(compression: Compression) -> Result<(), String> {
    match compression {
        Compression::ZSTD(_) if !cfg!(feature = "parquet-zstd") => {
            Err("compressed with zstd, which this build cannot \
             read; write it with snappy compression, or build with --features parquet-zstd"
                .to_owned())
        }
        Compression::LZO => {
            Err("compressed with lzo, which cannot be read; write it with snappy compression".to_owned())
        }
        _ => Ok(()),
    }
}

thread_local! {
    /// Whether a panic on this thread is caught and reported as an error, so that nothing is to be said about it.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// The Parquet reader is known to panic on some malformed files; that is the file's fault and is reported as such, without the
/// panic's own message.
fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |panic| {
            if !QUIET.try_with(Cell::get).unwrap_or(false) {
                previous(panic);
            }
        }));
    });
    let before = QUIET.replace(true);
    let caught = catch_unwind(AssertUnwindSafe(read));
    QUIET.set(before);
    caught.unwrap_or_else(|_| Err("malformed Parquet file".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_caught_panic_says_nothing_and_any_other_still_does() {
        let said = Arc::new(AtomicUsize::new(0));
        let (counter, here) = (Arc::clone(&said), std::thread::current().id());
        set_hook(Box::new(move |_| {
            counter.fetch_add(usize::from(std::thread::current().id() == here), Ordering::Relaxed);
        }));
        let caught: Result<(), _> = guarded(|| panic!("out of bounds"));
        assert_eq!((caught, said.load(Ordering::Relaxed)), (Err("malformed Parquet file".to_owned()), 0));
        assert!(catch_unwind(|| panic!("a defect of ours")).is_err());
        assert_eq!(said.load(Ordering::Relaxed), 1);
        let _ = take_hook();
    }
}
