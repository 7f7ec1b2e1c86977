//! Serves a [`Platter`] to QEMU by the NBD protocol, of which this is the part QEMU needs: the fixed newstyle
//! handshake with `NBD_OPT_GO`, simple replies, and `READ`, `WRITE`, `FLUSH`.
//!
//! The end of the connection is the power cut: a system that shuts down has flushed before.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::platter::{BLOCK, Platter};

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// `NBD_FLAG_FIXED_NEWSTYLE` and `NBD_FLAG_NO_ZEROES`.
const HANDSHAKE_FLAGS: u16 = 0b11;
/// `NBD_FLAG_HAS_FLAGS`, `NBD_FLAG_SEND_FLUSH` and `NBD_FLAG_SEND_FUA`.
const EXPORT_FLAGS: u16 = 0b1101;

const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;

const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const FLAG_FUA: u16 = 1;

const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// The protocol's recommended limit for one request, which is also told to the client.
const REQUEST_MAX: u32 = 32 << 20;

/// Options carry an export name and little else.
const OPTION_MAX: u32 = 64 << 10;

/// The disk of a machine that has power. Dropping it waits until the disk has lost its power too, which it does when
/// QEMU's end is closed.
#[derive(Debug)]
pub(crate) struct PoweredDisk {
    thread: Option<JoinHandle<()>>,
}

impl PoweredDisk {
    pub(crate) fn start(stream: UnixStream, platter: Arc<Mutex<Platter>>) -> io::Result<PoweredDisk> {
        let thread = thread::Builder::new().name("disk".into()).spawn(move || {
            let mut platter = platter.lock().unwrap_or_else(PoisonError::into_inner);
            let mut session = Session { stream, platter: &mut platter };
            // The connection ends in the middle of whatever it was, because QEMU was killed: that is its purpose.
            let _ = session.negotiate().and_then(|ready| if ready { session.serve() } else { Ok(()) });
            if let Err(error) = platter.lose_power() {
                eprintln!("a disk could not keep what survived a power cut: {error}");
            }
        })?;
        Ok(PoweredDisk { thread: Some(thread) })
    }
}

impl Drop for PoweredDisk {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Session<'a> {
    stream: UnixStream,
    platter: &'a mut Platter,
}

impl Session<'_> {
    /// Returns whether the client wants to go on.
    fn negotiate(&mut self) -> io::Result<bool> {
        self.stream.write_all(b"NBDMAGIC")?;
        self.stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
        self.stream.write_all(&HANDSHAKE_FLAGS.to_be_bytes())?;
        self.number::<4>()?;
        loop {
            if u64::from_be_bytes(self.number()?) != OPTION_MAGIC {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let option = u32::from_be_bytes(self.number()?);
            let length = u32::from_be_bytes(self.number()?);
            if length > OPTION_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.bytes(length)?;
            match option {
                OPTION_GO | OPTION_INFO => {
                    self.describe(option)?;
                    if option == OPTION_GO {
                        return Ok(true);
                    }
                }
                OPTION_ABORT => {
                    self.reply(option, REPLY_ACK, &[])?;
                    return Ok(false);
                }
                _ => self.reply(option, REPLY_UNSUPPORTED, &[])?,
            }
        }
    }

    fn describe(&mut self, option: u32) -> io::Result<()> {
        let mut export = INFO_EXPORT.to_be_bytes().to_vec();
        export.extend(self.platter.size().to_be_bytes());
        export.extend(EXPORT_FLAGS.to_be_bytes());
        self.reply(option, REPLY_INFO, &export)?;
        let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [512, BLOCK as u32, REQUEST_MAX] {
            sizes.extend(size.to_be_bytes());
        }
        self.reply(option, REPLY_INFO, &sizes)?;
        self.reply(option, REPLY_ACK, &[])
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
        for number in [option, kind, data.len() as u32] {
            reply.extend(number.to_be_bytes());
        }
        reply.extend(data);
        self.stream.write_all(&reply)
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            if u32::from_be_bytes(self.number()?) != REQUEST_MAGIC {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let flags = u16::from_be_bytes(self.number()?);
            let command = u16::from_be_bytes(self.number()?);
            let cookie = self.number::<8>()?;
            let offset = u64::from_be_bytes(self.number()?);
            let length = u32::from_be_bytes(self.number()?);
            if length > REQUEST_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let data = if command == WRITE { self.bytes(length)? } else { Vec::new() };
            let inside = offset.checked_add(length.into()).is_some_and(|end| end <= self.platter.size());
            let outcome = match command {
                DISCONNECT => return Ok(()),
                FLUSH => self.platter.flush().map(|()| Vec::new()),
                READ | WRITE if !inside => Err(io::ErrorKind::InvalidInput.into()),
                READ => {
                    let mut data = vec![0; length as usize];
                    self.platter.read(offset, &mut data).map(|()| data)
                }
                WRITE => self.write(offset, &data, flags).map(|()| Vec::new()),
                _ => Err(io::ErrorKind::InvalidInput.into()),
            };
            let (error, data) = match outcome {
                Ok(data) => (0, data),
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => (EINVAL, Vec::new()),
                Err(_) => (EIO, Vec::new()),
            };
            let mut reply = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
            reply.extend(error.to_be_bytes());
            reply.extend(cookie);
            reply.extend(data);
            self.stream.write_all(&reply)?;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8], flags: u16) -> io::Result<()> {
        self.platter.write(offset, data)?;
        if flags & FLAG_FUA != 0 { self.platter.flush_range(offset, data.len()) } else { Ok(()) }
    }

    fn number<const SIZE: usize>(&mut self) -> io::Result<[u8; SIZE]> {
        let mut bytes = [0; SIZE];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn bytes(&mut self, length: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
