//! The kernel's command line: only `root=PARTUUID=…` is ours.

/// The partition that holds the root, by the GUID in the partition table, in lower case.
pub(super) fn root_partuuid(cmdline: &str) -> Option<String> {
    // The last one wins, as in the kernel.
    cmdline
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("root=PARTUUID="))
        .rfind(|uuid| !uuid.is_empty())
        .map(str::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_root_on_the_command_line_counts() {
        let line = "console=ttyS0 root=PARTUUID=AA-1 quiet root=PARTUUID=bb-2\n";
        assert_eq!(root_partuuid(line).as_deref(), Some("bb-2"));
        assert_eq!(root_partuuid("root=/dev/vda1 xroot=PARTUUID=cc"), None);
        assert_eq!(root_partuuid("root=PARTUUID="), None);
    }
}
