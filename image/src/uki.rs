//! Unified kernel images: systemd's EFI stub with kernel, initramfs and command line added as PE sections.
//!
//! The format is that of the UAPI Group's "Unified Kernel Image" specification. Sections are appended here rather than
//! by `ukify` (not in Debian 12) or `objcopy` (which needs computed addresses and depends on its version).

/// Why a stub cannot take the sections.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UkiError {
    /// Not a 64-bit PE program.
    #[error("the EFI stub is not a PE32+ program")]
    NotPe,
    /// The headers have no room for more section entries.
    #[error("the EFI stub has no room for {0} more sections")]
    NoRoom(usize),
    /// PE addresses have 32 bits.
    #[error("the unified kernel image would be over 4 GiB")]
    TooLarge,
}

/// A section to add: name (at most 8 bytes) and content.
pub type Section<'a> = (&'a str, &'a [u8]);

/// `IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ`.
const READ_ONLY_DATA: u32 = 0x4000_0040;

const SECTION_HEADER_BYTES: usize = 40;
/// Offsets in the COFF header, counted from the `PE\0\0` signature.
const NUMBER_OF_SECTIONS: usize = 6;
const SIZE_OF_OPTIONAL_HEADER: usize = 20;
const OPTIONAL_HEADER: usize = 24;
/// Offsets in the optional header of PE32+.
const SIZE_OF_INITIALIZED_DATA: usize = 8;
const SECTION_ALIGNMENT: usize = 32;
const FILE_ALIGNMENT: usize = 36;
const SIZE_OF_IMAGE: usize = 56;
const SIZE_OF_HEADERS: usize = 60;
const CHECKSUM: usize = 64;

fn u16_at(bytes: &[u8], at: usize) -> Result<usize, UkiError> {
    let slice = bytes.get(at..at + 2).ok_or(UkiError::NotPe)?;
    Ok(usize::from(u16::from_le_bytes([slice[0], slice[1]])))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<usize, UkiError> {
    let slice = bytes.get(at..at + 4).ok_or(UkiError::NotPe)?;
    Ok(u32::from_le_bytes([slice[0], slice[1], slice[2], slice[3]]) as usize)
}

fn put_u32(bytes: &mut [u8], at: usize, value: usize) -> Result<(), UkiError> {
    let value = u32::try_from(value).map_err(|_| UkiError::TooLarge)?;
    bytes.get_mut(at..at + 4).ok_or(UkiError::NotPe)?.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

/// Appends the sections to the stub, in order, each at the next free address.
///
/// # Errors
/// See [`UkiError`].
pub fn build(stub: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>, UkiError> {
    let pe = u32_at(stub, 0x3c)?;
    let optional = pe + OPTIONAL_HEADER;
    let is_pe32_plus = u16_at(stub, optional)? == 0x20b;
    if stub.get(pe..pe + 4) != Some(b"PE\0\0") || !is_pe32_plus {
        return Err(UkiError::NotPe);
    }
    let count = u16_at(stub, pe + NUMBER_OF_SECTIONS)?;
    let table = optional + u16_at(stub, pe + SIZE_OF_OPTIONAL_HEADER)?;
    let align = u32_at(stub, optional + SECTION_ALIGNMENT)?.max(1);
    let file_align = u32_at(stub, optional + FILE_ALIGNMENT)?.max(1);
    let headers_end = u32_at(stub, optional + SIZE_OF_HEADERS)?;
    if table + (count + sections.len()) * SECTION_HEADER_BYTES > headers_end {
        return Err(UkiError::NoRoom(sections.len()));
    }

    let mut address = 0;
    for index in 0..count {
        let header = table + index * SECTION_HEADER_BYTES;
        address = address.max(u32_at(stub, header + 12)? + u32_at(stub, header + 8)?);
    }
    let mut out = stub.to_vec();
    let mut data_bytes = u32_at(stub, optional + SIZE_OF_INITIALIZED_DATA)?;
    for (index, (name, content)) in sections.iter().enumerate() {
        address = address.next_multiple_of(align);
        let raw_size = content.len().next_multiple_of(file_align);
        out.resize(out.len().next_multiple_of(file_align), 0);
        let header = table + (count + index) * SECTION_HEADER_BYTES;
        let mut field = [0; 8];
        field[..name.len()].copy_from_slice(name.as_bytes());
        let place = out.len();
        out[header..header + SECTION_HEADER_BYTES].fill(0);
        out[header..header + 8].copy_from_slice(&field);
        put_u32(&mut out, header + 8, content.len())?;
        put_u32(&mut out, header + 12, address)?;
        put_u32(&mut out, header + 16, raw_size)?;
        put_u32(&mut out, header + 20, place)?;
        put_u32(&mut out, header + 36, READ_ONLY_DATA as usize)?;
        out.extend_from_slice(content);
        out.resize(place + raw_size, 0);
        address += content.len();
        data_bytes += raw_size;
    }
    let total = u16::try_from(count + sections.len()).map_err(|_| UkiError::NoRoom(sections.len()))?;
    out[pe + NUMBER_OF_SECTIONS..pe + NUMBER_OF_SECTIONS + 2].copy_from_slice(&total.to_le_bytes());
    put_u32(&mut out, optional + SIZE_OF_INITIALIZED_DATA, data_bytes)?;
    put_u32(&mut out, optional + SIZE_OF_IMAGE, address.next_multiple_of(align))?;
    put_u32(&mut out, optional + CHECKSUM, 0)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE32+ file with one section of 16 bytes and room for `room` more headers.
    fn stub(room: usize) -> Vec<u8> {
        let table = 0x40 + OPTIONAL_HEADER + 112;
        let headers_end = (table + (1 + room) * SECTION_HEADER_BYTES).next_multiple_of(8);
        let mut bytes = vec![0; headers_end];
        bytes[0x3c] = 0x40;
        bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
        bytes[0x40 + NUMBER_OF_SECTIONS] = 1;
        bytes[0x40 + SIZE_OF_OPTIONAL_HEADER] = 112;
        let optional = 0x40 + OPTIONAL_HEADER;
        bytes[optional..optional + 2].copy_from_slice(&0x20b_u16.to_le_bytes());
        put_u32(&mut bytes, optional + SECTION_ALIGNMENT, 4096).unwrap();
        put_u32(&mut bytes, optional + FILE_ALIGNMENT, 512).unwrap();
        put_u32(&mut bytes, optional + SIZE_OF_HEADERS, headers_end).unwrap();
        put_u32(&mut bytes, table + 8, 16).unwrap();
        put_u32(&mut bytes, table + 12, 4096).unwrap();
        bytes
    }

    /// (name, address, content) of the sections, read back.
    fn read_back(bytes: &[u8]) -> Vec<(String, usize, Vec<u8>)> {
        let pe = u32_at(bytes, 0x3c).unwrap();
        let count = u16_at(bytes, pe + NUMBER_OF_SECTIONS).unwrap();
        let table = pe + OPTIONAL_HEADER + u16_at(bytes, pe + SIZE_OF_OPTIONAL_HEADER).unwrap();
        let one = |index: usize| {
            let header = table + index * SECTION_HEADER_BYTES;
            let name = String::from_utf8_lossy(&bytes[header..header + 8]).trim_end_matches('\0').to_owned();
            let (size, place) = (u32_at(bytes, header + 8).unwrap(), u32_at(bytes, header + 20).unwrap());
            (name, u32_at(bytes, header + 12).unwrap(), bytes[place..place + size].to_vec())
        };
        (1..count).map(one).collect()
    }

    #[test]
    fn sections_read_back_aligned_and_without_overlap() {
        let image = build(&stub(2), &[(".cmdline", b"quiet"), (".linux", &[7; 5000])]).unwrap();
        let sections = read_back(&image);
        assert_eq!(sections[0], (".cmdline".to_owned(), 8192, b"quiet".to_vec()));
        assert_eq!(sections[1], (".linux".to_owned(), 12288, vec![7; 5000]));
        assert_eq!(u32_at(&image, 0x40 + OPTIONAL_HEADER + SIZE_OF_IMAGE).unwrap(), 12288 + 8192);
    }

    #[test]
    fn a_stub_without_room_is_refused_rather_than_overwritten() {
        assert_eq!(build(&stub(1), &[(".a", b"1"), (".b", b"2")]), Err(UkiError::NoRoom(2)));
    }

    #[test]
    fn what_is_no_pe_program_is_refused() {
        assert_eq!(build(b"", &[]), Err(UkiError::NotPe));
        assert_eq!(build(&[0; 4096], &[]), Err(UkiError::NotPe));
    }
}
