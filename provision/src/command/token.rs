//! `hivemind token`.

use serde_json::json;

use crate::bundle::Unlocked;
use crate::cli::{Global, Output, Token, TokenCreate};
use crate::failure::{Exit, Result};
use crate::quantity::show_span;
use crate::secret;
use crate::terminal::{BAD, GOOD, Table, say, say_json, styled};
use crate::token::{self, NewToken, StoredToken};

pub(super) fn run(global: &Global, command: &Token) -> Result<Exit> {
    match command {
        Token::Create(options) => create(global, options),
        Token::List => list(global),
    }
}

fn create(global: &Global, options: &TokenCreate) -> Result<Exit> {
    let bundle = super::open_bundle(global)?;
    let keys = Unlocked { root_ca: bundle.root_ca_key()?, signer: bundle.operator_key(&global.key)? };
    let new = NewToken { ttl_ms: options.ttl, max_uses: options.uses, seeds: options.seeds.clone() };
    let now_ms = super::now_ms();
    let token = token::create(&bundle, &keys, &new, now_ms)?;
    if let Some(path) = &options.output_file {
        secret::write_private(path, token.config.to_toml().as_bytes(), true)?;
    }
    if global.output == Output::Json {
        say_json(&describe(&token, now_ms));
        return Ok(Exit::Success);
    }
    say(&format!("Token {} is made: {}", token.spec.id.short(), token.path.display()));
    let uses = token.spec.max_uses.map_or("any number of".to_owned(), |uses| uses.to_string());
    say(&format!("For the next {}, {uses} machines may join with it.", show_span(options.ttl)));
    say("Who has the file can join: keep it private. Next: hivemind image configure IMAGE");
    Ok(Exit::Success)
}

fn list(global: &Global) -> Result<Exit> {
    let bundle = super::open_bundle(global)?;
    let now_ms = super::now_ms();
    let tokens = token::list(&bundle)?;
    if global.output == Output::Json {
        say_json(&tokens.iter().map(|token| describe(token, now_ms)).collect::<Vec<_>>());
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&["TOKEN", "STATE", "USES", "FILE"]);
    for token in &tokens {
        let state = match token.spec.not_after_ms.checked_sub(now_ms) {
            Some(left) if left > 0 => styled(GOOD, format!("open for {}", show_span(left))),
            _ => styled(BAD, "expired"),
        };
        let uses = token.spec.max_uses.map_or("any".to_owned(), |uses| format!("at most {uses}"));
        table.row([
            token.spec.id.short().into(),
            state,
            uses.into(),
            token.path.display().to_string().into(),
        ]);
    }
    say(&table.render());
    Ok(Exit::Success)
}

fn describe(token: &StoredToken, now_ms: u64) -> serde_json::Value {
    json!({
        "id": token.spec.id,
        "path": token.path,
        "notBeforeMs": token.spec.not_before_ms,
        "notAfterMs": token.spec.not_after_ms,
        "maxUses": token.spec.max_uses,
        "open": token.spec.not_after_ms > now_ms,
    })
}
