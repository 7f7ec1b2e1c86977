//! `hivemind images`: images that machines are given, where no registry has them or none can be reached.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, Write};
use std::path::Path;

use hivemind_spec::api::{GivenImage, Node, NodeState, WantedBlob};
use hivemind_spec::id::NodeId;
use hyper::Method;
use hyper::body::Bytes;
use indicatif::ProgressBar;
use oci_client::Reference;
use serde_json::json;

use super::bars::bytes;
use super::nodes;
use super::session::{self, Keeper, Notes, Printer};
use super::stick;
use crate::archive;
use crate::cli::{Global, Images, ImagesGive, ImagesTakeBack, Output};
use crate::client::{Client, percent};
use crate::failure::{Exit, Failure, Result};
use crate::oci_archive::{Archive, Image};
use crate::quantity::{show_bytes, show_span};
use crate::terminal::{BAD, STRONG, Table, paint, say, say_json, styled};

/// The most that is kept of what a node says beside, bytes: it says nothing.
const MAX_NOTES_BYTES: usize = 4096;

pub(super) fn run(global: &Global, command: Option<&Images>) -> Result<Exit> {
    match command {
        None | Some(Images::List) => list(global),
        Some(Images::Give(options)) => give(global, options),
        Some(Images::Stick(options)) => stick::run(global, options),
        Some(Images::TakeBack(options)) => take_back(global, options),
    }
}

/// The images that machines were given.
pub(super) async fn given(client: &Client) -> Result<Vec<GivenImage>> {
    client.list("/v1/images").await
}

/// A name with all that Docker leaves out; as it is if it is no name.
pub(super) fn whole_name(name: &str) -> String {
    name.parse::<Reference>().map_or_else(|_| name.to_owned(), |reference| reference.whole())
}

/// An image as it was given by this name, or else as it is.
pub(super) async fn as_given(client: &Client, image: &str) -> Result<String> {
    let found = given(client).await?.into_iter().find(|given| whole_name(&given.name) == whole_name(image));
    Ok(found.map_or_else(|| image.to_owned(), |given| format!("{}@{}", given.name, given.digest)))
}

fn list(global: &Global) -> Result<Exit> {
    let client = super::client(global)?;
    let images = super::block_on("nothing was changed", given(&client))?;
    if global.output == Output::Json {
        say_json(&json!({ "items": images }));
    } else if images.is_empty() {
        say(
            "No images were given to machines; they fetch what they run from its registry. `hivemind images give` gives them some",
        );
    } else {
        say(&table(&images, client.now_ms()));
    }
    Ok(Exit::Success)
}

fn table(images: &[GivenImage], now_ms: u64) -> String {
    let mut table = Table::new(&["IMAGE", "DIGEST", "GIVEN", "NODES"]);
    for image in images {
        let called = |holder: &hivemind_spec::api::Holder| match holder.reachable {
            true => holder.hostname.clone(),
            false => format!("{} (down)", holder.hostname),
        };
        let names: Vec<String> = image.nodes.iter().map(called).collect();
        let style =
            if image.nodes.iter().any(|holder| holder.reachable) { anstyle::Style::new() } else { BAD };
        table.row([
            image.name.clone().into(),
            image.digest.chars().take("sha256:".len() + 12).collect::<String>().into(),
            format!("{} ago", show_span(now_ms.saturating_sub(image.given_ms))).into(),
            styled(style, names.join(", ")),
        ]);
    }
    table.render()
}

fn give(global: &Global, options: &ImagesGive) -> Result<Exit> {
    let archive = open(&options.file)?;
    let images = archive.images(&options.arch)?;
    let named = names(&images, options.name.as_deref())?;
    let client = super::client(global)?;
    let chosen = super::block_on("nothing was given", choose(&client, options))?;
    let mut done = Vec::new();
    for (name, image) in &named {
        for (node, hostname) in &chosen {
            let size = image.size();
            let bar = bytes(Some(size));
            bar.set_message(name.clone());
            send(&client, &archive, image, name, *node, &bar)?;
            bar.finish_and_clear();
            if global.output == Output::Text {
                let name = paint(STRONG, name);
                say(&format!("{hostname} has {name} ({})", show_bytes(size)));
            }
            done.push(json!({ "name": name, "digest": image.digest, "node": node, "hostname": hostname }));
        }
    }
    if global.output == Output::Json {
        say_json(&json!({ "given": done }));
    }
    Ok(Exit::Success)
}

/// Opens an archive, of which any part can be read: one that is compressed, or comes from a pipe, is unpacked to a file
/// without a name first.
pub(super) fn open(path: &Path) -> Result<Archive> {
    let is_stdin = path == Path::new("-");
    if path.is_dir() {
        return Archive::open(path);
    }
    let unreadable = |error: &io::Error| Failure::file("read", path, error);
    let from: Box<dyn Read + Send> = if is_stdin {
        Box::new(io::stdin())
    } else {
        let mut file = File::open(path).map_err(|error| unreadable(&error))?;
        let mut head = [0; 2];
        let count = file.read(&mut head).map_err(|error| unreadable(&error))?;
        file.rewind().map_err(|error| unreadable(&error))?;
        // As tar begins, with a name.
        if count == 2 && head.iter().all(u8::is_ascii_graphic) {
            return Archive::of(file);
        }
        Box::new(file)
    };
    let failed =
        |error: io::Error| Failure::local("bad-image", format!("the images cannot be unpacked: {error}"));
    let mut unpacked = tempfile::tempfile().map_err(failed)?;
    io::copy(&mut archive::open(from, None)?, &mut unpacked).map_err(failed)?;
    unpacked.rewind().map_err(failed)?;
    Archive::of(unpacked)
}

/// What each image is to be called.
pub(super) fn names<'a>(images: &'a [Image], name: Option<&str>) -> Result<Vec<(String, &'a Image)>> {
    let named = match (name, images) {
        (Some(name), [image]) => vec![(name.to_owned(), image)],
        (Some(_), _) => {
            return Err(Failure::input("bad-name", format!("there are {} images in the file", images.len()))
                .advice("leave --name out, and they are called as they are called there"));
        }
        (None, _) => {
            let each = |image: &'a Image| image.names.iter().map(move |name| (name.clone(), image));
            images.iter().flat_map(each).collect()
        }
    };
    if let Some(image) =
        images.iter().find(|image| named.iter().all(|(_, other)| other.digest != image.digest))
    {
        let text = format!("the file does not say how image {} is called", image.digest);
        return Err(Failure::input("no-name", text).advice("say it with --name, as a Compose file has it"));
    }
    for (name, _) in &named {
        if name.contains('@') || name.parse::<Reference>().is_err() {
            return Err(Failure::input("bad-name", format!("{name:?} is not the name of an image"))
                .advice("write for example registry.example/shop:7"));
        }
    }
    Ok(named)
}

/// The machines that are to have it: the one that answers if none is said.
async fn choose(client: &Client, options: &ImagesGive) -> Result<Vec<(Option<NodeId>, String)>> {
    let all: Vec<Node> = client.list("/v1/nodes").await?;
    if options.all {
        let ready = all.iter().filter(|node| node.state == NodeState::Ready);
        return Ok(ready.map(|node| (Some(node.id), nodes::called(node))).collect());
    }
    if options.on.is_empty() {
        return Ok(vec![(None, "the machine that was asked".to_owned())]);
    }
    let one = |name: &String| nodes::find(&all, name).map(|node| (Some(node.id), nodes::called(node)));
    options.on.iter().map(one).collect()
}

/// Gives one machine one image: what it says it wants.
fn send(
    client: &Client,
    archive: &Archive,
    image: &Image,
    name: &str,
    node: Option<NodeId>,
    bar: &ProgressBar,
) -> Result<()> {
    let failed =
        |error: &io::Error| Failure::local("not-given", format!("the image cannot be sent: {error}"));
    let (wanted, said) = io::pipe().map_err(|error| failed(&error))?;
    let (input, mut to_send) = io::pipe().map_err(|error| failed(&error))?;
    let digits = image.digest.trim_start_matches("sha256:");
    let node = node.map(|node| format!("&node={node}")).unwrap_or_default();
    let manifest_bytes = image.manifest.len();
    let path = format!(
        "/v1/images/give?name={}&digest={digits}&manifestBytes={manifest_bytes}{node}",
        percent(name)
    );
    let notes = Notes::new(MAX_NOTES_BYTES);
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || -> Result<()> {
            let broken = |error: io::Error| failed(&error);
            to_send.write_all(&image.manifest).map_err(broken)?;
            for line in BufReader::new(wanted).lines() {
                let line = line.map_err(broken)?;
                let WantedBlob { digest, from } = serde_json::from_str(&line).map_err(|error| {
                    Failure::local("bad-answer", format!("the machine wants what is not understood: {error}"))
                })?;
                let blob = image.blobs.get(&digest).ok_or_else(|| {
                    Failure::local(
                        "bad-answer",
                        format!("the machine wants {digest}, which is not of the image"),
                    )
                })?;
                bar.inc(from.min(blob.size));
                io::copy(&mut bar.wrap_read(archive.read(blob, from)?), &mut to_send).map_err(broken)?;
            }
            Ok(())
        });
        let ended = super::block_on("stopped; what was sent is not sent again", async {
            let keeper = Keeper::Printed(Printer::start(said, notes)?);
            session::converse(client, &path, false, input, keeper).await
        });
        let sent = sending.join().unwrap_or_else(|_| Err(failed(&io::Error::other("sending broke off"))));
        match (ended, sent) {
            (Ok(Exit::OfCommand(0)), _) => Ok(()),
            // The machine says why it takes no more; what is sent then finds nobody.
            (Err(failure), _) | (_, Err(failure)) => Err(failure),
            _ => Err(Failure::local("not-given", "the machine ended it").advice("try again")),
        }
    })
}

fn take_back(global: &Global, options: &ImagesTakeBack) -> Result<Exit> {
    let client = super::client(global)?;
    let name = &options.name;
    let taken = super::block_on("stopped; look with `hivemind images`", async {
        let images = given(&client).await?;
        let found: Vec<&GivenImage> =
            images.iter().filter(|image| whole_name(&image.name) == whole_name(name)).collect();
        if found.is_empty() {
            let text = format!("no machine was given an image {name}");
            return Err(Failure::new(Exit::Refused, "not-found", text).advice("`hivemind images` lists them"));
        }
        let mut taken = Vec::new();
        for image in found {
            for holder in &image.nodes {
                let path = format!("/v1/images?name={}&node={}", percent(&image.name), holder.node);
                client.send(Method::DELETE, &path, Bytes::new()).await?;
                taken.push(holder.hostname.clone());
            }
        }
        taken.sort();
        taken.dedup();
        Ok(taken)
    })?;
    if global.output == Output::Json {
        say_json(&json!({ "name": name, "nodes": taken }));
    } else {
        let name = paint(STRONG, name);
        say(&format!("{name} goes from {} when the disk wants the room", taken.join(", ")));
    }
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(digest: &str, names: &[&str]) -> Image {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Image { names, manifest: Vec::new(), digest: digest.to_owned(), blobs: Default::default() }
    }

    #[test]
    fn an_image_is_called_as_in_its_file_or_as_is_said() {
        let called = |images: &[Image], name: Option<&str>| -> std::result::Result<Vec<String>, String> {
            let named = names(images, name).map_err(|failure| failure.code)?;
            Ok(named.into_iter().map(|(name, _)| name).collect())
        };
        let two = [image("a", &["shop:1", "shop:latest"]), image("b", &["other:1"])];
        assert_eq!(called(&two, None).unwrap(), ["shop:1", "shop:latest", "other:1"]);
        assert_eq!(called(&two[..1], Some("mine:2")).unwrap(), ["mine:2"]);
        assert_eq!(called(&two, Some("mine:2")).unwrap_err(), "bad-name");
        assert_eq!(called(&[image("a", &[])], None).unwrap_err(), "no-name");
        assert_eq!(called(&[image("a", &["UPPER:1"])], None).unwrap_err(), "bad-name");
        assert_eq!(whole_name("shop"), whole_name("docker.io/library/shop:latest"));
        assert_ne!(whole_name("shop:1"), whole_name("registry.example/shop:1"));
    }
}
