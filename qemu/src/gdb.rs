//! The part of GDB's remote protocol (GDB manual, appendix E) that a kernel hang needs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::error::{Context, Error, Result};

/// QEMU answers in microseconds, on a busy computer in seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Bytes of an answer: the registers of an x86-64 processor are some 600 bytes, in hexadecimal digits.
const MAX_ANSWER: usize = 64 * 1024;

/// Where RIP and EFLAGS are in the answer to `g`, bytes: after sixteen registers of eight.
const RIP: std::ops::Range<usize> = 128..136;
const EFLAGS: std::ops::Range<usize> = 136..140;

/// The interrupt flag of EFLAGS.
const INTERRUPTS: u32 = 1 << 9;

/// `jmp` to itself.
const FOR_EVER: &str = "ebfe";

/// Has the processor jump to where it is for ever, with interrupts off, as a kernel with a fault of the worst kind
/// does. Connecting has stopped it; it goes on in the end.
pub(crate) fn hang(stream: UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(ANSWER_WITHIN)).context("set the debugger's time limit")?;
    let mut debugger = Debugger { stream };
    let mut registers = debugger.registers()?;
    let mut rip = [0; 8];
    rip.copy_from_slice(&registers[RIP]);
    let mut eflags = [0; 4];
    eflags.copy_from_slice(&registers[EFLAGS]);
    debugger.expect_ok(&format!("M{:x},2:{FOR_EVER}", u64::from_le_bytes(rip)))?;
    registers[EFLAGS].copy_from_slice(&(u32::from_le_bytes(eflags) & !INTERRUPTS).to_le_bytes());
    let digits: String = registers.iter().map(|byte| format!("{byte:02x}")).collect();
    debugger.expect_ok(&format!("G{digits}"))?;
    debugger.expect_ok("D")
}

struct Debugger {
    stream: UnixStream,
}

impl Debugger {
    fn registers(&mut self) -> Result<Vec<u8>> {
        let answer = self.ask("g")?;
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let registers: Option<Vec<u8>> = answer.as_bytes().chunks(2).map(byte).collect();
        registers.filter(|bytes| bytes.len() >= EFLAGS.end).ok_or_else(|| refused("g", &answer))
    }

    fn expect_ok(&mut self, command: &str) -> Result<()> {
        let answer = self.ask(command)?;
        if answer == "OK" { Ok(()) } else { Err(refused(command, &answer)) }
    }

    /// Sends a packet, and gives the one that answers it.
    fn ask(&mut self, command: &str) -> Result<String> {
        let sum = command.bytes().fold(0, u8::wrapping_add);
        let packet = format!("${command}#{sum:02x}");
        self.stream.write_all(packet.as_bytes()).context("write to the debugger")?;
        loop {
            let answer = self.packet()?;
            // That the processor has stopped is said unasked.
            if !answer.starts_with(['T', 'S']) {
                return Ok(answer);
            }
        }
    }

    /// The next packet, which is acknowledged.
    fn packet(&mut self) -> Result<String> {
        // Acknowledgements of what was sent come before it.
        while self.byte()? != b'$' {}
        let mut answer = String::new();
        loop {
            match self.byte()? {
                b'#' => break,
                _ if answer.len() >= MAX_ANSWER => return Err(refused("g", "an endless answer")),
                byte => answer.push(char::from(byte)),
            }
        }
        // The socket of a process on this computer loses nothing: the sum is not looked at.
        let _sum = [self.byte()?, self.byte()?];
        self.stream.write_all(b"+").context("write to the debugger")?;
        Ok(answer)
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).context("read from the debugger")?;
        Ok(byte[0])
    }
}

fn refused(command: &str, answer: &str) -> Error {
    Error::Qmp { command: format!("gdb {command}"), problem: answer.to_owned() }
}
