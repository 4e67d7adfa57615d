//! Arbitrary text as a recipe: settings that can be written and read back the same, or an error.

#![no_main]

use std::path::Path;

use finegates_train::PartialRecipe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let path = Path::new("recipe.toml");
    let Ok(partial) = PartialRecipe::from_toml(text, path) else { return };
    let Ok(recipe) = partial.resolve() else { return };
    let written = recipe.to_toml().expect("what was resolved can be written");
    let again = PartialRecipe::from_toml(&written, path).and_then(PartialRecipe::resolve);
    assert_eq!(again.expect("what was written is read"), recipe);
});
