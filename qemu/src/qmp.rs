//! The part of the QEMU Machine Protocol the harness needs: one command, one answer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};

/// QEMU answers in microseconds, but a computer that boots several emulated machines may keep it waiting.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A connection to a running QEMU.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Waits for the greeting and leaves the negotiation mode.
    pub(crate) fn connect(stream: UnixStream) -> Result<Qmp> {
        stream.set_read_timeout(Some(ANSWER_WITHIN)).context("set the monitor's time limit")?;
        stream.set_write_timeout(Some(ANSWER_WITHIN)).context("set the monitor's time limit")?;
        let mut qmp = Qmp { stream: BufReader::new(stream) };
        while qmp.read()?.get("QMP").is_none() {}
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its result. Events that arrive meanwhile are dropped.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())
            .context(format!("send `{command}`"))?;
        loop {
            let mut answer = self.read()?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(problem) = answer.pointer("/error/desc") {
                return Err(Error::Qmp { command: command.into(), problem: problem.to_string() });
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).context("read from the monitor")?;
        if read == 0 {
            return Err(Error::Qmp { command: "read".into(), problem: "QEMU closed the monitor".into() });
        }
        serde_json::from_str(&line)
            .map_err(|error| Error::Qmp { command: "read".into(), problem: error.to_string() })
    }
}
