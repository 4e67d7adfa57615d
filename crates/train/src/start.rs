//! From settings and a folder to a run: the recipe settled, the checkpoint fetched, the data read, the trainer started.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use finegates_checkpoint::source::{self, FetchOptions};
use finegates_checkpoint::{Checkpoint, Tokenizer};
use finegates_kernels::random;

use crate::error::Error;
use crate::folder::{INITIAL_SIGN, Mode, RunFolder, is_initial};
use crate::inputs::Inputs;
use crate::material::Data;
use crate::observer::{Observer, Summary};
use crate::recipe::{PartialRecipe, Recipe};
use crate::trainer::Trainer;

/// Where a run goes and how it begins.
#[derive(Clone)]
pub struct RunOptions<'a> {
    /// The run folder.
    pub folder: PathBuf,
    /// Anew, or where it stopped.
    pub mode: Mode,
    /// How the checkpoint is fetched.
    pub fetch: FetchOptions<'a>,
    /// Where times of products measured on this machine are kept from run to run.
    pub latency_tables: Option<PathBuf>,
}

/// Trains. `settings` are those given (flags over a recipe file); a resumed run takes the others from its own recipe and refuses
/// settings that differ from it, except those that results do not depend on: the number of threads, and what is computed again.
///
/// # Errors
/// Any of [`Error`].
pub fn run(
    settings: PartialRecipe,
    options: &RunOptions<'_>,
    observer: &mut (dyn Observer + Send),
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    let recipe = match options.mode {
        Mode::Resume => resumed_recipe(&settings, &options.folder)?,
        Mode::New | Mode::Overwrite => settings.resolve()?,
    };
    let checkpoint = source::resolve(&recipe.model, &options.fetch)?;
    let RunOptions { folder, mode, latency_tables, .. } = options;
    let place = Place { folder, mode: *mode, latency_tables: latency_tables.as_deref() };
    match recipe.threads {
        None => train(recipe, &checkpoint, &place, observer, stop),
        Some(threads) => {
            let pool = finegates_kernels::pool::pool(threads).map_err(|error| Error::Threads(error.to_string()))?;
            pool.install(|| train(recipe, &checkpoint, &place, observer, stop))
        }
    }
}

/// The folders of a run.
struct Place<'a> {
    folder: &'a Path,
    mode: Mode,
    latency_tables: Option<&'a Path>,
}

fn train(
    recipe: Recipe,
    model: &Path,
    place: &Place<'_>,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    let &Place { folder, mode, latency_tables } = place;
    if mode == Mode::Overwrite
        && let (Ok(run), Ok(model)) = (folder.canonicalize(), model.canonicalize())
        && model.starts_with(&run)
        && !model.join(INITIAL_SIGN).is_file()
    {
        return Err(Error::OverwritesModel { path: folder.to_owned(), model });
    }
    // Whatever can be wrong with the inputs is found here and by `Trainer::new`, before anything is written or removed.
    let checkpoint = Checkpoint::open(model)?;
    let tokenizer = Tokenizer::open(model, &checkpoint.config)?;
    let data = Data::load(&recipe)?;
    let base_fingerprint = fingerprint(model, &tokenizer.files())?;
    let run_folder = RunFolder::open(folder, mode)?;
    let latency_tables = latency_tables.map(Path::to_owned);
    let inputs = Inputs { recipe, data, checkpoint, tokenizer, base_fingerprint, latency_tables };
    Trainer::new(inputs, run_folder, observer, stop)?.run()
}

/// The recipe in the run folder, if the settings given agree with it.
fn resumed_recipe(settings: &PartialRecipe, folder: &Path) -> Result<Recipe, Error> {
    let path = folder.join("recipe.toml");
    if !path.is_file() {
        return Err(Error::NothingToResume { path: folder.to_owned() });
    }
    let mut recipe = PartialRecipe::read(&path)?.resolve()?;
    let given = PartialRecipe { threads: None, recompute: None, ..settings.clone() };
    let differences = given.differences(&recipe)?;
    if !differences.is_empty() {
        return Err(Error::RecipeChanged { path: folder.to_owned(), differences });
    }
    recipe.threads = settings.threads.or(recipe.threads);
    recipe.recompute = settings.recompute.unwrap_or(recipe.recompute);
    // A run that was moved takes the model it made for itself along.
    let made = Path::new(&recipe.model);
    if made.is_absolute()
        && !made.is_dir()
        && let Some(name) = made.file_name().filter(|name| is_initial(name))
        && folder.join(name).join(INITIAL_SIGN).is_file()
        && let Some(path) = folder.join(name).to_str()
    {
        path.clone_into(&mut recipe.model);
    }
    Ok(recipe)
}

/// A number that changes when the config, any tensor or the tokenizer of a model folder does.
fn fingerprint(folder: &Path, tokenizer: &[PathBuf]) -> Result<String, Error> {
    let mut files = tokenizer.to_vec();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        let tensors = path.extension().is_some_and(|extension| extension == "safetensors");
        if tensors || path.file_name().is_some_and(|name| name == "config.json") {
            files.push(path);
        }
    }
    files.sort_unstable();
    files.dedup();
    let mut hash = 0;
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let name = path.file_name().unwrap_or_default();
        hash = random::derive(hash, &name.to_string_lossy());
        let mut file = std::fs::File::open(&path).map_err(Error::io(&path, "open"))?;
        loop {
            let mut filled = 0;
            while filled < buffer.len() {
                match file.read(&mut buffer[filled..]).map_err(Error::io(&path, "read"))? {
                    0 => break,
                    read => filled += read,
                }
            }
            for word in buffer[..filled].chunks(8) {
                let mut bytes = [0; 8];
                bytes[..word.len()].copy_from_slice(word);
                hash = random::mix(hash, u64::from_le_bytes(bytes));
            }
            if filled < buffer.len() {
                hash = random::mix(hash, filled as u64);
                break;
            }
        }
    }
    Ok(format!("{hash:016x}"))
}
