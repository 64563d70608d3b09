//! The recipes that the program carries with it: the files of `configs/`, put in when it is built.

use super::RecipeError;
use crate::io::IoError;
use crate::text::nearest;
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// A configuration that comes with the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShippedRecipe {
    /// Its path below `configs/`, without the ending.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
}

/// A file or folder that a recipe names and that is not here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The setting.
    pub key: String,
    pub path: String,
    /// Where it can be had.
    pub origin: &'static str,
}

/// A recipe that was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedRecipe {
    /// The new file.
    pub path: PathBuf,
    /// What it needs that is not in the working directory.
    pub needs: Vec<Need>,
}

/// Every recipe, by name.
pub fn shipped_recipes() -> impl Iterator<Item = ShippedRecipe> {
    RECIPES.iter().map(|&(name, text)| ShippedRecipe { name, text })
}

impl ShippedRecipe {
    /// The first sentence of its first comment.
    #[must_use]
    pub fn description(&self) -> String {
        let comment = self.text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
        let paragraph: Vec<&str> =
            comment.take_while(|line| !line.is_empty() && !line.starts_with("candlewick ")).collect();
        let text = paragraph.join(" ");
        // A number such as 0.5B has no blank after its point, and "Dr. GRPO" does not end a sentence.
        match text.match_indices(". ").find(|(at, _)| *at > 10) {
            Some((end, _)) => text[..=end].to_owned(),
            None => text,
        }
    }

    /// The files and folders that it names and that are not in the working directory.
    #[must_use]
    pub fn needs(&self) -> Vec<Need> {
        let table: toml::Table = self.text.parse().unwrap_or_default();
        let text = |table: &toml::Table, key: &str| Some((key.to_owned(), table.get(key)?.as_str()?.to_owned()));
        let named = ["model", "train_file", "eval_file", "dataset_name"].map(|key| text(&table, key));
        let sources = table.get("train_mix").and_then(toml::Value::as_array).into_iter().flatten();
        let mixed = sources.filter_map(|source| text(source.as_table()?, "file"));
        let is_absent = |path: &str| !Path::new(path).exists();
        let need = |(key, path): (String, String)| {
            let origin = if path.starts_with("output/") {
                "another run or script makes it: see the recipe's comments"
            } else if path.starts_with("data/") {
                "in the source tree of candlewick"
            } else {
                // An id of the Hub is fetched by the run.
                return None;
            };
            is_absent(&path).then_some(Need { key, path, origin })
        };
        named.into_iter().flatten().chain(mixed).filter_map(need).collect()
    }
}

/// Copies the recipe `name` to `to`, or to a file of its name in the working directory. A file that exists is replaced
/// with `force` only.
///
/// # Errors
/// There is no such recipe, the file exists, or it cannot be written.
pub fn copy_recipe(name: &str, to: Option<&Path>, force: bool) -> Result<CopiedRecipe, RecipeError> {
    let name = name.strip_prefix("configs/").unwrap_or(name);
    let name = name.strip_suffix(".toml").unwrap_or(name);
    let Some(recipe) = shipped_recipes().find(|recipe| recipe.name == name) else {
        let near = nearest(name, shipped_recipes().map(|recipe| recipe.name)).map(str::to_owned);
        return Err(RecipeError::NoRecipe { name: name.to_owned(), near });
    };
    let path = match to {
        Some(folder) if folder.is_dir() => folder.join(file_name(name)),
        Some(path) => path.to_owned(),
        None => file_name(name),
    };
    let mut options = File::options();
    options.write(true);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = options.open(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => RecipeError::RecipeExists { path: path.clone() },
        _ => IoError::of("write", &path)(error).into(),
    })?;
    file.write_all(recipe.text.as_bytes()).map_err(IoError::of("write", &path))?;
    Ok(CopiedRecipe { path, needs: recipe.needs() })
}

/// `addition/dpo` becomes `dpo.toml`.
fn file_name(name: &str) -> PathBuf {
    PathBuf::from(format!("{}.toml", name.rsplit('/').next().unwrap_or(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;
    use crate::error::{Diagnose, Exit};

    /// Every recipe that is shipped can be resolved, and says what it is.
    #[test]
    fn every_recipe_is_a_configuration_with_a_description() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<&str> = shipped_recipes().map(|recipe| recipe.name).collect();
        assert!(names.contains(&"quickstart") && names.contains(&"addition/grpo") && names.is_sorted(), "{names:?}");
        for (number, recipe) in shipped_recipes().enumerate() {
            let path = folder.path().join(format!("{number}.toml"));
            copy_recipe(recipe.name, Some(&path), false).unwrap();
            Layers::from_files([&path]).resolve().unwrap_or_else(|error| panic!("{}: {error}", recipe.name));
            let description = recipe.description();
            assert!((10..400).contains(&description.len()), "{}: {description:?}", recipe.name);
        }
    }

    #[test]
    fn a_copy_replaces_nothing_unless_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let copied = copy_recipe("configs/addition/dpo.toml", Some(folder.path()), false).unwrap();
        assert_eq!(copied.path, folder.path().join("dpo.toml"));
        std::fs::write(&copied.path, "mine").unwrap();
        let error = copy_recipe("addition/dpo", Some(&copied.path), false).unwrap_err();
        assert_eq!((error.exit(), error.hint().is_some()), (Exit::Usage, true));
        assert_eq!(std::fs::read_to_string(&copied.path).unwrap(), "mine");
        copy_recipe("addition/dpo", Some(&copied.path), true).unwrap();
        assert!(std::fs::read_to_string(&copied.path).unwrap().contains("dpo"));
        let error = copy_recipe("quikstart", None, false).unwrap_err();
        assert!(error.to_string().contains("quikstart") && error.hint().unwrap().contains("`quickstart`"), "{error}");
    }

    #[test]
    fn what_a_recipe_needs_is_told() {
        let text = "model = \"output/none/start\"\ntrain_file = \"data/none.jsonl\"\neval_file = \"data/math_tasks_eval.jsonl\"\n\
                    [[train_mix]]\nfile = \"data/none_either.jsonl\"\n";
        let recipe = ShippedRecipe { name: "x", text };
        let needs: Vec<String> = recipe.needs().into_iter().map(|need| need.path).collect();
        assert_eq!(needs, ["output/none/start", "data/none.jsonl", "data/none_either.jsonl"]);
        let hub = ShippedRecipe { name: "x", text: "model = \"org/name\"\ndataset_name = \"org/name\"\n" };
        assert_eq!(hub.needs(), []);
    }
}
