//! Adapters in the layout of PEFT's FineGates proposal: `adapter_config.json` and `adapter_model.safetensors` with
//! gates, trained biases and the head. Whether one fits a model is for the model to say.

mod config;
mod names;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::Error;
use crate::error::shorten;
use crate::tensors::{Tensor, TensorFile, TensorToWrite, explain_absence, write_tensors};
use crate::write::write_atomic;
pub use config::{AdapterConfig, TargetModules};

/// What a gated layer's two vectors hold; rows and columns of a layer are of one form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateForm {
    /// θ, as in PEFT's proposal: `ω = clamp(tanh θ + ½, 0, 1)`.
    Theta,
    /// ω itself, any number; 0 is closed. PEFT does not know this form.
    Values,
}

impl GateForm {
    const ALL: [GateForm; 2] = [GateForm::Theta, GateForm::Values];

    /// The end of the name of a vector of row gates.
    pub const fn rows_suffix(self) -> &'static str {
        match self {
            GateForm::Theta => ".finegates_rows",
            GateForm::Values => ".finegates_row_values",
        }
    }

    /// The end of the name of a vector of column gates.
    pub const fn columns_suffix(self) -> &'static str {
        match self {
            GateForm::Theta => ".finegates_columns",
            GateForm::Values => ".finegates_column_values",
        }
    }
}

/// The gates of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerGates<'a> {
    /// What the vectors hold.
    pub form: GateForm,
    /// One number a row, `[out]`.
    pub rows: &'a [f32],
    /// One number a column, `[in]`.
    pub columns: &'a [f32],
}

const CONFIG_NAME: &str = "adapter_config.json";
const TENSORS_NAME: &str = "adapter_model.safetensors";

/// An adapter: what was trained, by the names of the base model's own tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// How it was trained.
    pub config: AdapterConfig,
    /// Gates (`<module path>.finegates_rows` `[out]` and `.finegates_columns` `[in]`, holding θ, or the names of
    /// [`GateForm::Values`]), trained biases (`<module path>.bias`) and the head, without the leading `base_model.model.`.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Adapter {
    /// Reads the adapter in `folder`, as PEFT or this program wrote it.
    ///
    /// # Errors
    /// When a file is missing or broken, the adapter is of another method, a number is not finite, or the vectors of a
    /// gated layer do not belong together.
    pub fn read(folder: &Path) -> Result<Adapter, Error> {
        let config = AdapterConfig::read(&folder.join(CONFIG_NAME))?;
        let path = folder.join(TENSORS_NAME);
        if !path.is_file() {
            return Err(explain_absence(folder, "adapter_model"));
        }
        let file = TensorFile::open_file(&path)?;
        let mut tensors = BTreeMap::new();
        for written in file.names() {
            let Some(name) = names::normalise(written) else { continue };
            let tensor = file.read_tensor(written)?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(wrong(&path, written, format!("a second tensor for {}", shorten(&name))));
            }
        }
        let adapter = Adapter { config, tensors };
        adapter.check(&path)?;
        Ok(adapter)
    }

    /// Writes the adapter into `folder`, which is made if need be; other files in it stay. Each of the two files is
    /// written atomically.
    ///
    /// # Errors
    /// When the adapter would not be read back, or the folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(TENSORS_NAME);
        self.check(&path)?;
        fs::create_dir_all(folder).map_err(Error::io(folder, "make the adapter's folder"))?;
        let tensors: Vec<TensorToWrite> = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                TensorToWrite::f32(format!("{}{name}", names::PREFIX), tensor.shape.as_slice(), &tensor.data)
            })
            .collect();
        write_tensors(&path, &tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))?;
        write_atomic(&folder.join(CONFIG_NAME), self.config.to_json().as_bytes())
    }

    /// The module paths of the gated layers, sorted.
    pub fn gated_modules(&self) -> impl Iterator<Item = &str> {
        self.tensors
            .keys()
            .filter_map(|name| GateForm::ALL.iter().find_map(|form| name.strip_suffix(form.rows_suffix())))
    }

    /// The gates of a module.
    pub fn gates(&self, module: &str) -> Option<LayerGates<'_>> {
        GateForm::ALL.into_iter().find_map(|form| {
            let rows = self.tensors.get(&format!("{module}{}", form.rows_suffix()))?;
            let columns = self.tensors.get(&format!("{module}{}", form.columns_suffix()))?;
            Some(LayerGates { form, rows: &rows.data, columns: &columns.data })
        })
    }

    /// What must hold of any adapter, read or to be written.
    fn check(&self, path: &Path) -> Result<(), Error> {
        if self.tensors.is_empty() {
            return Err(wrong(path, "its tensors", "expected gates, biases or a head, found nothing".to_owned()));
        }
        for (name, tensor) in &self.tensors {
            let count = tensor.shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
            if count != Some(tensor.data.len()) {
                return Err(wrong(
                    path,
                    name,
                    format!("shape {:?} does not hold {} values", tensor.shape, tensor.data.len()),
                ));
            }
            if let Some(position) = tensor.data.iter().position(|value| !value.is_finite()) {
                let found = tensor.data[position];
                return Err(wrong(
                    path,
                    name,
                    format!("expected finite values, found {found} at position {position}; did the training diverge?"),
                ));
            }
            for form in GateForm::ALL {
                if let Some(module) = name.strip_suffix(form.rows_suffix()) {
                    self.check_gates(path, name, &format!("{module}{}", form.columns_suffix()))?;
                    self.check_bias(path, module, tensor.data.len())?;
                    if form != self.config.form {
                        let reason = "is not what peft_type in adapter_config.json says".to_owned();
                        return Err(wrong(path, name, reason));
                    }
                } else if let Some(module) = name.strip_suffix(form.columns_suffix()) {
                    self.check_gates(path, name, &format!("{module}{}", form.rows_suffix()))?;
                }
            }
        }
        Ok(())
    }

    fn check_gates(&self, path: &Path, name: &str, partner: &str) -> Result<(), Error> {
        let shape = &self.tensors[name].shape;
        if shape.len() != 1 || shape[0] == 0 {
            return Err(wrong(path, name, format!("expected one axis of gates, found shape {shape:?}")));
        }
        if !self.tensors.contains_key(partner) {
            return Err(wrong(
                path,
                name,
                format!("expected {} beside it, found none; was the file cut or edited?", shorten(partner)),
            ));
        }
        Ok(())
    }

    fn check_bias(&self, path: &Path, module: &str, rows: usize) -> Result<(), Error> {
        let name = format!("{module}.bias");
        match self.tensors.get(&name) {
            Some(bias) if bias.shape != [rows] => {
                let reason = format!("expected {rows} values as its row gates have, found shape {:?}", bias.shape);
                Err(wrong(path, &name, reason))
            }
            _ => Ok(()),
        }
    }
}

fn wrong(path: &Path, name: &str, reason: String) -> Error {
    Error::Adapter { path: path.to_path_buf(), name: shorten(name), reason }
}
