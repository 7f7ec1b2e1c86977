//! Reads a Compose file and all that it depends on, or documents as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use hivemind_spec::document::{MAX_DOCUMENT_BYTES, is_dns_label};

use crate::cli::Source;
use crate::compose::{self, Compiled, Fault, Input, Surroundings};
use crate::failure::{Failure, Place, Result};
use crate::native;
use crate::terminal::caution;

/// Reads and compiles; prints warnings.
pub(super) fn compile(source: &Source) -> Result<Compiled> {
    if !is_dns_label(&source.namespace) {
        return Err(Failure::input("bad-name", format!("{:?} cannot name a namespace", source.namespace))
            .advice("use 1 to 63 lower-case letters, digits and hyphens"));
    }
    let inputs: Vec<Input> = source.files.iter().map(|file| input(file)).collect::<Result<_>>()?;
    // Paths begin where the first file is.
    let first = source.files.first().filter(|file| !is_stdin(file)).and_then(|file| file.parent());
    let first = first.filter(|path| !path.as_os_str().is_empty());
    let folder = first.map_or_else(|| PathBuf::from("."), Path::to_owned);
    let read = |path: &str| {
        let path = folder.join(path);
        if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > MAX_DOCUMENT_BYTES as u64) {
            return Err(format!("{} is larger than {MAX_DOCUMENT_BYTES} bytes", path.display()));
        }
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("cannot read {}: {error}", path.display())),
        }
    };
    let list = |path: &str| files_in(&folder.join(path));
    let variables = variables(&folder, &read)?;
    let mut profiles: BTreeSet<String> = source.profile.iter().cloned().collect();
    let asked = variables.get("COMPOSE_PROFILES").into_iter().flat_map(|list| list.split(','));
    profiles.extend(asked.map(str::trim).filter(|profile| !profile.is_empty()).map(str::to_owned));
    let surroundings = Surroundings {
        variables,
        project: project(&folder),
        namespace: source.namespace.clone(),
        profiles,
        read: &read,
        list: &list,
    };
    let shown = |fault: &Fault| {
        let named = inputs.iter().any(|input| input.name == fault.file) || fault.file.is_empty();
        let file = if named { fault.file.clone() } else { folder.join(&fault.file).display().to_string() };
        Place { file, line: fault.mark.line, column: fault.mark.column }
    };
    if inputs.iter().any(|input| native::is_native(&input.text)) {
        let documents = native::documents(&inputs, &source.namespace).map_err(|faults| {
            failure("bad-document", &faults, &shown)
                .advice("correct the file; nothing was changed. `hivemind schema` describes documents")
        })?;
        return Ok(Compiled { documents, ..Compiled::default() });
    }
    let compiled = compose::compile(&inputs, &surroundings).map_err(|faults| {
        failure("bad-compose", &faults, &shown)
            .advice("correct the file; nothing was changed. docs/compose.md lists every key")
    })?;
    for warning in &compiled.warnings {
        caution(&format!("{}: {}", shown(warning), warning.message));
    }
    Ok(compiled)
}

/// Files of a folder that travels with a workload, at most: each is mounted by itself.
const MAX_FOLDER_FILES: usize = 64;

/// The files in a folder and the folders in it, by their paths from it; nothing when it is no folder. Links are
/// followed, in a circle no further than the number of files allows.
fn files_in(folder: &Path) -> std::result::Result<Option<Vec<String>>, String> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let shown = folder.display();
    let (mut files, mut open, mut folders) = (Vec::new(), vec![PathBuf::new()], 0);
    while let Some(inner) = open.pop() {
        let failed = |error| format!("cannot read {}: {error}", folder.join(&inner).display());
        for entry in std::fs::read_dir(folder.join(&inner)).map_err(failed)? {
            let path = inner.join(entry.map_err(failed)?.file_name());
            if folder.join(&path).is_dir() {
                open.push(path);
            } else {
                let name = path.to_str().ok_or_else(|| format!("{} has no readable name", path.display()))?;
                files.push(name.to_owned());
            }
        }
        folders += 1;
        if files.len() > MAX_FOLDER_FILES || folders > MAX_FOLDER_FILES {
            return Err(format!(
                "{shown} has over {MAX_FOLDER_FILES} files or folders; put them in an image or a volume"
            ));
        }
    }
    files.sort();
    Ok(Some(files))
}

fn is_stdin(file: &Path) -> bool {
    file == Path::new("-")
}

fn input(file: &Path) -> Result<Input> {
    if is_stdin(file) {
        return Ok(Input { name: "standard input".to_owned(), text: read_stdin()? });
    }
    Ok(Input { name: file.display().to_string(), text: read_file(file)? })
}

fn read_file(path: &Path) -> Result<String> {
    let length = std::fs::metadata(path).map_err(|e| Failure::file("read", path, &e))?.len();
    if length > MAX_DOCUMENT_BYTES as u64 {
        return Err(too_large(&path.display().to_string()));
    }
    std::fs::read_to_string(path).map_err(|e| Failure::file("read", path, &e))
}

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    let limit = MAX_DOCUMENT_BYTES as u64 + 1;
    let read = std::io::stdin().take(limit).read_to_string(&mut text);
    read.map_err(|e| Failure::local("file", format!("cannot read standard input: {e}")))?;
    if text.len() > MAX_DOCUMENT_BYTES { Err(too_large("standard input")) } else { Ok(text) }
}

fn too_large(name: &str) -> Failure {
    Failure::input("too-large", format!("{name} is larger than {MAX_DOCUMENT_BYTES} bytes"))
        .advice("is it a Compose file? If so, push it in parts")
}

/// The environment over the `.env` file beside the Compose file.
fn variables(
    folder: &Path,
    read: &dyn Fn(&str) -> Result<Option<String>, String>,
) -> Result<BTreeMap<String, String>> {
    let text = read(".env").map_err(|e| Failure::local("file", e))?.unwrap_or_default();
    let own: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let at = |line| Place { file: folder.join(".env").display().to_string(), line, column: 1 };
    let read = compose::environment(&text, &own);
    let compose::Environment { mut variables, unset } =
        read.map_err(|(line, what)| Failure::input("bad-env", what).at(at(line)))?;
    for (line, name) in unset {
        caution(&format!("{}: the variable {name} is not set and became nothing", at(line)));
    }
    variables.extend(own);
    Ok(variables)
}

/// The project's name of a file that gives none: its folder's, made to fit, as Compose does.
fn project(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = folder.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let kept: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(63).collect();
    match kept.trim_matches('-') {
        "" => "app".to_owned(),
        name => name.to_owned(),
    }
}

/// One failure that tells of all faults, a line each.
fn failure(code: &str, faults: &[Fault], shown: &dyn Fn(&Fault) -> Place) -> Failure {
    let (first, rest) = match faults {
        [first, rest @ ..] => (first, rest),
        [] => return Failure::input(code, "this is not a Compose file"),
    };
    let mut detail = first.message.clone();
    for fault in rest {
        detail.push_str(&format!("\n       {}: {}", shown(fault), fault.message));
    }
    Failure::input(code, detail).at(shown(first))
}
