//! GGUF files made by hand, byte for byte.

use std::path::Path;

use crate::support::write;

/// A value of the metadata, of the types that model files use.
#[derive(Clone)]
pub enum Value {
    U32(u32),
    I32(i32),
    F32(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

pub fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

/// A file: keys, and tensors with their axes in the file's order, their type's number and their bytes.
#[derive(Clone, Default)]
pub struct File {
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl File {
    /// Sets a key, or changes it.
    pub fn set(&mut self, key: &str, value: Value) -> &mut File {
        self.remove(key).keys.push((key.to_owned(), value));
        self
    }

    pub fn remove(&mut self, key: &str) -> &mut File {
        self.keys.retain(|(name, _)| name != key);
        self
    }

    /// Adds a tensor of f32, or changes it; `shape` is row-major, as in a checkpoint.
    pub fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut File {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(name, shape, 0, bytes)
    }

    pub fn raw(&mut self, name: &str, shape: &[usize], kind: u32, bytes: Vec<u8>) -> &mut File {
        self.tensors.retain(|(other, ..)| other != name);
        self.tensors.push((name.to_owned(), shape.iter().rev().map(|&n| n as u64).collect(), kind, bytes));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            put_text(&mut out, key);
            put(&mut out, value);
        }
        let mut offset = 0;
        for (name, axes, kind, bytes) in &self.tensors {
            put_text(&mut out, name);
            out.extend((axes.len() as u32).to_le_bytes());
            axes.iter().for_each(|axis| out.extend(axis.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += bytes.len().next_multiple_of(32);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        for (_, _, _, bytes) in &self.tensors {
            out.extend(bytes);
            out.resize(out.len().next_multiple_of(32), 0);
        }
        out
    }

    pub fn write(&self, path: &Path) {
        write(path, self.bytes());
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) {
    let list = |kind: u32, count: usize, out: &mut Vec<u8>| {
        out.extend(9u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((count as u64).to_le_bytes());
    };
    match value {
        Value::U32(number) => out.extend([4u32.to_le_bytes(), number.to_le_bytes()].concat()),
        Value::I32(number) => out.extend([5u32.to_le_bytes(), number.to_le_bytes()].concat()),
        Value::F32(number) => out.extend([6u32.to_le_bytes(), number.to_le_bytes()].concat()),
        Value::Flag(flag) => {
            out.extend(7u32.to_le_bytes());
            out.push(u8::from(*flag));
        }
        Value::Text(text) => {
            out.extend(8u32.to_le_bytes());
            put_text(out, text);
        }
        Value::Texts(texts) => {
            list(8, texts.len(), out);
            texts.iter().for_each(|text| put_text(out, text));
        }
        Value::I32s(numbers) => {
            list(5, numbers.len(), out);
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        Value::F32s(numbers) => {
            list(6, numbers.len(), out);
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
    }
}
