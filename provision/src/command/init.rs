//! `hivemind init`.

use serde_json::json;

use crate::bundle::{self, Bundle, ROOT_KEY};
use crate::cli::{Global, Init, Output};
use crate::failure::{Exit, Result};
use crate::secret::Passphrase;
use crate::terminal::{FAINT, STRONG, paint, say, say_json};
use crate::token::{self, NewToken};

pub(super) fn run(global: &Global, options: &Init) -> Result<Exit> {
    let dir = match &global.dir {
        Some(dir) => dir.clone(),
        None => bundle::home()?.join(&options.name),
    };
    let passphrase = match options.passphrase {
        true => Some(Passphrase::ask(&format!("cluster {}", options.name), true)?),
        false => None,
    };
    let (bundle, keys) = Bundle::create(&dir, &options.name, passphrase.as_ref())?;
    let new = NewToken { ttl_ms: options.ttl, ..NewToken::default() };
    let token = token::create(&bundle, &keys, &new, super::now_ms())?;
    if global.output == Output::Json {
        say_json(&json!({
            "cluster": bundle.cluster.id,
            "name": bundle.cluster.name,
            "dir": bundle.dir,
            "rootKey": bundle.cluster.root_keys[0],
            "token": { "id": token.spec.id, "path": token.path, "notAfterMs": token.spec.not_after_ms },
        }));
        return Ok(Exit::Success);
    }
    say(&format!("Cluster {} is made: {}", paint(STRONG, &bundle.cluster.name), bundle.cluster.id));
    say(&format!("  bundle  {}", bundle.dir.display()));
    say(&format!("  token   {}", token.path.display()));
    let kept = if options.passphrase { "encrypted" } else { "readable by you alone, not encrypted" };
    say(&paint(
        FAINT,
        &format!(
            "The bundle holds root-ca.key (lets machines join) and keys/{ROOT_KEY}.key (may do everything), {kept}. \
             Back it up: nobody can make them again."
        ),
    ));
    say("Next: hivemind image configure IMAGE");
    Ok(Exit::Success)
}
