//! Training from a recipe file, without the command line around it:
//! `cargo run --release -p finegates-train --example train -- recipe.toml RUN [resume]`.

use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use finegates_train::{Event, Mode, PartialRecipe, RunOptions, run};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [recipe, folder, rest @ ..] = arguments.as_slice() else {
        return Err("expected RECIPE.toml RUN [resume]".into());
    };
    let resume = rest.first().is_some_and(|word| word == "resume");
    let settings = if resume { PartialRecipe::default() } else { PartialRecipe::read(recipe.as_ref())? };
    let options = RunOptions {
        folder: PathBuf::from(folder),
        mode: if resume { Mode::Resume } else { Mode::New },
        fetch: finegates_checkpoint::source::FetchOptions::default(),
        latency_tables: None,
    };
    let mut show = |event: &Event<'_>| match event {
        Event::Note(text) => println!("{text}"),
        Event::Started(start) => println!("{} steps over {} examples", start.total_steps, start.train_examples),
        Event::Step(record) if record.step % 50 == 0 => println!(
            "step {:5}  task loss {:.4}  penalty {:.4}  removed {:.2} %  {:.1} sequences/s",
            record.step,
            record.task_loss,
            record.penalty,
            100.0 * record.removed,
            record.sequences_per_second
        ),
        Event::Evaluated(record) => println!("epoch {:.2}  {:?}{}", record.epoch, record.metrics, mark(record.best)),
        Event::Ended(summary) => println!("{summary:#?}"),
        _ => {}
    };
    run(settings, &options, &mut show, &AtomicBool::new(false))?;
    Ok(())
}

fn mark(best: bool) -> &'static str {
    if best { "  best so far" } else { "" }
}
